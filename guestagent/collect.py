"""The collector's process: config to sink, listeners, loop, signals, report."""

import logging
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from guestagent import __version__, identity
from guestagent.collector.registry import Registry
from guestagent.collector.server import Server
from guestagent.collector.sinks.directory import Rotation
from guestagent.collector.sinks.shared import open_sink
from guestagent.config import CollectConfig
from guestagent.errors import RunError
from guestagent.loop import READABLE, Loop
from guestagent.observe import reports
from guestagent.observe.notify import Notifier
from guestagent.observe.status import StatusSocket
from guestagent.observe.words import LiveLine
from guestagent.privileges import keep_only

log = logging.getLogger("guestagent.collector")

LIVE_SECONDS = 1.0
BEAT_SECONDS = 1.0


class Collector:
    """One collector. `run()` blocks until it ends and returns the exit code."""

    def __init__(self, config: CollectConfig) -> None:
        self._config = config
        self._loop = Loop()
        self._stop_reason = ""
        self._live = LiveLine()
        self._notifier = Notifier()

    def run(self) -> int:
        """Open everything, loop, close, report. Raises GuestagentError where it can't begin."""
        config = self._config
        reports.check_writable(config.report)
        rotation = Rotation(config.rotate_bytes, config.rotate_seconds, config.retain_bytes)
        sink = open_sink(config.write, rotation, fsync=config.fsync, stdout=_private_stdout)
        collector_id = config.collector_id or identity.agent_id()
        registry = Registry(sink, collector_id, __version__)
        server = Server(self._loop, registry)
        try:
            for endpoint in config.listen:
                host, port = server.listen(endpoint.host, endpoint.port)
                log.info("collector %s listens on %s:%d, writes to %s", collector_id, host, port, config.write)
            with_status(config, self._loop, server, self._work)
        finally:
            self._notifier.stopping()
            server.close()
            registry.close()
            self._live.clear()
            if config.report:
                reports.write(config.report, {**registry.report(), "refused": server.refused})
            self._loop.close()
            self._notifier.close()
        log.info("%s", self._stop_reason)
        return 0

    def _signalled(self) -> None:
        self._stop_reason = "stopped by a signal"

    def _work(self, server: Server) -> None:
        stop_signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._loop.on_signals(dict.fromkeys(stop_signals, self._signalled))
        until = self._loop.now() + self._config.duration if self._config.duration else float("inf")
        live_at = beat_at = self._loop.now()
        self._notifier.ready()
        while not self._stop_reason:
            now = self._loop.now()
            if now >= until:
                self._stop_reason = "the duration is over"
            if self._live.is_on and now >= live_at:
                live_at = now + LIVE_SECONDS
                self._live.show(_live_text(server.status()))
            if now >= beat_at:
                beat_at = now + BEAT_SECONDS
                self._notifier.beat(f"{len(server.connections)} connected")
            server.tick(now)
            due = min(server.deadline(now), beat_at, until, live_at if self._live.is_on else until)
            self._loop.run_once(due - self._loop.now())


def with_status(config: CollectConfig, loop: Loop, server: Server, work: Any) -> None:
    """Run `work(server)` with a status socket beside it, and an endpoint for Prometheus where one is wanted."""

    def snapshot() -> dict[str, Any]:
        return {"role": "collector", "version": __version__, **server.status()}

    with ExitStack() as stack:
        status = StatusSocket("collector", snapshot)
        stack.callback(status.close)
        loop.watch(status, READABLE, status.answer)
        stack.callback(loop.forget, status)
        if config.metrics:
            from guestagent.observe.endpoint import serve

            stack.callback(serve(loop, config.metrics, snapshot).close)
        paths = [config.report, "" if config.write == "-" else config.write]
        keep_only(
            writes=[status.path, *(Path(path) for path in (*paths, config.metrics) if path and isinstance(path, str))]
        )
        work(server)


def _live_text(status: dict[str, Any]) -> str:
    sums = [sum(agent[key] for agent in status["agents"].values()) for key in ("received", "written", "gaps")]
    return f"{status['connections']} connected  received {sums[0]:,}  written {sums[1]:,}  gaps {sums[2]:,}"


def _private_stdout() -> int:
    """Standard output for packets alone: whatever else would print there goes to standard error."""
    if os.isatty(1):
        raise RunError("--write - sends pcapng to standard output: pipe it, for example into `tshark -r -`")
    descriptor = os.dup(1)
    os.dup2(2, 1)
    os.set_blocking(descriptor, False)
    return descriptor
