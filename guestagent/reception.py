"""Everything of one process that takes copies: sink, registry, server, tunnels, outlets; and what of it can change.

`collect` has one, or with `--workers N` each worker has.
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from guestagent import __version__, identity
from guestagent.collector.handover import Handover
from guestagent.collector.lessor import Lessor
from guestagent.collector.registry import Registry
from guestagent.collector.server import Server
from guestagent.collector.sinks.directory import ALL, Rotation, Share
from guestagent.collector.sinks.outlet import Outlet
from guestagent.collector.sinks.relay import Relay
from guestagent.collector.sinks.shared import open_sink
from guestagent.collector.sinks.tap import TapOutlet
from guestagent.collector.tunnels import Tunnels
from guestagent.config import CollectConfig
from guestagent.endpoint import Endpoint
from guestagent.errors import GuestagentError, RunError
from guestagent.loop import Loop

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

log = logging.getLogger("guestagent.collector")

Door = tuple[Endpoint, socket.socket]
"""A `--listen` and a listening socket of it."""
LIVE = ("tls_ca", "tls_cert", "tls_key", "tls_allow", "rotate_bytes", "rotate_seconds", "retain_bytes")
"""What changes at once when the config is read again; everything else is read at the start alone."""


class Crew(NamedTuple):
    """What makes this process one of several workers."""

    share: Share
    lessor: Lessor
    handover: Handover


class Reception:
    """Opened by its constructor, which raises GuestagentError; then turned by the loop until `close`."""

    def __init__(
        self,
        config: CollectConfig,
        loop: Loop,
        tls: "Credentials | None",
        crew: Crew | None = None,
    ) -> None:
        self._loop, self._tls = loop, tls
        rotation = rotation_of(config)
        self._sink = open_sink(
            config.write,
            rotation,
            fsync=config.fsync,
            wire_size=config.wire_size,
            stdout=partial(_private_stdout, loop),
            share=crew.share if crew else ALL,
        )
        self._outlets = _open_outlets(config, loop)
        self._registry = Registry(self._sink, collector_id_of(config), __version__, self._outlets)
        self.server = Server(loop, self._registry, *crew[1:]) if crew else Server(loop, self._registry)
        self.server.allow(config.tls_allow)
        self._tunnels = Tunnels(loop, self._registry)
        self._timed: list[Server | Tunnels | Outlet] = [self.server, self._tunnels, *self._outlets]

    def open(self, doors: Sequence[Door], tunnels: Sequence[Endpoint]) -> list[str]:
        """Take what comes; the addresses of the tunnels' sockets. Raises ConfigError, HostError."""
        for endpoint, listener in doors:
            self.server.serve(listener, self._tls if endpoint.scheme == "tls" else None)
        return [name for endpoint in tunnels for name in self._tunnels.listen(endpoint)]

    def tick(self, now: float) -> None:
        """What time asks for."""
        for one in self._timed:
            one.tick(now)

    def deadline(self, now: float) -> float:
        """When `tick` is due."""
        return min(one.deadline(now) for one in self._timed)

    def status(self) -> dict[str, Any]:
        """What `guestagent status` shows."""
        snapshot = {**self.server.status(), **self._tunnels.describe()}
        for outlet in self._outlets:
            snapshot |= outlet.describe()
        return snapshot

    def renew(self, config: CollectConfig) -> None:
        """Take over LIVE of a new config. Raises ConfigError; then nothing has changed."""
        if self._tls is not None:
            self._tls.renew(config.tls_ca, config.tls_cert, config.tls_key)
        self._sink.renew(rotation_of(config))
        self.server.allow(config.tls_allow)

    def close(self) -> dict[str, Any]:
        """Say goodbye to all, end all runs, close all files; the report."""
        self._tunnels.close()
        self.server.close()
        self._registry.close()
        return {**self.status(), **self._registry.report()}


def reloaded(
    old: CollectConfig, reread: Callable[[], CollectConfig], take: Callable[[CollectConfig], None]
) -> CollectConfig:
    """The config in force from now on: the old one, said why, where the new one is bad in any way; else LIVE of it."""
    try:
        new = reread()
        in_force = replace(old, **{name: getattr(new, name) for name in LIVE})
        take(in_force)
    except GuestagentError as error:
        log.error("the config was read again and refused, the old one stays in force: %s", error)
        return old
    changed = [one.name for one in fields(CollectConfig) if getattr(old, one.name) != getattr(new, one.name)]
    later = [name for name in changed if name not in LIVE]
    log.info("the config was read again: %s", ", ".join(name for name in changed if name in LIVE) or "nothing changed")
    if later:
        log.warning("restart to change what is read at the start alone: %s", ", ".join(later))
    return in_force


def rotation_of(config: CollectConfig) -> Rotation:
    """How files change."""
    return Rotation(config.rotate_bytes, config.rotate_seconds, config.retain_bytes)


def collector_id_of(config: CollectConfig) -> str:
    """The name under which agents know this collector, all its workers together."""
    return config.collector_id or identity.agent_id()


def _open_outlets(config: CollectConfig, loop: Loop) -> list[Outlet]:
    outlets: list[Outlet] = [TapOutlet(config.tap)] if config.tap else []
    if config.relay:
        relay = Relay(
            config.relay,
            loop,
            mode=config.mode,
            oversize=config.oversize,
            keys=config.keys,
            allow_cleartext=config.allow_cleartext,
        )
        outlets.append(relay)
    return outlets


def _reader_left(_events: int) -> None:
    """Only that is told of a pipe that is watched for nothing (poll(2), POLLERR)."""
    raise RunError("whoever read the packets of --write - is gone, so the collector ends: start both again")


def _private_stdout(loop: Loop) -> int:
    """Standard output for packets alone: whatever else would print there goes to standard error."""
    if os.isatty(1):
        raise RunError("--write - sends pcapng to standard output: pipe it, for example into `tshark -r -`")
    descriptor = os.dup(1)
    os.dup2(2, 1)
    os.set_blocking(descriptor, False)
    with suppress(PermissionError):  # a regular file has no reader who could leave
        loop.watch(os.fdopen(descriptor, "wb", 0, closefd=False), 0, _reader_left)
    return descriptor
