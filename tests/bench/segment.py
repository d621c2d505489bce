"""What a super-packet costs on its way to wire size, and how to send it: `python -m tests.bench.segment`; seconds.

Prints only. The last table needs root: it sends to a host in a network namespace, through a veth with its offloads on.
"""

import os
import socket
import struct
import sys
import time
from collections.abc import Callable

from guestagent.encap.checksum import internet_checksum, residue, residues
from guestagent.encap.segment import Segmenter, Virtio
from guestagent.lab.hosts import Lab
from guestagent.lab.packets import SEGMENTS_PER_SEND, UDP_MAX_PAYLOAD_BYTES, UDP_SEGMENT
from tests.frames import IPV4, IPV6, OPTIONS40, TCP, UDP, ethernet, ipv4, ipv6, tcp, udp

GSO_BYTES = 1448
TIMES = 300
SEND_SECONDS = 1.0
ROUNDS = 5
NOBODY = "10.9.0.99"
VXLAN_HEADER = struct.pack(">II", 0x08000000, 7 << 8)
STAMPS = OPTIONS40[:12]

Packet = tuple[bytes, Virtio]


def super_packet(payload_bytes: int = 45 * GSO_BYTES) -> Packet:
    """A TCP super-packet over IPv4 as the kernel hands it over."""
    frame = ethernet(IPV4, ipv4(TCP, tcp(os.urandom(payload_bytes), options=STAMPS)))
    return frame, (1, 1, 66, GSO_BYTES, 34, 16)


def kinds() -> dict[str, Packet]:
    """What is cut: the usual kinds, a small one, one inside VXLAN with outer checksum."""
    payload = os.urandom(45 * GSO_BYTES)
    overlay = os.urandom(43 * 1398)
    inner = ethernet(IPV4, ipv4(TCP, tcp(overlay, options=STAMPS)))
    outer = bytearray(ethernet(IPV4, ipv4(UDP, udp(VXLAN_HEADER + inner, destination=4789))))
    outer[40:42] = b"\x12\x34"
    return {
        "TCP, IPv4, 45 segments": super_packet(),
        "TCP, IPv4, 2 segments": super_packet(2 * GSO_BYTES),
        "TCP, IPv6, 45 segments": (
            ethernet(IPV6, ipv6(TCP, tcp(payload, options=STAMPS))),
            (1, 4, 0, 1448, 54, 16),
        ),
        "UDP, IPv4, 54 segments": (ethernet(IPV4, ipv4(UDP, udp(payload[: 54 * 1200]))), (1, 5, 0, 1200, 34, 6)),
        "TCP in VXLAN, 43 segments": (bytes(outer), (1, 1, 0, 1398, 84, 16)),
        "no offload": (super_packet(GSO_BYTES)[0], (0, 0, 0, 0, 0, 0)),
        "partial checksum, 1,514 bytes": (super_packet(GSO_BYTES)[0], (1, 0, 0, 0, 34, 16)),
    }


def nanoseconds(function: Callable[[], object]) -> int:
    """The median of many calls."""
    readings = []
    for _ in range(TIMES):
        start = time.perf_counter_ns()
        function()
        readings.append(time.perf_counter_ns() - start)
    return sorted(readings)[TIMES // 2]


def sums() -> dict[str, Callable[[memoryview], object]]:
    """Ways to sum 16-bit words."""
    short, long = struct.Struct(f">{GSO_BYTES // 2}H"), struct.Struct(f"={GSO_BYTES // 8}Q")
    return {
        "sum(unpack 16-bit)": lambda one: sum(short.unpack(one)) % 0xFFFF,
        "sum(unpack 64-bit)": lambda one: sum(long.unpack(one)) % 0xFFFF,
        "sum(memoryview.cast 32-bit)": lambda one: sum(one.cast("I")) % 0xFFFF,
        "int.from_bytes big % 65535": lambda one: int.from_bytes(one, "big") % 0xFFFF,
        "int.from_bytes little % 65535": residue,
    }


def measure_sums() -> None:
    """One segment each, and `residues` of a whole payload."""
    payload = memoryview(os.urandom(45 * GSO_BYTES))
    for name, function in sums().items():
        print(f"{name:40s} {nanoseconds(lambda f=function: f(payload[:GSO_BYTES])):7,d} ns per segment")
    print(f"{'residues':40s} {nanoseconds(lambda: residues(payload, GSO_BYTES)) // 45:7,d} ns per segment")


def measure_cuts() -> None:
    """Every kind, per frame that comes out."""
    for name, (frame, virtio) in kinds().items():
        segmenter, view = Segmenter(), memoryview(frame)
        count = len(segmenter.frames(view, virtio, len(frame)))
        assert not segmenter.not_understood, name
        took = nanoseconds(lambda v=view, h=virtio, s=segmenter: s.frames(v, h, len(v)))
        print(f"{name:40s} {took / 1000:7.1f} µs, {took // count:6,d} ns per frame")


Sender = Callable[[socket.socket, memoryview, Virtio, Segmenter], None]


def one_by_one(udp_socket: socket.socket, frame: memoryview, virtio: Virtio, segmenter: Segmenter) -> None:
    """A plain loop of sendto."""
    for head, body, _ in segmenter.frames(frame, virtio, len(frame)):
        udp_socket.send(b"".join((VXLAN_HEADER, head, body)))


def plainly(udp_socket: socket.socket, frame: memoryview, virtio: Virtio, _: Segmenter) -> None:
    """What one writes first: each segment's header is packed by itself, its checksums summed whole, then sendto."""
    _, _, header_bytes, size, at, _ = virtio
    first, flags = int.from_bytes(frame[at + 4 : at + 8], "big"), frame[at + 13]
    number = int.from_bytes(frame[18:20], "big")
    pseudo = bytes(frame[26:34]) + b"\0\6"
    payload = frame[header_bytes:]
    for start in range(0, len(payload), size):
        body = bytes(payload[start : start + size])
        header = bytearray(frame[:header_bytes])
        struct.pack_into(">HH", header, 16, header_bytes - 14 + len(body), number & 0xFFFF)
        header[24:26] = b"\0\0"
        struct.pack_into(">H", header, 24, internet_checksum(header[14:at]))
        struct.pack_into(">I", header, at + 4, (first + start) & 0xFFFFFFFF)
        header[at + 13] = flags if start + size >= len(payload) else flags & ~9
        header[at + 16 : at + 18] = b"\0\0"
        segment = bytes(header[at:]) + body
        check = internet_checksum(pseudo + struct.pack(">H", len(segment)) + segment)
        struct.pack_into(">H", header, at + 16, check)
        udp_socket.send(VXLAN_HEADER + header + body)
        number += 1


def gathered(udp_socket: socket.socket, frame: memoryview, virtio: Virtio, segmenter: Segmenter) -> None:
    """One sendmsg with UDP_SEGMENT for as many segments as fit, their pieces gathered by the kernel."""
    frames = segmenter.frames(frame, virtio, len(frame))
    size, run = _run(frames[0][2])
    for start in range(0, len(frames), run):
        pieces = [piece for head, body, _ in frames[start : start + run] for piece in (VXLAN_HEADER, head, body)]
        udp_socket.sendmsg(pieces, [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))])


def joined(udp_socket: socket.socket, frame: memoryview, virtio: Virtio, segmenter: Segmenter) -> None:
    """The same, copied into one piece first."""
    frames = segmenter.frames(frame, virtio, len(frame))
    size, run = _run(frames[0][2])
    for start in range(0, len(frames), run):
        pieces = [piece for head, body, _ in frames[start : start + run] for piece in (VXLAN_HEADER, head, body)]
        udp_socket.sendmsg([b"".join(pieces)], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", size))])


def _run(frame_bytes: int) -> tuple[int, int]:
    size = frame_bytes + len(VXLAN_HEADER)
    return size, min(SEGMENTS_PER_SEND, UDP_MAX_PAYLOAD_BYTES // size)


SENDERS: dict[str, Sender] = {
    "plain loop": plainly,
    "Segmenter, send each": one_by_one,
    "Segmenter, UDP_SEGMENT, gathered": gathered,
    "Segmenter, UDP_SEGMENT, joined": joined,
}


def send_for(sender: Sender, address: str) -> float:
    """Gbit of application payload that one process sends in a second of its CPU."""
    frame, virtio = super_packet()
    view, segmenter = memoryview(frame), Segmenter()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp_socket:
        udp_socket.connect((address, 4789))
        sent, end, cpu = 0, time.monotonic() + SEND_SECONDS, time.process_time()
        while time.monotonic() < end:
            sender(udp_socket, view, virtio, segmenter)
            sent += 1
        return sent * 45 * GSO_BYTES * 8 / (time.process_time() - cpu) / 1e9


def measure_sending() -> None:
    """All senders in turn, several rounds, medians."""
    with Lab() as lab:
        vm, sensor = lab.host("vm"), lab.host("sensor")
        lab.link(vm, sensor, mtu=1600)
        # Nobody's MAC address: the far end drops at once, and the sender's CPU is not spent in the receiver's softirq.
        vm.run(["ip", "neigh", "add", NOBODY, "lladdr", "02:00:00:00:00:99", "dev", "eth0"])
        rates: dict[str, list[float]] = {name: [] for name in SENDERS}
        for _ in range(ROUNDS):
            for name, sender in SENDERS.items():
                rates[name].append(vm.call(send_for, sender, NOBODY))
        plain = sorted(rates["plain loop"])[ROUNDS // 2]
        for name, row in rates.items():
            rate = sorted(row)[ROUNDS // 2]
            print(f"{name:40s} {rate:7.2f} Gbit/s per core, {rate / plain:.2f} x the plain loop")


def main() -> None:
    """All tables."""
    measure_sums()
    measure_cuts()
    if os.geteuid() == 0:
        measure_sending()
    else:
        print("sending is measured as root only", file=sys.stderr)


if __name__ == "__main__":
    main()
