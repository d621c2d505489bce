"""The way by which copies leave, as `to` names it: directory, tunnel or collector; each loads its own room alone."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from guestagent.config import RunConfig
from guestagent.desk import Desk
from guestagent.links.owner import Link
from guestagent.loop import Loop

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials


def open_link(config: RunConfig, desk: Desk, loop: Loop, stack: ExitStack) -> Link:
    """The link, which `stack` closes. Raises ConfigError for files of TLS that can't be used."""
    first = config.to[0]
    open_it = _directory if first.scheme == "dir" else _tunnels if first.is_tunnel else _collectors
    link = open_it(config, desk, loop, stack)
    stack.callback(link.close)
    return link


def _directory(config: RunConfig, desk: Desk, loop: Loop, stack: ExitStack) -> Link:
    from guestagent.collector.embedded import EmbeddedCollector
    from guestagent.links.local import LocalLink

    path = config.to[0].path
    rotation = config.rotate_bytes, config.rotate_seconds, config.retain_bytes
    embedded = EmbeddedCollector(path, *rotation, wire_size=config.wire_size)
    stack.callback(embedded.close)
    return LocalLink(path, embedded, desk, loop.now())


def _tunnels(config: RunConfig, desk: Desk, loop: Loop, _: ExitStack) -> Link:
    from guestagent.links.direct import DirectLink

    mode = config.mode or "balance"
    return DirectLink(
        config.to,
        desk,
        loop,
        mode=mode,
        oversize=config.oversize,
        keys=config.keys,
        allow_cleartext=config.allow_cleartext,
    )


def _collectors(config: RunConfig, desk: Desk, loop: Loop, _: ExitStack) -> Link:
    from guestagent.links.collectors import ordered
    from guestagent.links.keyring import credentials
    from guestagent.links.stream import StreamLink

    tls = credentials(config, config.to, server_side=False)
    if config.streams > 1:
        return _replicated(config, desk, loop, tls)
    to = ordered(config.to, desk.agent_id) if config.mode == "spread" else config.to
    return StreamLink(to, desk, loop, tls, allow_cleartext=config.allow_cleartext)


def _replicated(config: RunConfig, desk: Desk, loop: Loop, tls: "Credentials | None") -> Link:
    from guestagent.links.replicate import ReplicateLink
    from guestagent.links.stream import StreamLink
    from guestagent.sharing import Sharing

    sharing = Sharing(desk, config.streams)
    links = [
        StreamLink([one], share, loop, tls, allow_cleartext=config.allow_cleartext)
        for one, share in zip(config.to, sharing.shares, strict=True)
    ]
    return ReplicateLink(links, sharing)
