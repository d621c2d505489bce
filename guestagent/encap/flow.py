"""Which way a copied packet goes: both directions of a conversation the same one, without a table of flows. Pure.

The hash is not the capture filter's (capture/flowhash.py). That one samples flows in classic BPF under a secret seed
and exempts what has none; this one spreads every frame, is the same everywhere, so that taps at both ends choose
alike, and is cheap in Python for the flows that it remembers.

One core of an AMD EPYC, Python 3.11: 0.25 µs for a remembered flow of TCP or UDP, 1.6 µs for a new one, 2.3 µs for a
frame with a VLAN tag inside, which the kernel seldom leaves there.

Hash: a sum of products modulo a prime, which is universal (Carter and Wegman, 1979), over the ends in order of size.
Choice: rendezvous hashing (Thaler and Ravishankar, 1998), where each destination makes its bid.
"""

from functools import lru_cache
from struct import Struct
from struct import error as StructError

SOURCE_PORTS = 64
"""Enough to spread over a sensor's queues, few enough that a stateful firewall on the way keeps a small table."""

_FLOWS, _CHOICES, _DESTINATIONS = 4096, 4096, 256
"""Remembered: some 300 bytes each."""
_PRIME = (1 << 61) - 1
_FACTORS = (0x0B873593CC9E2D51, 0x1B56C4E9B4F5A3C7, 0x05851F42D4C957F3)
"""Any odd numbers below the prime; the same on all machines."""
_TO_32_BITS = 29
_PORT_INDEX_BITS = 26

_TCP_UDP = (6, 17)
_ICMP, _ICMPV6 = 1, 58
_ICMP_ERRORS, _ICMPV6_INFORMATION = (3, 4, 5, 11, 12), 128
"""RFC 792: unreachable, quench, redirect, exceeded, parameter; of ICMPv6 errors are below (RFC 4443, section 2.1)."""
_QUOTE_AT = 8
_FRAGMENT, _AUTHENTICATION = 44, 51
"""The first is the protocol of all fragments here, whatever they carry: not each of them tells."""
_EXTENSIONS = (0, 43, _FRAGMENT, _AUTHENTICATION, 60, 135, 139, 140)
"""Of IPv6: options, routing, mobility, HIP, shim6 (RFC 7045, section 4)."""
_MOST_EXTENSIONS = 6
"""As deep as the `headers` slice of the capture filter goes."""
_VLAN_TAGS = (0x8100, 0x88A8)
_ETHERTYPE_AT, _MOST_TAGS = 12, 2
_MORE_OR_OFFSET, _IPV6_MORE_OR_OFFSET = 0x3FFF, 0xFFF9

_KEY4 = Struct("3s5x2sxB2x12s").unpack_from
"""From the EtherType on, IPv4: that and the first byte, fragment field, protocol, addresses and ports."""
_KEY6 = Struct("2s6xBx36s").unpack_from
"""IPv6: the EtherType, next header, addresses and ports."""
_KEY4_END, _KEY6_END = 38, 58
_PLAIN_IPV4, _PLAIN_IPV6 = b"\x08\x00\x45", b"\x86\xdd"
_U16 = Struct(">H").unpack_from


def flow_hash(frame: bytes | memoryview) -> int:
    """32 bits that both directions of the frame's conversation share; all that `headers` keeps of a frame is enough.

    TCP and UDP by addresses and ports, other IP and fragments by addresses, an ICMP error by the packet that it
    quotes, what is not IP by its two MAC addresses.
    """
    size = len(frame)
    value = None
    if size >= _KEY4_END and frame[13] == 0x00:
        value = _plain_ipv4(*_KEY4(frame, _ETHERTYPE_AT))
    elif size >= _KEY6_END and frame[13] == 0xDD:
        value = _plain_ipv6(*_KEY6(frame, _ETHERTYPE_AT))
    return _any(frame) if value is None else value


def source_port(value: int) -> int:
    """Which of SOURCE_PORTS sockets a flow leaves through."""
    return value >> _PORT_INDEX_BITS


def name_hash(name: str) -> int:
    """A hash for `pick` of what is no flow: an agent, which stays with its collector."""
    return int.from_bytes(name.encode(), "big") * _FACTORS[0] % _PRIME >> _TO_32_BITS


@lru_cache(_CHOICES)
def pick(value: int, destinations: tuple[str, ...]) -> str:
    """The destination of a flow's hash, of one at least, in any order: losing one moves its own flows alone."""
    return max(destinations, key=lambda destination: (_mix(value ^ _seed(destination)), destination))


@lru_cache(_DESTINATIONS)
def _seed(destination: str) -> int:
    return name_hash(destination)


def _mix(value: int) -> int:
    """A permutation of 32 bits, in which each bit of the result hangs on all (lowbias32 of C. Wellons)."""
    value ^= value >> 16
    value = value * 0x7FEB352D & 0xFFFFFFFF
    value ^= value >> 15
    value = value * 0x846CA68B & 0xFFFFFFFF
    return value ^ value >> 16


def _combine(one: bytes, other: bytes, protocol: int) -> int:
    """Of two ends, each an address and maybe a port."""
    if one > other:
        one, other = other, one
    first, second, third = _FACTORS
    low, high = int.from_bytes(one, "big"), int.from_bytes(other, "big")
    return (low * first + high * second + protocol * third) % _PRIME >> _TO_32_BITS


@lru_cache(_FLOWS)
def _plain_ipv4(start: bytes, fragment: bytes, protocol: int, ends: bytes) -> int | None:
    """TCP or UDP right behind an IPv4 header without options; None for what is not."""
    if start != _PLAIN_IPV4 or protocol not in _TCP_UDP or int.from_bytes(fragment, "big") & _MORE_OR_OFFSET:
        return None
    return _combine(ends[:4] + ends[8:10], ends[4:8] + ends[10:], protocol)


@lru_cache(_FLOWS)
def _plain_ipv6(start: bytes, protocol: int, ends: bytes) -> int | None:
    if start != _PLAIN_IPV6 or protocol not in _TCP_UDP:
        return None
    return _combine(ends[:16] + ends[32:34], ends[16:32] + ends[34:], protocol)


def _any(frame: bytes | memoryview) -> int:
    """The hash of any frame: by the headers as far as they can be followed."""
    at = _ETHERTYPE_AT
    try:
        ethertype = _U16(frame, at)[0]
        for _ in range(_MOST_TAGS):
            if ethertype in _VLAN_TAGS:
                at += 4
                ethertype = _U16(frame, at)[0]
        at += 2
        value = _NETWORKS[ethertype](frame, at) if ethertype in _NETWORKS else None
    except (IndexError, StructError):  # a header that the frame was cut in
        value = None
    return _combine(bytes(frame[:6]), bytes(frame[6:12]), 0) if value is None else value


def _ipv4(frame: bytes | memoryview, at: int, may_quote: bool = True) -> int | None:
    first, protocol = frame[at], frame[at + 9]
    end, stop = at + (first & 0x0F) * 4, at + 20
    if first >> 4 != 4 or end < stop or len(frame) < stop:
        return None
    source, destination = bytes(frame[at + 12 : at + 16]), bytes(frame[at + 16 : stop])
    if _U16(frame, at + 6)[0] & _MORE_OR_OFFSET:
        return _combine(source, destination, _FRAGMENT)
    if may_quote and protocol == _ICMP and frame[end] in _ICMP_ERRORS:
        return _ipv4(frame, end + _QUOTE_AT, may_quote=False)
    return _upper(frame, end, source, destination, protocol)


def _ipv6(frame: bytes | memoryview, at: int, may_quote: bool = True) -> int | None:
    end = at + 40
    if frame[at] >> 4 != 6 or len(frame) < end:
        return None
    protocol = frame[at + 6]
    source, destination = bytes(frame[at + 8 : at + 24]), bytes(frame[at + 24 : end])
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in _EXTENSIONS:
            break
        units, size = frame[end + 1], 8
        if protocol == _FRAGMENT and _U16(frame, end + 2)[0] & _IPV6_MORE_OR_OFFSET:
            return _combine(source, destination, _FRAGMENT)
        if protocol != _FRAGMENT:
            size = (units + 2) * 4 if protocol == _AUTHENTICATION else (units + 1) * 8
        protocol, end = frame[end], end + size
    if may_quote and protocol == _ICMPV6 and frame[end] < _ICMPV6_INFORMATION:
        return _ipv6(frame, end + _QUOTE_AT, may_quote=False)
    return _upper(frame, end, source, destination, protocol)


def _upper(frame: bytes | memoryview, end: int, source: bytes, destination: bytes, protocol: int) -> int:
    if protocol in _TCP_UDP and len(frame) >= end + 4:
        source += frame[end : end + 2]
        destination += frame[end + 2 : end + 4]
    return _combine(source, destination, protocol)


_NETWORKS = {0x0800: _ipv4, 0x86DD: _ipv6}
