"""The words of the tunnel formats: what a decoder finds in front of a copied packet, and how it refuses. Pure."""

from typing import NamedTuple

ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_FRAME = 0x0800, 0x86DD, 0x6558
"""The last is transparent Ethernet bridging (RFC 1701, section 2): what follows is a whole Ethernet frame."""
LEAST_ETHERTYPE = 0x0600
"""Below it stand lengths (IEEE 802.3, clause 3.2.6) and the protocol 0 of GRE keepalives."""
_ETHERNET_HEADER_BYTES = 14


class MalformedTunnel(ValueError):
    """The bytes are no datagram of this tunnel format, or one that must not be read; one sentence says why."""


class Decoded(NamedTuple):
    """One tunnel header; the packet inside begins at `inner_at` and reaches to the end of the datagram."""

    scheme: str
    key: int | None
    """VNI, GRE key or ERSPAN session; None where the header has none (GRE without key, ERSPAN type I)."""
    inner_at: int
    """Offset in the datagram, which begins with the tunnel header: behind the UDP header, or behind IP for GRE."""
    ethertype: int
    """0x6558 for an Ethernet frame; otherwise the packet inside has no Ethernet header, and this is its EtherType."""
    sequence: int | None = None
    """Of the GRE header, 32 bits."""
    is_truncated: bool = False
    """Whoever made the copy cut it (ERSPAN's T bit)."""
    is_outgoing: bool | None = None
    """Sent by the mirrored port, not received; None where the format does not tell (all but ERSPAN type III)."""
    timestamp: int | None = None
    """32 bits in units of `timestamp_unit_ns`, from an origin of the sender's own (ERSPAN type III)."""
    timestamp_unit_ns: int = 0
    """0 where the unit is not told."""
    is_envelope: bool = False
    """The packet inside is not the copy but what carried it here: a gateway load balancer's way with a mirror."""


def checked(found: Decoded, datagram: memoryview) -> Decoded:
    """What was found; MalformedTunnel where nothing that could be a packet is inside."""
    if found.ethertype < LEAST_ETHERTYPE:
        raise MalformedTunnel(f"{found.scheme} header says protocol {found.ethertype:#06x}, which is no EtherType")
    inner_bytes = len(datagram) - found.inner_at
    if inner_bytes < (_ETHERNET_HEADER_BYTES if found.ethertype == ETHERTYPE_FRAME else 1):
        raise MalformedTunnel(f"{found.scheme} header is followed by {max(inner_bytes, 0)} bytes, too few for a packet")
    return found
