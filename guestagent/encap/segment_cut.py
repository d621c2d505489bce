"""Cut one super-packet into the frames that the wire carried, as the kernel's GSO and a card's TSO do. Pure.

Of the headers a few fields differ between segments. Each is a *column*: its offset, its format, a value for each
segment. What stands between them is constant, so `map` over one compiled Struct writes all the headers without a
line of Python for each, and the payload is never copied: a frame is (header, a view of its payload).

    field                         value in segment n                                     source, net/ of Linux 6.18
    IPv4 total length             that of the segment                                    inet_gso_segment
    IPv4 identification           first + n, in the outer header too; see below          inet_gso_segment
    IPv6 payload length           that of the segment                                    ipv6_gso_segment
    TCP sequence number           first + n * gso_size                                   tcp_gso_segment
    TCP FIN, PSH                  in the last only                                       tcp_gso_segment
    TCP CWR                       in the first only; with AccECN in all                  tcp_gso_segment
    UDP length                    that of the segment                                    __udp_gso_segment
    checksums                     computed; an outer UDP one of zero stays zero          udp6_set_csum, gre_gso_segment

All else is that of the first segment: TCP options with their timestamp, window, urgent pointer, TTL, ECN bits of IP.

IPv4 identification: inet_gso_segment counts on from any first value, unless the packet was merged from segments of one
and the same (SKB_GSO_TCP_FIXEDID), which a virtio header does not tell. A TCP sender that does not number its packets
writes DF and 0 in each; a counter stands at 0 once in 65,536 packets. So a super-packet with DF and 0 gets 0 in all.
UDP is other: an unconnected socket's super-packet begins at 0 with DF, and the kernel then counts 0, 1, 2.

A slice: a segment has those of its bytes that were captured, at least its headers. Where bytes are missing, the
checksums over the payload stay as the super-packet had them.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import repeat
from struct import Struct
from typing import Any, NamedTuple

from guestagent.encap.checksum import MODULUS, residue, residues
from guestagent.encap.inner import TCP, UDP, Layers, Network, Tunnel

WireFrame = tuple[bytes | memoryview, bytes | memoryview, int]
"""A frame in two pieces to be sent one after the other, and the length that it had on the wire."""

MOST_SEGMENTS = 2048
"""64 KB at Linux's least MSS of 48 (tcp_min_snd_mss) are 1,365; a record that claims more is made up."""
MOST_IP_BYTES = 0xFFFF
"""What IPv4's total length can say, and IPv6's payload length nearly."""

_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_DONT_FRAGMENT = 0x40
_LEAST_TRANSPORT_BYTES = {TCP: 20, UDP: 8}
_SIZES = {"B": 1, "H": 2, "I": 4}
_TEMPLATES = 256
"""Header shapes remembered; a host sees a handful."""
_MAC_ADDRESSES_BYTES = 12
_HOP_BY_HOP = 0
_JUMBO_BYTES = 8
_JUMBO_PAYLOAD = b"\x00\xc2\x04"
"""RFC 2675: a hop-by-hop header of 8 bytes with one option, a length in 4 bytes. BIG TCP has it in memory only."""
_U16 = Struct(">H").unpack_from
_U32 = Struct(">I").unpack_from

Column = Iterable[int]
"""A field's value in each segment."""

_NETWORK_FIELDS = {4: ((2, "H"), (4, "H"), (10, "H")), 6: ((4, "H"),)}
_TRANSPORT_FIELDS = {TCP: ((4, "I"), (13, "B"), (16, "H")), UDP: ((4, "H"), (6, "H"))}
"""Offset in the header and struct's format of each field that changes: the functions below fill them in this order."""
_OUTER_LENGTH = (4, "H")
"""Of the UDP header of a tunnel."""


class Cut(NamedTuple):
    """The frames of a super-packet; of the first `whole` all bytes were captured, and their checksums are right."""

    frames: list[WireFrame]
    whole: int


class _Sizes(NamedTuple):
    """How a super-packet falls apart; bytes are of whole frames, without the tag."""

    segments: int
    gso_bytes: int
    """Payload of every segment but the last."""
    full_bytes: int
    """Length of every segment but the last."""
    last_bytes: int
    whole: int
    """Segments, from the first, of which all bytes are here."""

    def beyond(self, offset: int) -> list[int]:
        """Each segment's bytes from an offset to its end."""
        return [self.full_bytes - offset] * (self.segments - 1) + [self.last_bytes - offset]


def cut(
    frame: memoryview, original_bytes: int, layers: Layers, gso_bytes: int, *, tag: bytes = b"", keeps_cwr: bool = False
) -> Cut | None:
    """The segments of a frame with at most `gso_bytes` of payload each; None for what can't have been on a wire.

    `frame` may be shorter than `original_bytes`. `tag` goes behind the MAC addresses of each segment.
    """
    network = layers.network
    least_bytes = network.end + _LEAST_TRANSPORT_BYTES[network.protocol]
    if len(frame) < least_bytes or gso_bytes < 1:
        return None
    header_bytes = least_bytes if network.protocol == UDP else network.end + (frame[network.end + 12] >> 4) * 4
    payload_bytes = original_bytes - header_bytes
    segments = max(1, -(-payload_bytes // gso_bytes))
    if header_bytes < least_bytes or payload_bytes < 0 or segments > MOST_SEGMENTS:
        return None
    header, payload = bytes(frame[:header_bytes]), frame[header_bytes:]
    if network.version == 6 and header[network.at + 6] == _HOP_BY_HOP:
        header, layers, removed_bytes = _without_jumbo(header, layers)
        header_bytes -= removed_bytes
    full_bytes = header_bytes + min(gso_bytes, payload_bytes)
    if full_bytes - (layers.tunnel or layers).network.at > MOST_IP_BYTES:
        return None
    whole = segments if len(frame) == original_bytes else len(payload) // gso_bytes
    last_bytes = header_bytes + payload_bytes - gso_bytes * (segments - 1)
    sizes = _Sizes(segments, gso_bytes, full_bytes, last_bytes, whole)
    totals = residues(payload[: whole * gso_bytes], gso_bytes) if payload_bytes else [0] * whole
    headers = _headers(header, layers, _columns(header, layers, sizes, totals, keeps_cwr), tag)
    bodies = [payload[start : start + gso_bytes] for start in range(0, payload_bytes or 1, gso_bytes)]
    return Cut(list(zip(headers, bodies, sizes.beyond(-len(tag)), strict=True)), whole)


def _without_jumbo(header: bytes, layers: Layers) -> tuple[bytes, Layers, int]:
    """(header, layers, bytes removed) without the hop-by-hop header of BIG TCP (ipv6_hopopt_jumbo_remove)."""
    at = layers.network.at
    behind = at + 40
    if header[behind + 1 : behind + 4] != _JUMBO_PAYLOAD:
        return header, layers, 0
    following = header[behind : behind + 1]
    header = header[: at + 6] + following + header[at + 7 : behind] + header[behind + _JUMBO_BYTES :]
    return header, layers._replace(network=layers.network._replace(end=layers.network.end - _JUMBO_BYTES)), _JUMBO_BYTES


def _columns(header: bytes, layers: Layers, sizes: _Sizes, totals: list[int], keeps_cwr: bool) -> list[Column]:
    """All that changes, in the order of `_fields`. `totals` has the residue of each whole segment's payload."""
    tunnel, network = layers
    is_tcp = network.protocol == TCP
    columns: list[Column] = []
    if tunnel:
        columns += _network_columns(header, tunnel.network, sizes, is_tcp)
        columns += _tunnel_columns(header, tunnel, network, sizes)
    columns += _network_columns(header, network, sizes, is_tcp)
    if is_tcp:
        return columns + _tcp_columns(header, network, sizes, totals, keeps_cwr)
    return columns + _udp_columns(header, network, sizes, totals)


def _network_columns(header: bytes, network: Network, sizes: _Sizes, is_tcp: bool) -> list[Column]:
    """RFC 791, section 3.1; RFC 8200, section 3."""
    at = network.at
    if network.version == 6:
        return [sizes.beyond(at + 40)]
    lengths, first = sizes.beyond(at), _U16(header, at + 4)[0]
    has_no_number = is_tcp and first == 0 and header[at + 6] & _DONT_FRAGMENT
    ids = [0] * sizes.segments if has_no_number else _count_on(first, 1, sizes.segments, 0x10000)
    constant = residue(header[at : network.end]) - _U16(header, at + 2)[0] - first - _U16(header, at + 10)[0]
    checks = [-(constant + length + number) % MODULUS for length, number in zip(lengths, ids, strict=True)]
    return [lengths, ids, checks]


def _count_on(first: int, step: int, count: int, modulus: int) -> Sequence[int]:
    """first, first + step, ... as long as `count`; it wraps at the modulus."""
    numbers = range(first, first + step * count, step)
    return numbers if numbers[-1] < modulus else [number % modulus for number in numbers]


def _tcp_columns(header: bytes, network: Network, sizes: _Sizes, totals: list[int], keeps_cwr: bool) -> list[Column]:
    """RFC 9293, section 3.1."""
    at, count = network.end, sizes.segments
    sequence, flags, check = _U32(header, at + 4)[0], header[at + 13], _U16(header, at + 16)[0]
    sequences = _count_on(sequence, sizes.gso_bytes, count, 0x100000000)
    inside = flags & ~(_FIN | _PSH) if keeps_cwr else flags & ~(_FIN | _PSH | _CWR)
    all_flags = [inside] * count
    all_flags[0] |= flags & _CWR
    all_flags[-1] |= flags & (_FIN | _PSH)
    constant = residue(header[at:]) - sequence - flags - check + _pseudo(header, network)
    checks = [
        -(constant + number + flag + length + total) % MODULUS
        for number, flag, length, total in zip(sequences, all_flags, sizes.beyond(at), totals, strict=False)
    ]
    checks += [check] * (count - sizes.whole)
    return [sequences, all_flags, checks]


def _udp_columns(header: bytes, network: Network, sizes: _Sizes, totals: list[int]) -> list[Column]:
    """RFC 768; the length stands in the header and in the pseudo header. A sum of zero is sent as ones."""
    at = network.end
    lengths, check = sizes.beyond(at), _U16(header, at + 6)[0]
    constant = residue(header[at : at + 4]) + _pseudo(header, network)
    checks = [
        -(constant + 2 * length + total) % MODULUS or MODULUS for length, total in zip(lengths, totals, strict=False)
    ]
    checks += [check] * (sizes.segments - sizes.whole)
    return [lengths, checks]


def _tunnel_columns(header: bytes, tunnel: Tunnel, inner: Network, sizes: _Sizes) -> list[Column]:
    """The outer UDP length, and the checksum of outer UDP or GRE, for which the payload need not be read again.

    With right checksums inside, an IPv4 header sums up to zero, and the transport to what its pseudo header lacks
    (Documentation/networking/checksum-offloads.rst, "LCO"). Identification and sequence number don't show: the sum is
    one for all segments of a length.
    """
    at = tunnel.network.end
    columns: list[Column] = [sizes.beyond(at)] if tunnel.udp else []
    if not tunnel.check_at:
        return columns
    check = _U16(header, tunnel.check_at)[0]
    constant = residue(header[at : inner.at]) - check - _pseudo(header, inner)
    if tunnel.udp:
        constant += _pseudo(header, tunnel.network) - _U16(header, at + 4)[0]
    if inner.version == 6:
        constant += residue(header[inner.at : inner.end]) - _U16(header, inner.at + 4)[0]

    def complete(frame_bytes: int) -> int:
        total = constant - (frame_bytes - inner.end)
        if tunnel.udp:
            total += 2 * (frame_bytes - at)
        if inner.version == 6:
            total += frame_bytes - inner.at - 40
        return -total % MODULUS or (MODULUS if tunnel.udp else 0)

    checks = [complete(sizes.full_bytes)] * (sizes.segments - 1) + [complete(sizes.last_bytes)]
    checks[sizes.whole :] = [check] * (sizes.segments - sizes.whole)
    return [*columns, checks]


def _pseudo(header: bytes, network: Network) -> int:
    """Addresses and protocol (RFC 9293, section 3.1; RFC 8200, section 8.1); the length is the caller's to add."""
    first, last = (network.at + 12, network.at + 20) if network.version == 4 else (network.at + 8, network.at + 40)
    return residue(header[first:last]) + network.protocol


def _headers(header: bytes, layers: Layers, columns: list[Column], tag: bytes) -> Iterable[bytes]:
    """Write the columns, and the tag, into copies of a header."""
    if tag:
        header = header[:_MAC_ADDRESSES_BYTES] + tag + header[_MAC_ADDRESSES_BYTES:]
    template, places = _template(layers, len(header), len(tag))
    arguments: list[Iterable[Any]] = [repeat(piece) for piece in template.unpack(header)]
    for place, column in zip(places, columns, strict=True):
        arguments[place] = column
    return map(template.pack, *arguments)


@lru_cache(_TEMPLATES)
def _template(layers: Layers, header_bytes: int, tag_bytes: int) -> tuple[Struct, tuple[int, ...]]:
    """A header as changing fields with constant bytes in between, and which of its pieces are the fields."""
    shape, pieces, places, at = [">"], 0, [], 0
    for offset, code in _fields(layers):
        if gap := offset + tag_bytes - at:
            shape.append(f"{gap}s")
            pieces += 1
        shape.append(code)
        places.append(pieces)
        pieces += 1
        at = offset + tag_bytes + _SIZES[code]
    return Struct("".join([*shape, f"{header_bytes - at}s"])), tuple(places)


def _fields(layers: Layers) -> Iterator[tuple[int, str]]:
    """Offset and format of each field that changes, in order."""
    tunnel, network = layers
    if tunnel:
        yield from _shifted(_NETWORK_FIELDS[tunnel.network.version], tunnel.network.at)
        if tunnel.udp:
            yield from _shifted((_OUTER_LENGTH,), tunnel.network.end)
        if tunnel.check_at:
            yield tunnel.check_at, "H"
    yield from _shifted(_NETWORK_FIELDS[network.version], network.at)
    yield from _shifted(_TRANSPORT_FIELDS[network.protocol], network.end)


def _shifted(fields: tuple[tuple[int, str], ...], at: int) -> Iterator[tuple[int, str]]:
    return ((at + offset, code) for offset, code in fields)
