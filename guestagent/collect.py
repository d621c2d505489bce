"""`guestagent collect`: from config to open doors, then one loop that takes copies, or workers that do."""

import logging
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from psutil import net_if_addrs

from guestagent.collector.listeners import open_listeners
from guestagent.collector.sinks.directory import lock_directory
from guestagent.config import CollectConfig
from guestagent.errors import ConfigError
from guestagent.front import Front
from guestagent.links.keyring import credentials
from guestagent.loop import Loop
from guestagent.observe import reports
from guestagent.reception import Door, Reception, collector_id_of, reloaded
from guestagent.rlimits import refuse_small
from guestagent.trust import cleartext_sentence, is_exposed

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

log = logging.getLogger("guestagent.collector")

_IP = (socket.AF_INET, socket.AF_INET6)


def collect(config: CollectConfig, reread: Callable[[], CollectConfig]) -> int:
    """Take copies until a signal or the duration ends it; the exit code. Raises GuestagentError."""
    refuse_small(writes_captures=config.write != "-")
    reports.check_writable(config.report)
    tls = credentials(config, config.listen, server_side=True)
    check_exposure(config)
    with ExitStack() as stack:
        front = Front(config, stack)
        if config.workers > 1:
            from guestagent.supervise import Supervisor

            supervisor = Supervisor(config, reread, tls, front, stack)
            hold = lock_directory(Path(config.write)) if config.write else -1
            doors = open_doors(config, config.workers)
            say_open(config, list(map(name_of, doors[0])))
            return supervisor.run(doors, hold)
        return _Alone(config, reread, tls, front, stack).run()


class _Alone:
    """One process, one loop."""

    def __init__(
        self,
        config: CollectConfig,
        reread: Callable[[], CollectConfig],
        tls: "Credentials | None",
        front: Front,
        stack: ExitStack,
    ) -> None:
        self._config, self._reread, self._front = config, reread, front
        self._loop = Loop()
        stack.callback(self._loop.close)
        self._loop.on_signals(
            {signal.SIGINT: self._signalled, signal.SIGTERM: self._signalled, signal.SIGHUP: self._reload}
        )
        self._stop_reason = ""
        self._reception = Reception(config, self._loop, tls)

    def run(self) -> int:
        """Until the end."""
        try:
            (doors,) = open_doors(self._config, 1)
            names = self._reception.open(doors, [one for one in self._config.listen if one.is_tunnel])
            say_open(self._config, [*map(name_of, doors), *names])
            connections = self._reception.server.connections
            with ExitStack() as shown:
                self._front.show(self._loop, self._reception.status, lambda: len(connections), shown)
                self._work()
                self._front.notifier.stopping()
        finally:
            report = self._reception.close()
            if self._config.report:
                reports.write(self._config.report, report)
        log.info("%s", self._stop_reason)
        return 0

    def _signalled(self) -> None:
        self._stop_reason = "stopped by a signal"

    def _reload(self) -> None:
        self._front.notifier.reloading()
        self._config = reloaded(self._config, self._reread, self._reception.renew)
        self._front.notifier.ready()

    def _work(self) -> None:
        front = self._front
        until = self._loop.now() + self._config.duration if self._config.duration else float("inf")
        front.notifier.ready()
        while not self._stop_reason:
            now = self._loop.now()
            if now >= until:
                self._stop_reason = "the duration is over"
            front.tick(now)
            self._reception.tick(now)
            due = min(self._reception.deadline(now), front.deadline(), until)
            self._loop.run_once(due - self._loop.now())


def open_doors(config: CollectConfig, workers: int) -> list[list[Door]]:
    """For each worker a listening socket of each `--listen` that is no tunnel. Raises ConfigError."""
    doors: list[list[Door]] = [[] for _ in range(workers)]
    try:
        for endpoint in config.listen:
            if not endpoint.is_tunnel:
                for mine, listener in zip(doors, open_listeners(endpoint.host, endpoint.port, workers), strict=True):
                    mine.append((endpoint, listener))
    except ConfigError:
        for _, listener in (door for mine in doors for door in mine):
            listener.close()
        raise
    return doors


def name_of(door: Door) -> str:
    """Where it is, as an address."""
    host, port = door[1].getsockname()[:2]
    return f"{host}:{port}"


def say_open(config: CollectConfig, names: list[str]) -> None:
    """The sentence that says where copies come in and what becomes of them."""
    places = [f"writes to {config.write}"] if config.write else []
    places += [f"shows frames on the TAP device {config.tap}"] if config.tap else []
    places += [f"relays to {', '.join(map(str, config.relay))}"] if config.relay else []
    for name in names:
        log.info("collector %s listens on %s, %s", collector_id_of(config), name, ", ".join(places))


def check_exposure(config: CollectConfig) -> None:
    """Raises ConfigError for a listener in clear text on an address that is not private; a warning if allowed."""
    addresses = [one.address for interface in net_if_addrs().values() for one in interface if one.family in _IP]
    for endpoint in config.listen:
        if is_exposed(endpoint, addresses):
            if not config.allow_cleartext:
                raise ConfigError(cleartext_sentence(endpoint))
            log.warning("copies come in clear text to %s, which is not private", endpoint)
