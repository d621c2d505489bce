"""The tunnels by the scheme of their URL: how each is sent, found and read; and tunnels in tunnels. Pure."""

from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from guestagent.encap import erspan, geneve, gre, vxlan
from guestagent.encap.decoded import (
    ETHERTYPE_FRAME,
    Decoded,
    MalformedTunnel,
)
from guestagent.encap.inner import UDP, network

__all__ = ["ETHERTYPE_FRAME", "TUNNELS", "Decoded", "MalformedTunnel", "Tunnel", "unwrap"]

GRE = 47
MOST_LAYERS = 3
_IP_BYTES = {4: 20, 6: 40}
"""Of a header as a socket sends it: no options, no extension headers."""
_UDP_BYTES = 8
_PORT = Struct(">2xH4x")


class Tunnel(NamedTuple):
    """How one kind of tunnel is sent and read."""

    transport: int
    """IP protocol: 17 UDP, 47 GRE."""
    port: int
    """Default UDP destination port; 0 for GRE, which has none."""
    key_name: str
    """What its users call the key, in a URL too."""
    most_key: int
    header_bytes: int
    header: Callable[..., bytes]
    """(key) -> the constant header; with `is_sequenced`, (key, sequence, tci=, is_truncated=, index=) for one frame."""
    decode: Callable[[memoryview], Decoded]
    is_sequenced: bool = False

    def room(self, path_mtu: int, ip_version: int) -> int:
        """Bytes of the longest frame that needs no outer fragment."""
        outer_bytes = _IP_BYTES[ip_version] + (_UDP_BYTES if self.transport == UDP else 0)
        return path_mtu - outer_bytes - self.header_bytes


TUNNELS = {
    "vxlan": Tunnel(UDP, 4789, "vni", 0xFFFFFF, vxlan.HEADER_BYTES, vxlan.header, vxlan.decode),
    "geneve": Tunnel(UDP, 6081, "vni", 0xFFFFFF, geneve.HEADER_BYTES, geneve.header, geneve.decode),
    "gre": Tunnel(GRE, 0, "key", 0xFFFFFFFF, gre.HEADER_BYTES, gre.header, gre.decode),
    "erspan": Tunnel(GRE, 0, "session", 0x3FF, erspan.HEADER_BYTES, erspan.header, erspan.decode, is_sequenced=True),
}


def unwrap(scheme: str, datagram: memoryview) -> tuple[Decoded, ...]:
    """The tunnel headers of a datagram, outermost first, all offsets from its beginning; the last one has the copy.

    Only envelopes are opened, as deep as MOST_LAYERS: a tunnel inside a copied frame is what was copied. An envelope
    in which no tunnel is found is itself the last. Raises MalformedTunnel for the outermost header.
    """
    layers = [TUNNELS[scheme].decode(datagram)]
    while layers[-1].is_envelope and len(layers) < MOST_LAYERS:
        further = _opened(datagram, layers[-1])
        if further is None:
            break
        layers.append(further)
    return tuple(layers)


def _opened(datagram: memoryview, envelope: Decoded) -> Decoded | None:
    """The tunnel in the IP packet of an envelope, by protocol and default port."""
    try:
        outer = network(datagram, envelope.inner_at, envelope.ethertype)
        if outer is None:
            return None
        port, at = 0, outer.end
        if outer.protocol == UDP:
            port, at = _PORT.unpack_from(datagram, at)[0], at + _UDP_BYTES
    except (IndexError, StructError):  # a header that the datagram was cut in
        return None
    for tunnel in TUNNELS.values():
        if (tunnel.transport, tunnel.port) == (outer.protocol, port):
            try:
                found = tunnel.decode(datagram[at:])
            except MalformedTunnel:
                continue
            return found._replace(inner_at=at + found.inner_at)
    return None
