"""The collector's process: config to sink, listeners, loop, signals, report."""

import logging
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psutil import net_if_addrs

from guestagent import __version__, identity
from guestagent.collector.registry import Registry
from guestagent.collector.server import Server
from guestagent.collector.sinks.directory import Rotation
from guestagent.collector.sinks.outlet import Outlet
from guestagent.collector.sinks.relay import Relay
from guestagent.collector.sinks.shared import open_sink
from guestagent.collector.sinks.tap import TapOutlet
from guestagent.collector.tunnels import Tunnels
from guestagent.config import CollectConfig
from guestagent.endpoint import Endpoint
from guestagent.errors import ConfigError, RunError
from guestagent.links.keyring import credentials
from guestagent.loop import READABLE, Loop
from guestagent.observe import reports
from guestagent.observe.notify import Notifier
from guestagent.observe.status import StatusSocket
from guestagent.observe.words import LiveLine
from guestagent.privileges import CAP_NET_ADMIN, CAP_NET_RAW, keep_only
from guestagent.rlimits import refuse_small
from guestagent.trust import cleartext_sentence, is_exposed

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

log = logging.getLogger("guestagent.collector")

LIVE_SECONDS = 1.0
BEAT_SECONDS = 1.0
_IP = (socket.AF_INET, socket.AF_INET6)


class Collector:
    """One collector. `run()` blocks until it ends and returns the exit code."""

    def __init__(self, config: CollectConfig) -> None:
        self._config = config
        self._loop = Loop()
        self._stop_reason = ""
        self._live = LiveLine()
        self._outlets: list[Outlet] = []
        self._notifier = Notifier()

    def run(self) -> int:
        """Open everything, loop, close, report. Raises GuestagentError where it can't begin."""
        config = self._config
        refuse_small(writes_captures=config.write != "-")
        reports.check_writable(config.report)
        rotation = Rotation(config.rotate_bytes, config.rotate_seconds, config.retain_bytes)
        tls = credentials(config, config.listen, server_side=True)
        self._check_exposure()
        sink = open_sink(config.write, rotation, fsync=config.fsync, wire_size=config.wire_size, stdout=_private_stdout)
        self._outlets = _open_outlets(config, self._loop)
        collector_id = config.collector_id or identity.agent_id()
        registry = Registry(sink, collector_id, __version__, self._outlets)
        self._server = Server(self._loop, registry)
        self._tunnels = Tunnels(self._loop, registry)
        self._server.allowed = config.tls_allow
        try:
            for endpoint in config.listen:
                for name in self._listen(endpoint, tls):
                    log.info("collector %s listens on %s, %s", collector_id, name, _whither(config))
            self._with_status()
        finally:
            self._notifier.stopping()
            self._tunnels.close()
            self._server.close()
            registry.close()
            self._live.clear()
            if config.report:
                reports.write(config.report, {**self._status(), **registry.report()})
            self._loop.close()
            self._notifier.close()
        log.info("%s", self._stop_reason)
        return 0

    def _listen(self, endpoint: Endpoint, tls: "Credentials | None") -> list[str]:
        """The addresses that a `--listen` got."""
        if endpoint.is_tunnel:
            return self._tunnels.listen(endpoint)
        host, port = self._server.listen(endpoint.host, endpoint.port, tls if endpoint.scheme == "tls" else None)
        return [f"{host}:{port}"]

    def _status(self) -> dict[str, Any]:
        """What `guestagent status` shows."""
        snapshot = {**self._server.status(), **self._tunnels.describe()}
        for outlet in self._outlets:
            snapshot |= outlet.describe()
        return snapshot

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

    def _with_status(self) -> None:
        """Work, with a status socket beside it, and an endpoint for Prometheus where one is wanted."""

        def snapshot() -> dict[str, Any]:
            return {"role": "collector", "version": __version__, **self._status()}

        config = self._config
        with ExitStack() as stack:
            status = StatusSocket("collector", snapshot)
            stack.callback(status.close)
            self._loop.watch(status, READABLE, status.answer)
            stack.callback(self._loop.forget, status)
            if config.metrics:
                from guestagent.observe.endpoint import serve

                stack.callback(serve(self._loop, config.metrics, snapshot).close)
            paths = (config.report, "" if config.write == "-" else config.write, config.metrics)
            places = [Path(path) for path in paths if path and isinstance(path, str)]
            keep_only(*_later_needs(config), writes=[status.path, *places])
            self._work()

    def _work(self) -> None:
        stop_signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._loop.on_signals(dict.fromkeys(stop_signals, self._signalled))
        until = self._loop.now() + self._config.duration if self._config.duration else float("inf")
        live_at = beat_at = self._loop.now()
        timed: list[Server | Tunnels | Outlet] = [self._server, self._tunnels, *self._outlets]
        self._notifier.ready()
        while not self._stop_reason:
            now = self._loop.now()
            if now >= until:
                self._stop_reason = "the duration is over"
            if self._live.is_on and now >= live_at:
                live_at = now + LIVE_SECONDS
                self._live.show(_live_text(self._server.status()))
            if now >= beat_at:
                beat_at = now + BEAT_SECONDS
                self._notifier.beat(f"{len(self._server.connections)} connected")
            for one in timed:
                one.tick(now)
            due = min(*(one.deadline(now) for one in timed), beat_at, until, live_at if self._live.is_on else until)
            self._loop.run_once(due - self._loop.now())


def _open_outlets(config: CollectConfig, loop: Loop) -> list[Outlet]:
    outlets: list[Outlet] = [TapOutlet(config.tap)] if config.tap else []
    if config.relay:
        outlets.append(Relay(config.relay, loop, mode=config.mode, oversize=config.oversize, keys=config.keys))
    return outlets


def _later_needs(config: CollectConfig) -> list[int]:
    """Capabilities for what is opened while it runs: a TAP device for each agent, raw sockets to a sensor again."""
    needs = [CAP_NET_ADMIN] if "%a" in config.tap else []
    return [*needs, CAP_NET_RAW] if any(one.is_raw for one in config.relay) else needs


def _whither(config: CollectConfig) -> str:
    """Where frames go, in words."""
    places = [f"writes to {config.write}"] if config.write else []
    places += [f"shows frames on the TAP device {config.tap}"] if config.tap else []
    places += [f"relays to {', '.join(map(str, config.relay))}"] if config.relay else []
    return ", ".join(places)


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
