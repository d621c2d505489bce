"""The collector's process: config to sink, listeners, loop, signals, report."""

import logging
import os
import signal
import socket
from typing import Any

from psutil import net_if_addrs

from guestagent import __version__, identity
from guestagent.collector.registry import Registry
from guestagent.collector.server import Server
from guestagent.collector.sinks.directory import Rotation
from guestagent.collector.sinks.shared import open_sink
from guestagent.config import CollectConfig
from guestagent.errors import ConfigError, RunError
from guestagent.links.keyring import credentials
from guestagent.loop import READABLE, Loop
from guestagent.observe import reports
from guestagent.observe.status import StatusSocket
from guestagent.observe.words import LiveLine
from guestagent.trust import cleartext_sentence, is_exposed

log = logging.getLogger("guestagent.collector")

LIVE_SECONDS = 1.0
_IP = (socket.AF_INET, socket.AF_INET6)


class Collector:
    """One collector. `run()` blocks until it ends and returns the exit code."""

    def __init__(self, config: CollectConfig) -> None:
        self._config = config
        self._loop = Loop()
        self._stop_reason = ""
        self._live = LiveLine()

    def run(self) -> int:
        """Open everything, loop, close, report. Raises GuestagentError where it can't begin."""
        config = self._config
        reports.check_writable(config.report)
        rotation = Rotation(config.rotate_bytes, config.rotate_seconds, config.retain_bytes)
        tls = credentials(config, config.listen, server_side=True)
        self._check_exposure()
        sink = open_sink(config.write, rotation, fsync=config.fsync, stdout=_private_stdout)
        collector_id = config.collector_id or identity.agent_id()
        registry = Registry(sink, collector_id, __version__)
        server = Server(self._loop, registry)
        server.allowed = config.tls_allow
        try:
            for endpoint in config.listen:
                host, port = server.listen(endpoint.host, endpoint.port, tls if endpoint.scheme == "tls" else None)
                log.info("collector %s listens on %s:%d, writes to %s", collector_id, host, port, config.write)
            with_status(self._loop, server, self._work)
        finally:
            server.close()
            registry.close()
            self._live.clear()
            if config.report:
                reports.write(config.report, {**registry.report(), "refused": server.refused})
            self._loop.close()
        log.info("%s", self._stop_reason)
        return 0

    def _check_exposure(self) -> None:
        """Raises ConfigError for a listener in clear text on an address that is not private; a warning if allowed."""
        addresses = [one.address for interface in net_if_addrs().values() for one in interface if one.family in _IP]
        for endpoint in self._config.listen:
            if is_exposed(endpoint, addresses):
                if not self._config.allow_cleartext:
                    raise ConfigError(cleartext_sentence(endpoint))
                log.warning("copies come in clear text to %s, which is not private", endpoint)

    def _signalled(self) -> None:
        self._stop_reason = "stopped by a signal"

    def _work(self, server: Server) -> None:
        stop_signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._loop.on_signals(dict.fromkeys(stop_signals, self._signalled))
        until = self._loop.now() + self._config.duration if self._config.duration else float("inf")
        live_at = self._loop.now()
        while not self._stop_reason:
            now = self._loop.now()
            if now >= until:
                self._stop_reason = "the duration is over"
            if self._live.is_on and now >= live_at:
                live_at = now + LIVE_SECONDS
                self._live.show(_live_text(server.status()))
            server.tick(now)
            due = min(server.deadline(now), until, live_at if self._live.is_on else until)
            self._loop.run_once(due - self._loop.now())


def with_status(loop: Loop, server: Server, work: Any) -> None:
    """Run `work(server)` with a status socket beside it."""
    status = StatusSocket("collector", lambda: {"role": "collector", "version": __version__, **server.status()})
    loop.watch(status, READABLE, status.answer)
    try:
        work(server)
    finally:
        loop.forget(status)
        status.close()


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
