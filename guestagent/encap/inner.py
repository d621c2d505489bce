"""Find the TCP or UDP header that a super-packet is cut at, and the headers before it that change in a segment. Pure.

Two ways lead there, and what they find must agree. The headers are walked as they stand, through one tunnel at most.
The virtio header names the transport, and with an unfinished checksum also its place (csum_start): where that is not
the outer transport, the packet is inside a tunnel. A tunnel over UDP on a port that nobody knows is tried as each kind;
that its headers end exactly at csum_start is the proof.

What the kernel does not cut is not walked either: fragments, GRE with sequence numbers or routing. Nor is a tunnel
within a tunnel, nor an IPv6 routing header, which puts another address into the pseudo header.
"""

from collections.abc import Callable, Iterator
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

TCP, UDP = 6, 17
_IPIP, _IPV6, _GRE = 4, 41, 47
"""Protocol numbers: IPv4 and IPv6 inside IP (RFC 2003, RFC 4213), GRE (RFC 2784)."""
_ETHERTYPE_IPV4, _ETHERTYPE_IPV6, _ETHERNET = 0x0800, 0x86DD, 0x6558
"""The last is transparent Ethernet bridging: what GRE and GENEVE name a whole frame (RFC 1701)."""
_VLAN_TAGS = (0x8100, 0x88A8)
_TAG_BYTES, _ADDRESSES_BYTES = 4, 12
_MOST_TAGS = 8
"""VLAN_MAX_DEPTH of include/linux/if_vlan.h."""
_IPV6_OPTIONS = (0, 60)
"""Hop-by-hop and destination options: the extension headers that the kernel cuts behind."""
_MOST_OPTIONS = 8
_MORE_OR_OFFSET = 0x3FFF
"""Of the IPv4 fragment field: more fragments, or not the first."""

_U16 = Struct(">H").unpack_from


class Network(NamedTuple):
    """An IP header: its offset and version, the offset of what it carries, and that protocol's number."""

    at: int
    version: int
    end: int
    protocol: int

    def stop(self, frame: memoryview) -> int:
        """Where the packet ends by its own length field (RFC 791, section 3.1; RFC 8200, section 3)."""
        length_at, counted_from = (2, 0) if self.version == 4 else (4, 40)
        length: int = _U16(frame, self.at + length_at)[0]
        return self.at + counted_from + length


class Tunnel(NamedTuple):
    """What is around the IP header that is nearest to the payload."""

    network: Network
    """The outer one."""
    udp: bool
    """Its payload is a UDP header, with a length and a checksum over a pseudo header too."""
    check_at: int
    """Offset of the outer UDP or GRE checksum, 0 where there is none."""


class Layers(NamedTuple):
    """The headers of a super-packet; the transport begins at `network.end`."""

    tunnel: Tunnel | None
    network: Network


class _Shell(NamedTuple):
    """A tunnel header as its kind reads it: what comes next, where, and the place of its checksum (0: none)."""

    ethertype: int
    inner_at: int
    check_at: int = 0


def locate(frame: memoryview, transport: int, versions: tuple[int, ...], csum_start: int | None) -> Layers | None:
    """The headers of a frame that carries `transport` over an IP of these versions; None where they are not understood.

    `csum_start` is the offset of the transport, where the virtio header tells; the frame may be cut short anywhere.
    """
    try:
        outer = _behind_ethernet(frame, 0)
        if outer is None:
            return None
        if outer.protocol == transport and (csum_start is None or csum_start == outer.end):
            return Layers(None, outer) if outer.version in versions else None
        for shell in _SHELLS.get(outer.protocol, _no_shells)(frame, outer.end, csum_start is not None):
            inner = _behind(frame, shell)
            if (
                inner is not None
                and inner.protocol == transport
                and inner.version in versions
                and (csum_start is None or csum_start == inner.end)
            ):
                return Layers(Tunnel(outer, outer.protocol == UDP, shell.check_at), inner)
    except (IndexError, StructError):  # a header that the frame was cut in
        pass
    return None


def _behind(frame: memoryview, shell: _Shell) -> Network | None:
    if shell.ethertype == _ETHERNET:
        return _behind_ethernet(frame, shell.inner_at)
    return network(frame, shell.inner_at, shell.ethertype)


def _behind_ethernet(frame: memoryview, at: int) -> Network | None:
    """The IP header behind an Ethernet header and its tags."""
    at += _ADDRESSES_BYTES
    for _ in range(_MOST_TAGS):
        ethertype = _U16(frame, at)[0]
        if ethertype not in _VLAN_TAGS:
            return network(frame, at + 2, ethertype)
        at += _TAG_BYTES
    return None


def network(frame: memoryview, at: int, ethertype: int) -> Network | None:
    """The IP header at `at`, and what it carries; None for other EtherTypes, fragments and what no IP header is.

    Raises IndexError or struct.error where the frame ends inside.
    """
    first = frame[at]
    if ethertype == _ETHERTYPE_IPV4:
        end = at + (first & 0x0F) * 4
        if first >> 4 != 4 or end < at + 20 or _U16(frame, at + 6)[0] & _MORE_OR_OFFSET:
            return None
        return Network(at, 4, end, frame[at + 9])
    if ethertype == _ETHERTYPE_IPV6 and first >> 4 == 6:
        following, end = frame[at + 6], at + 40
        for _ in range(_MOST_OPTIONS):
            if following not in _IPV6_OPTIONS:
                break
            following, end = frame[end], end + 8 + 8 * frame[end + 1]
        return Network(at, 6, end, following)
    return None


def _no_shells(frame: memoryview, at: int, has_proof: bool) -> Iterator[_Shell]:
    yield from ()


def _ipip(frame: memoryview, at: int, has_proof: bool) -> Iterator[_Shell]:
    yield _Shell(_ETHERTYPE_IPV4, at)


def _sit(frame: memoryview, at: int, has_proof: bool) -> Iterator[_Shell]:
    yield _Shell(_ETHERTYPE_IPV6, at)


def _gre(frame: memoryview, at: int, has_proof: bool) -> Iterator[_Shell]:
    """RFC 2784 and 2890; as gre_gso_segment and gre_gro_receive, with checksum and key alone, version 0."""
    flags, ethertype = _U16(frame, at)[0], _U16(frame, at + 2)[0]
    has_check, has_key = flags & 0x8000 != 0, flags & 0x2000 != 0
    if not flags & ~0xA000:
        yield _Shell(ethertype, at + 4 + 4 * has_check + 4 * has_key, at + 4 if has_check else 0)


def _vxlan(frame: memoryview, at: int) -> tuple[int, int] | None:
    """RFC 7348, section 5: the I flag, reserved bits, VNI; then a frame."""
    return (_ETHERNET, at + 8) if frame[at] & 0x08 else None


def _geneve(frame: memoryview, at: int) -> tuple[int, int] | None:
    """RFC 8926, section 3.4: version 0 and the length of the options in units of 4 bytes, flags, protocol, VNI."""
    first = frame[at]
    return None if first & 0xC0 else (_U16(frame, at + 2)[0], at + 8 + 4 * (first & 0x3F))


_UDP_SHELLS: dict[int, tuple[Callable[[memoryview, int], tuple[int, int] | None], ...]] = {
    4789: (_vxlan,),
    8472: (_vxlan,),  # Linux's own default, from before the port was assigned
    6081: (_geneve,),
}
_ANY_UDP_SHELL = (_vxlan, _geneve)


def _udp(frame: memoryview, at: int, has_proof: bool) -> Iterator[_Shell]:
    """By destination port; on other ports either kind, if there is a proof. A zero checksum stays zero (RFC 7348)."""
    port, check_at = _U16(frame, at + 2)[0], at + 6
    shell_at = at + 8
    for kind in _UDP_SHELLS.get(port, _ANY_UDP_SHELL if has_proof else ()):
        if found := kind(frame, shell_at):
            yield _Shell(*found, check_at if _U16(frame, check_at)[0] else 0)


_SHELLS: dict[int, Callable[[memoryview, int, bool], Iterator[_Shell]]] = {
    _IPIP: _ipip,
    _IPV6: _sit,
    _GRE: _gre,
    UDP: _udp,
}
"""What may carry another IP packet, by the outer protocol number."""
