"""Super-packets as the kernel hands them over, and what must hold for the frames that they become."""

import struct
from collections.abc import Iterable, Sequence

from scapy.contrib.geneve import GENEVE  # noqa: F401 - scapy dissects what it knows
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6  # noqa: F401
from scapy.layers.l2 import GRE, Ether  # noqa: F401
from scapy.layers.vxlan import VXLAN  # noqa: F401
from scapy.packet import Packet
from scapy.utils import checksum as scapy_checksum

from guestagent.encap.segment import Virtio
from guestagent.encap.segment_cut import WireFrame
from tests import frames
from tests.frames import IPV4, IPV6, ethernet, ipv4, ipv6, udp

NEEDS_CSUM, TCPV4, TCPV6, UDP_L4, ECN = 1, 1, 4, 5, 0x80
GSO_TYPES = {(frames.TCP, 4): TCPV4, (frames.TCP, 6): TCPV6, (frames.UDP, 4): UDP_L4, (frames.UDP, 6): UDP_L4}
CHECKSUM_AT = {frames.TCP: 16, frames.UDP: 6}
NETWORK = {4: (frames.IPV4, frames.ipv4), 6: (frames.IPV6, frames.ipv6)}
VERSIONS = (4, 6)
NETWORK_BYTES = {4: 20, 6: 40}
STAMPS = bytes.fromhex("0101080a 11223344 55667788")
"""Two NOPs and a timestamp, as Linux sends them."""


def payload_of(size: int) -> bytes:
    """Bytes of which no two runs are alike."""
    return b"".join(struct.pack(">I", number) for number in range(size // 4 + 1))[:size]


def pseudo_sum(frame: bytes | bytearray, version: int, protocol: int, start: int) -> bytes:
    """What the kernel leaves in a transport's checksum field for the card: the folded sum of the pseudo header."""
    at = start - 8 if version == 4 else start - 32
    words = struct.unpack(f">{(start - at) // 2}H", frame[at:start])
    return ((sum(words) + protocol + len(frame) - start) % 0xFFFF).to_bytes(2, "big")


def with_header_sum(frame: bytearray, at: int) -> None:
    """Put the right checksum into the IPv4 header at `at`: a switch that filters drops what has none."""
    end = at + (frame[at] & 0x0F) * 4
    frame[at + 10 : at + 12] = bytes(2)
    frame[at + 10 : at + 12] = scapy_checksum(bytes(frame[at:end])).to_bytes(2, "big")


def plain(transport: int, version: int, upper: bytes, **network: object) -> bytes:
    """An Ethernet frame of an IP packet."""
    ethertype, make = NETWORK[version]
    return frames.ethernet(ethertype, make(transport, upper, **network))


def offload(transport: int, version: int, gso_bytes: int, start: int, more: int = 0) -> Virtio:
    """The virtio header of a super-packet with its checksum left to the card."""
    return NEEDS_CSUM, GSO_TYPES[transport, version] | more, 0, gso_bytes, start, CHECKSUM_AT[transport]


def whole(wire: WireFrame) -> bytes:
    """The bytes of a frame that comes in two pieces."""
    return bytes(wire[0]) + bytes(wire[1])


def by_scapy(frame: bytes) -> bytes:
    """The frame as scapy writes it: with lengths and checksums of its own, except UDP checksums of zero."""
    packet = Ether(frame)
    layer: Packet = packet
    while layer:
        for field in ("len", "plen", "chksum"):
            if field in layer.fields and not (isinstance(layer, UDP) and field == "chksum" and layer.chksum == 0):
                delattr(layer, field)
        layer = layer.payload
    return bytes(packet)


def assert_scapy_agrees(wires: Iterable[WireFrame]) -> None:
    """Every length and checksum of every frame is the one that scapy computes."""
    for wire in wires:
        frame = whole(wire)
        assert by_scapy(frame) == frame
        assert len(frame) == wire[2]


def innermost(wires: Sequence[WireFrame], kind: type[Packet] = TCP) -> list[Packet]:
    """The last layer of a kind in each frame."""
    found = []
    for wire in wires:
        layer = last = Ether(whole(wire))
        while layer:
            last = layer if isinstance(layer, kind) else last
            layer = layer.payload
        found.append(last)
    return found


def start_of(version: int) -> int:
    """Where the transport header begins in a plain frame."""
    return 14 + NETWORK_BYTES[version]


def by_layer(frame: bytes) -> bytes:
    """With scapy's checksums."""
    packet = Ether(frame)
    for layer in (IP, TCP, UDP):
        if layer in packet:
            del packet[layer].chksum
    return bytes(packet)


def vxlan(inner: bytes) -> bytes:
    """Behind a VXLAN header."""
    return struct.pack(">II", 0x08000000, 7 << 8) + inner


def geneve(inner: bytes, options: bytes = bytes.fromhex("01020001aabbccdd")) -> bytes:
    """Behind a GENEVE header with an option."""
    return struct.pack(">BBHI", len(options) // 4, 0, 0x6558, 7 << 8) + options + inner


def gre(inner: bytes, ethertype: int = 0x6558, flags: int = 0x2000) -> bytes:
    """Behind a GRE header, by default with a key."""
    check = bytes(4) if flags & 0x8000 else b""
    return struct.pack(">HH", flags, ethertype) + check + (bytes(3) + b"\x07" if flags & 0x2000 else b"") + inner


def tunnelled(name: str, outer: int, inner: int, upper: bytes, check: int = 0) -> tuple[bytes, int]:
    """(frame, offset of the transport inside); `check` fills the outer UDP checksum."""
    packet = (ipv4 if inner == 4 else ipv6)(frames.TCP, upper)
    inner_frame = ethernet(IPV4 if inner == 4 else IPV6, packet)
    shells = {
        "vxlan": (frames.UDP, udp(vxlan(inner_frame))),
        "linux vxlan": (frames.UDP, udp(vxlan(inner_frame), destination=8472)),
        "vxlan, port of its own": (frames.UDP, udp(vxlan(inner_frame), destination=7777)),
        "geneve": (frames.UDP, udp(geneve(inner_frame), destination=6081)),
        "gre": (frames.GRE, gre(inner_frame)),
        "gre, checksum": (frames.GRE, gre(inner_frame, flags=0xA000)),
        "gre, bare": (frames.GRE, gre(packet, IPV4 if inner == 4 else IPV6, 0)),
        "ip in ip": (4 if inner == 4 else 41, packet),
    }
    protocol, body = shells[name]
    frame = bytearray(plain(protocol, outer, body))
    if protocol == frames.UDP and check:
        frame[start_of(outer) + 6 : start_of(outer) + 8] = check.to_bytes(2, "big")
    return bytes(frame), len(frame) - len(upper)


TUNNELS = ("vxlan", "linux vxlan", "vxlan, port of its own", "geneve", "gre", "gre, checksum", "gre, bare", "ip in ip")
