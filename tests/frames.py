"""Ethernet frames built by hand, and what the capture filter must do with each: for interpreter and kernel alike."""

import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from itertools import pairwise
from typing import NamedTuple

from guestagent.model import Exclusion

TCP, UDP, ICMP, GRE, ESP, AH, ICMPV6, SCTP = 6, 17, 1, 47, 50, 51, 58, 132
HOP, ROUTING, FRAGMENT, NO_NEXT, DESTINATION, MOBILITY, HIP, SHIM6 = 0, 43, 44, 59, 60, 135, 139, 140
IPV4, ARP, C_TAG, IPV6, MPLS, S_TAG, LLDP = 0x0800, 0x0806, 0x8100, 0x86DD, 0x8847, 0x88A8, 0x88CC

PAYLOAD = b"\xee" * 100
MORE_FRAGMENTS = 0x2000
HERE4, PEER4, HERE6, PEER6 = "10.0.0.1", "10.0.0.9", "fd00::1", "fd00::9"


def ethernet(kind: int, body: bytes, tags: Sequence[int] = ()) -> bytes:
    """A frame with in-band VLAN tags, outermost first."""
    kinds = [*tags, kind]
    chain = b"".join(struct.pack(">HH", 100, following) for following in kinds[1:])
    return bytes(6) + b"\x02" + bytes(5) + struct.pack(">H", kinds[0]) + chain + body


def ipv4(
    protocol: int,
    body: bytes,
    *,
    options: bytes = b"",
    fragment: int = 0,
    first_byte: int | None = None,
    source: str = HERE4,
    destination: str = PEER4,
) -> bytes:
    """An IPv4 packet; `fragment` is the 16-bit field of flags and offset."""
    first_byte = 0x45 + len(options) // 4 if first_byte is None else first_byte
    length = 20 + len(options) + len(body)
    header = struct.pack(">BBHHHBBH", first_byte, 0, length, 7, fragment, 64, protocol, 0)
    return header + ip_address(source).packed + ip_address(destination).packed + options + body


def ipv6(following: int, body: bytes, *, version: int = 6, source: str = HERE6, destination: str = PEER6) -> bytes:
    """An IPv6 packet."""
    header = struct.pack(">IHBB", version << 28, len(body), following, 64)
    return header + ip_address(source).packed + ip_address(destination).packed + body


def extension(kind: int, following: int, size: int = 8, fragment: int = 0) -> bytes:
    """An IPv6 extension header of `size` bytes."""
    if kind == FRAGMENT:
        return struct.pack(">BBHI", following, 0, fragment, 9)
    units = size // 4 - 2 if kind == AH else size // 8 - 1
    return bytes([following, units]) + bytes(size - 2)


def chained(kinds: Iterable[int], upper: int, body: bytes, size: int = 8) -> bytes:
    """An IPv6 packet with a chain of extension headers."""
    row = [*kinds, upper]
    return ipv6(row[0], b"".join(extension(kind, following, size) for kind, following in pairwise(row)) + body)


def tcp(
    body: bytes = PAYLOAD,
    *,
    options: bytes = b"",
    offset: int | None = None,
    source: int = 40000,
    destination: int = 4795,
    flags: int = 0x10,
) -> bytes:
    """A TCP segment; `offset` is a data offset that lies."""
    words = 5 + len(options) // 4 if offset is None else offset
    return struct.pack(">HHIIBBHHH", source, destination, 1, 2, words << 4, flags, 512, 0, 0) + options + body


def udp(body: bytes = PAYLOAD, *, source: int = 50000, destination: int = 4789) -> bytes:
    """A UDP datagram."""
    return struct.pack(">HHHH", source, destination, 8 + len(body), 0) + body


def icmp(kind: int, body: bytes = PAYLOAD) -> bytes:
    """An ICMP or ICMPv6 message."""
    return struct.pack(">BBHI", kind, 0, 0, 0) + body


class Case(NamedTuple):
    """A frame and the bytes of it that `headers` keeps."""

    name: str
    frame: bytes
    kept: int


OPTIONS8, OPTIONS40 = b"\x01" * 8, b"\x01" * 40
SIX_EXTENSIONS = (HOP, DESTINATION, ROUTING, FRAGMENT, AH, DESTINATION)
_LATER_FRAGMENT = extension(FRAGMENT, TCP, fragment=9) + tcp()
VXLAN = bytes(8) + ethernet(IPV4, ipv4(TCP, tcp()))

_PACKETS = (
    # name, EtherType, packet, bytes of it to keep
    ("TCP", IPV4, ipv4(TCP, tcp()), 40),
    ("TCP options", IPV4, ipv4(TCP, tcp(options=OPTIONS40)), 80),
    ("TCP behind IPv4 options", IPV4, ipv4(TCP, tcp(options=OPTIONS8), options=OPTIONS40), 88),
    ("TCP with data offset 0", IPV4, ipv4(TCP, tcp(offset=0)), 40),
    ("TCP with data offset 15, no such bytes", IPV4, ipv4(TCP, tcp(b"", offset=15)), 40),
    ("UDP", IPV4, ipv4(UDP, udp()), 28),
    ("UDP behind IPv4 options", IPV4, ipv4(UDP, udp(), options=OPTIONS8), 36),
    ("VXLAN stops at the outer UDP", IPV4, ipv4(UDP, udp(VXLAN)), 28),
    ("first fragment", IPV4, ipv4(TCP, tcp(), fragment=MORE_FRAGMENTS), 40),
    ("later fragment", IPV4, ipv4(TCP, tcp(), fragment=MORE_FRAGMENTS | 100), 20),
    ("last fragment behind options", IPV4, ipv4(UDP, udp(), fragment=1, options=OPTIONS8), 28),
    ("echo request", IPV4, ipv4(ICMP, icmp(8)), 28),
    *((f"ICMP error {kind}", IPV4, ipv4(ICMP, icmp(kind, ipv4(UDP, udp()))), 56) for kind in (3, 4, 5, 11, 12)),
    ("ICMP error quotes options", IPV4, ipv4(ICMP, icmp(3, ipv4(UDP, udp(), options=OPTIONS8)), options=OPTIONS8), 72),
    ("ICMPv6 in IPv4 is any protocol", IPV4, ipv4(ICMPV6, icmp(128)), 20),
    ("GRE", IPV4, ipv4(GRE, PAYLOAD), 20),
    ("ESP behind IPv4 options", IPV4, ipv4(ESP, PAYLOAD, options=OPTIONS8), 28),
    ("SCTP", IPV4, ipv4(SCTP, PAYLOAD), 20),
    ("TCP over IPv6", IPV6, ipv6(TCP, tcp(options=OPTIONS8)), 68),
    ("UDP over IPv6", IPV6, ipv6(UDP, udp()), 48),
    ("ICMPv6 echo", IPV6, ipv6(ICMPV6, icmp(128)), 48),
    ("ICMPv6 neighbour solicitation", IPV6, ipv6(ICMPV6, icmp(135)), 48),
    ("ICMPv6 error", IPV6, ipv6(ICMPV6, icmp(2, ipv6(TCP, tcp()))), 96),
    ("ICMPv6 error behind a header", IPV6, chained([HOP], ICMPV6, icmp(127, ipv6(TCP, tcp()))), 104),
    ("ICMP in IPv6 is any protocol", IPV6, ipv6(ICMP, icmp(3)), 40),
    ("ESP over IPv6", IPV6, ipv6(ESP, PAYLOAD), 40),
    ("no next header", IPV6, ipv6(NO_NEXT, PAYLOAD), 40),
    *(
        (f"extension header {kind}", IPV6, chained([kind], TCP, tcp()), 68)
        for kind in (HOP, ROUTING, FRAGMENT, DESTINATION, MOBILITY, HIP, SHIM6, AH)
    ),
    ("options of 24 bytes", IPV6, chained([HOP], UDP, udp(), size=24), 72),
    ("authentication header of 24 bytes", IPV6, chained([AH], TCP, tcp(), size=24), 84),
    ("ESP behind options", IPV6, chained([HOP, DESTINATION], ESP, PAYLOAD), 56),
    ("first IPv6 fragment", IPV6, ipv6(FRAGMENT, extension(FRAGMENT, UDP, fragment=1) + udp()), 56),
    ("later IPv6 fragment", IPV6, ipv6(FRAGMENT, _LATER_FRAGMENT), 48),
    ("later fragment behind options", IPV6, ipv6(HOP, bytes([FRAGMENT, 0]) + bytes(6) + _LATER_FRAGMENT), 56),
    ("six extension headers", IPV6, chained(SIX_EXTENSIONS, TCP, tcp()), 108),
    ("six of 16 bytes", IPV6, chained([DESTINATION] * 6, TCP, tcp(), size=16), 156),
    ("seven extension headers", IPV6, chained([*SIX_EXTENSIONS, DESTINATION], TCP, tcp()), 88),
    ("extension header beyond the frame", IPV6, ipv6(HOP, bytes([TCP, 255]) + bytes(200)), 242),
)  # fmt: skip

_OTHERS = (
    ("ARP", ARP, bytes(46)),
    ("MPLS", MPLS, bytes(4) + ipv4(TCP, tcp())),
    ("LLDP", LLDP, bytes(300)),
    ("length field (LLC)", 100, bytes(100)),
    ("IPv4 with IHL 4", IPV4, ipv4(TCP, tcp(), first_byte=0x44)),
    ("version 5 as IPv4", IPV4, ipv4(TCP, tcp(), first_byte=0x55)),
    ("version 3 as IPv4", IPV4, ipv4(TCP, tcp(), first_byte=0x35)),
    ("version 4 as IPv6", IPV6, ipv6(TCP, tcp(), version=4)),
)

TAGGINGS = ((), (C_TAG,), (S_TAG,), (C_TAG, C_TAG), (S_TAG, S_TAG))


def _tagged(name: str, tags: Sequence[int]) -> str:
    return f"{name}, tags {'+'.join(map(hex, tags))}" if tags else name


HEADERS_CASES = (
    *(
        Case(_tagged(name, tags), ethernet(kind, packet, tags), 14 + 4 * len(tags) + keep)
        for name, kind, packet, keep in _PACKETS
        for tags in TAGGINGS
    ),
    *(
        Case(_tagged(name, tags), frame, min(64, len(frame)))
        for name, kind, body in _OTHERS
        for tags in TAGGINGS
        for frame in [ethernet(kind, body, tags)]
    ),
    Case("three tags", ethernet(IPV4, ipv4(TCP, tcp()), (S_TAG, C_TAG, C_TAG)), 64),
)

CONNECTED = Exclusion(TCP, PEER4, 4795, 40000)
EXCLUSIONS = (
    CONNECTED,
    Exclusion(TCP, PEER6, 4795, 40000),
    Exclusion(UDP, PEER4, 4789, 50000),
    Exclusion(TCP, "10.0.0.10", 4795, 0),
    Exclusion(GRE, "10.0.0.11", 0, 0),
    Exclusion(TCP, "::ffff:10.0.0.12", 4795, 40000),
    Exclusion(UDP, "10.0.0.13", 4789, 61440, 61503),
    Exclusion(UDP, "10.0.0.13", 4789, 33000, 33000),
    Exclusion(UDP, "fd00::13", 6081, 61440, 61503),
    Exclusion(GRE, "fd00::11", 0, 0),
)


class OwnCase(NamedTuple):
    """A frame and whether EXCLUSIONS reject it."""

    name: str
    frame: bytes
    ours: bool


_REPLY = tcp(source=4795, destination=40000)
_TUNNEL_PACKETS = (
    *(
        (f"tunnel over IPv4 from port {port}", IPV4, ipv4(UDP, udp(source=port), destination="10.0.0.13"), ours)
        for port, ours in ((61439, False), (61440, True), (61503, True), (61504, False), (33000, True), (33001, False))
    ),
    *(
        (
            f"tunnel over IPv6 from port {port}",
            IPV6,
            ipv6(UDP, udp(source=port, destination=6081), destination="fd00::13"),
            61440 <= port <= 61503,
        )
        for port in (61439, 61440, 61503, 61504)
    ),
    ("tunnel of the tap there", IPV4, ipv4(UDP, udp(source=61450), source="10.0.0.13"), True),
    ("tunnel from elsewhere there", IPV4, ipv4(UDP, udp(source=50000), source="10.0.0.13", destination=HERE4), False),
    ("tunnel to another host", IPV4, ipv4(UDP, udp(source=61450)), False),
    ("tunnel of another kind", IPV4, ipv4(UDP, udp(source=61450, destination=6081), destination="10.0.0.13"), False),
    ("answer out of a tunnel", IPV4, ipv4(UDP, udp(source=4789, destination=61450), source="10.0.0.13"), False),
    ("GRE over IPv6", IPV6, ipv6(GRE, PAYLOAD, destination="fd00::11"), True),
    ("GRE over IPv6, back", IPV6, ipv6(GRE, PAYLOAD, source="fd00::11"), True),
    ("GRE over IPv6, another host", IPV6, ipv6(GRE, PAYLOAD, destination="fd00::12"), False),
)
_OWN_PACKETS = (
    ("to the collector", IPV4, ipv4(TCP, tcp()), True),
    ("from the collector", IPV4, ipv4(TCP, _REPLY, source=PEER4, destination=HERE4), True),
    ("behind IPv4 options", IPV4, ipv4(TCP, tcp(), options=OPTIONS40), True),
    ("first fragment", IPV4, ipv4(TCP, tcp(), fragment=MORE_FRAGMENTS), True),
    ("over IPv6", IPV6, ipv6(TCP, tcp()), True),
    ("over IPv6, back", IPV6, ipv6(TCP, _REPLY, source=PEER6, destination=HERE6), True),
    ("VXLAN", IPV4, ipv4(UDP, udp()), True),
    ("any local port", IPV4, ipv4(TCP, tcp(source=1), destination="10.0.0.10"), True),
    ("any local port, back", IPV4, ipv4(TCP, tcp(source=4795, destination=9), source="10.0.0.10"), True),
    ("any local port, ports of the connected one", IPV4, ipv4(TCP, tcp(), destination="10.0.0.10"), True),
    ("GRE", IPV4, ipv4(GRE, PAYLOAD, destination="10.0.0.11"), True),
    ("GRE, back", IPV4, ipv4(GRE, PAYLOAD, source="10.0.0.11"), True),
    ("IPv4-mapped address", IPV4, ipv4(TCP, tcp(), destination="10.0.0.12"), True),
    *_TUNNEL_PACKETS,
    ("our ports, another host", IPV4, ipv4(TCP, tcp(), destination="10.0.0.8"), False),
    ("our ports, another host over IPv6", IPV6, ipv6(TCP, tcp(), destination="fd00::8"), False),
    ("another local port", IPV4, ipv4(TCP, tcp(source=40001)), False),
    ("another port of the collector", IPV4, ipv4(TCP, tcp(destination=22)), False),
    ("ports swapped", IPV4, ipv4(TCP, _REPLY), False),
    ("to port 4795 here, from the collector's host", IPV4, ipv4(TCP, tcp(), source=PEER4, destination=HERE4), False),
    ("from port 4795 of ours", IPV4, ipv4(TCP, tcp(source=4795, destination=1), destination="10.0.0.10"), False),
    ("UDP with the numbers of TCP", IPV4, ipv4(UDP, udp(source=40000, destination=4795)), False),
    ("later fragment that looks like ours", IPV4, ipv4(TCP, tcp(), fragment=100), False),
    ("GRE, another host", IPV4, ipv4(GRE, PAYLOAD), False),
    ("TCP to the GRE peer", IPV4, ipv4(TCP, tcp(), destination="10.0.0.11"), False),
    ("behind an IPv6 extension header", IPV6, chained([HOP], TCP, tcp()), False),
    ("IHL 4", IPV4, ipv4(TCP, tcp(), first_byte=0x44), False),
    ("not IP", ARP, ipv4(TCP, tcp()), False),
)

OWN_CASES = (
    *(
        OwnCase(_tagged(name, tags), ethernet(kind, packet, tags), ours)
        for name, kind, packet, ours in _OWN_PACKETS
        for tags in TAGGINGS
    ),
    OwnCase("three tags", ethernet(IPV4, ipv4(TCP, tcp()), (S_TAG, C_TAG, C_TAG)), False),
    *(OwnCase(f"cut to {n} bytes", ethernet(IPV4, ipv4(TCP, tcp()))[:n], n >= 14 + 20 + 4) for n in range(54)),
    *(OwnCase(f"IPv6 cut to {n} bytes", ethernet(IPV6, ipv6(TCP, tcp()))[:n], n >= 14 + 40 + 4) for n in range(74)),
)

# Flows. All frames of a row belong to one flow, in whichever direction; frames of two rows never do.


class Flow(NamedTuple):
    """Frames that have one hash."""

    name: str
    frames: tuple[bytes, ...]


_BACK4 = {"source": PEER4, "destination": HERE4}
_BACK6 = {"source": PEER6, "destination": HERE6}
_UDP_REPLY = udp(source=4789, destination=50000)

_FLOWS = (
    # name, EtherType, packets
    ("TCP", IPV4, (
        ipv4(TCP, tcp()),
        ipv4(TCP, tcp(options=OPTIONS40), options=OPTIONS8),
        ipv4(TCP, tcp(b"", offset=0)),
        ipv4(TCP, tcp(flags=0x02), fragment=0x4000),
        ipv4(TCP, _REPLY, **_BACK4),
        ipv4(TCP, tcp()[:14]),
    )),
    ("TCP, another port", IPV4, (ipv4(TCP, tcp(source=40001)),)),
    ("TCP, ports swapped", IPV4, (ipv4(TCP, _REPLY),)),
    ("TCP, another host", IPV4, (ipv4(TCP, tcp(), destination="10.0.0.8"),)),
    ("UDP", IPV4, (
        ipv4(UDP, udp()), ipv4(UDP, udp(VXLAN), options=OPTIONS40), ipv4(UDP, _UDP_REPLY, **_BACK4),
        ipv4(UDP, udp()[:4]),
    )),
    ("UDP with the numbers of TCP", IPV4, (ipv4(UDP, udp(source=40000, destination=4795)),)),
    ("fragments", IPV4, (
        ipv4(TCP, tcp(), fragment=MORE_FRAGMENTS),
        ipv4(TCP, tcp(), fragment=MORE_FRAGMENTS | 100),
        ipv4(UDP, udp(), fragment=1, options=OPTIONS8),
        ipv4(UDP, b"", fragment=100),
        ipv4(ICMP, icmp(3), fragment=100),
        ipv4(ICMP, icmp(8), fragment=MORE_FRAGMENTS),
        ipv4(UDP, _UDP_REPLY, fragment=MORE_FRAGMENTS, **_BACK4),
    )),
    ("ping", IPV4, (ipv4(ICMP, icmp(8)), ipv4(ICMP, icmp(0), **_BACK4), ipv4(ICMP, icmp(13), options=OPTIONS8))),
    ("GRE", IPV4, (ipv4(GRE, PAYLOAD), ipv4(GRE, b"", **_BACK4))),
    ("ESP", IPV4, (ipv4(ESP, PAYLOAD), ipv4(ESP, PAYLOAD, options=OPTIONS8))),
    ("SCTP", IPV4, (ipv4(SCTP, tcp()), ipv4(SCTP, _UDP_REPLY))),
    ("ICMPv6 in IPv4 is any protocol", IPV4, (ipv4(ICMPV6, icmp(1)),)),
    ("TCP over IPv6", IPV6, (
        ipv6(TCP, tcp()),
        ipv6(TCP, _REPLY, **_BACK6),
        *(chained([kind], TCP, tcp()) for kind in (HOP, ROUTING, DESTINATION, MOBILITY, HIP, SHIM6, AH, FRAGMENT)),
        chained(SIX_EXTENSIONS, TCP, tcp(options=OPTIONS8)),
        chained([DESTINATION] * 6, TCP, tcp(), size=16),
        chained([AH, AH], TCP, tcp(), size=24),
    )),
    ("TCP over IPv6, another host", IPV6, (ipv6(TCP, tcp(), destination="fd00::8"),)),
    ("TCP over IPv6, another network", IPV6, (ipv6(TCP, tcp(), destination="fd00:0:0:1::9"),)),
    ("TCP over IPv6, halves swapped", IPV6, (ipv6(TCP, tcp(), destination="0:0:0:9:fd00::"),)),
    ("UDP over IPv6", IPV6, (ipv6(UDP, udp()), ipv6(UDP, _UDP_REPLY, **_BACK6))),
    ("IPv6 fragments", IPV6, (
        ipv6(FRAGMENT, extension(FRAGMENT, UDP, fragment=1) + udp()),
        ipv6(FRAGMENT, extension(FRAGMENT, ICMPV6, fragment=1) + icmp(128)),
        ipv6(FRAGMENT, extension(FRAGMENT, DESTINATION, fragment=1) + extension(DESTINATION, TCP) + tcp()),
        ipv6(FRAGMENT, _LATER_FRAGMENT),
        ipv6(FRAGMENT, _LATER_FRAGMENT, **_BACK6),
        ipv6(HOP, bytes([FRAGMENT, 0]) + bytes(6) + _LATER_FRAGMENT),
    )),
    ("ICMPv6", IPV6, (ipv6(ICMPV6, icmp(128)), ipv6(ICMPV6, icmp(129), **_BACK6), chained([HOP], ICMPV6, icmp(143)))),
    ("ESP over IPv6", IPV6, (ipv6(ESP, PAYLOAD), chained([HOP, DESTINATION], ESP, PAYLOAD))),
    ("no next header", IPV6, (ipv6(NO_NEXT, b""),)),
    ("ICMP in IPv6 is any protocol", IPV6, (ipv6(ICMP, icmp(3)),)),
    ("seven extension headers", IPV6, (chained([*SIX_EXTENSIONS, DESTINATION], TCP, tcp()),)),
)  # fmt: skip

FLOWS = tuple(
    Flow(name, tuple(ethernet(kind, packet, tags) for packet in packets for tags in TAGGINGS))
    for name, kind, packets in _FLOWS
)

_FLOWLESS = (
    *((name, kind, packet) for name, kind, packet, _ in _PACKETS if "error" in name),
    *_OTHERS,
    ("ICMP error with nothing behind", IPV4, ipv4(ICMP, b"\3")),
    ("first fragment of an ICMP error", IPV4, ipv4(ICMP, icmp(3), fragment=MORE_FRAGMENTS)),
    ("ICMP without a type", IPV4, ipv4(ICMP, b"")),
    ("ICMPv6 without a type", IPV6, chained([HOP], ICMPV6, b"")),
    ("TCP without flags", IPV4, ipv4(TCP, tcp()[:13])),
    ("UDP without ports", IPV4, ipv4(UDP, udp()[:3])),
    ("TCP options beyond the frame", IPV4, ipv4(TCP, b"", first_byte=0x4F)),
    ("extension header beyond the frame", IPV6, ipv6(HOP, bytes([TCP, 255]) + bytes(200))),
    ("extension header cut", IPV6, ipv6(HOP, bytes([TCP, 0]) + bytes(5))),
)
FLOWLESS = (
    *(
        Flow(_tagged(name, tags), (ethernet(kind, packet, tags),))
        for name, kind, packet in _FLOWLESS
        for tags in TAGGINGS
    ),
    Flow("three tags", (ethernet(IPV4, ipv4(TCP, tcp()), (S_TAG, C_TAG, C_TAG)),)),
    *(Flow(f"cut to {n} bytes", (ethernet(IPV4, ipv4(TCP, tcp()))[:n],)) for n in range(14 + 20 + 14)),
    *(Flow(f"IPv6 cut to {n} bytes", (ethernet(IPV6, ipv6(UDP, udp()))[:n],)) for n in range(14 + 40 + 4)),
)
"""Frames that no sample leaves out and that are never heavy."""

KNOWN_FRAMES = (
    *(case.frame for case in HEADERS_CASES),
    *(case.frame for case in OWN_CASES),
    *(frame for flow in (*FLOWS, *FLOWLESS) for frame in flow.frames),
)


def hostile_frames(seed: int, count: int = 4000) -> Iterator[bytes]:
    """Frames of the tables with changed bytes and cut anywhere, and pure noise."""
    rng = random.Random(seed)
    values = (0, 6, 17, 44, 51, 58, 60, 255)
    for _ in range(count):
        frame = bytearray(rng.choice([rng.choice(KNOWN_FRAMES), rng.randbytes(rng.randrange(120))]))
        for _ in range(rng.randrange(5)):
            if frame:
                frame[rng.randrange(min(len(frame), 140))] = rng.choice([*values, rng.randrange(256)])
        yield bytes(frame[: rng.choice([len(frame), rng.randrange(len(frame) + 1)])])
