"""A wire that does what wires do to packets, seeded: between two interfaces of one host, frame by frame.

This kernel has no netem. `Wire` decides and keeps time by its argument alone; `relay` is its process: two packet
sockets, one loop, orders over a pipe. The cables must carry frames as a wire does: offloads off at all four ends.
"""

import heapq
import random
import select
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

from guestagent.lab.hosts import Host
from guestagent.lab.packets import SO_RCVBUFFORCE

ETH_P_ALL, ETH_P_IPV4 = 3, 0x0800
PACKET_OUTGOING = 4
TCP, ICMP = 6, 1
SYN, RST, ACK = 0x02, 0x04, 0x10
MOST_FRAME_BYTES = 65_550
MOST_TURN_FRAMES = 64
"""Of one side before the other has its turn."""
MOST_HELD_BYTES = 16 << 20
"""A delay at full speed; beyond, frames are lost as in any queue."""
BUFFER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Weather:
    """What the wire does; as it is, nothing."""

    loss: float = 0.0
    """Of frames; 1.0 is a dead wire."""
    corrupt: float = 0.0
    """Of frames: one bit somewhere behind the Ethernet header is turned."""
    duplicate: float = 0.0
    reorder: float = 0.0
    """Of frames: these wait `reorder_seconds` while others pass."""
    delay_seconds: float = 0.0
    reorder_seconds: float = 0.005
    mtu_bytes: int = 65_535
    """Longer IP packets vanish, without a word."""
    claims_mtu_bytes: int = 0
    """An ICMP "fragmentation needed" with this MTU answers long packets, which pass all the same (RFC 5927)."""
    reset: float = 0.0
    """Of TCP segments: both ends get a RST that their kernels believe."""
    forgets: bool = False
    """TCP connections that were there before are dropped on the way, as by a NAT that lost its table."""


class Segment(NamedTuple):
    """What is to be known of an IPv4 TCP frame."""

    flow: frozenset[bytes]
    flags: int
    sequence: int
    acknowledgement: int


class Wire:
    """Takes frames of two sides, 0 and 1, and hands out what leaves on which side, when it is time."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._held: list[tuple[float, int, int, bytes]] = []
        self._held_bytes = self._number = 0
        self._known: set[frozenset[bytes]] = set()
        self.weather = Weather()
        self.counts: Counter[str] = Counter()
        """Frames by fate: passed, lost, corrupt, duplicate, reorder, too_long, claimed, reset, forgotten, overflow."""

    def change(self, weather: Weather) -> None:
        """From now on; a wire that forgets knows none of the connections of before."""
        self._known.clear()
        self.weather = weather

    def take(self, side: int, frame: bytes, now: float) -> None:
        """One frame came in on `side`."""
        weather = self.weather
        if self._strikes(weather.loss):
            self.counts["lost"] += 1
            return
        segment = tcp_segment(frame) if weather.reset or weather.forgets else None
        if segment and self._is_cut(segment, side, frame, now):
            return
        long_bytes = len(frame) - 14
        if long_bytes > weather.mtu_bytes:
            self.counts["too_long"] += 1
            return
        if weather.claims_mtu_bytes and long_bytes > 1000 and frame[12:14] == b"\x08\x00":
            self.counts["claimed"] += 1
            self._hold(side, fragmentation_needed(frame, weather.claims_mtu_bytes), now)
        if self._strikes(weather.corrupt):
            self.counts["corrupt"] += 1
            frame = self._corrupted(frame)
        due = now + weather.delay_seconds
        if self._strikes(weather.reorder):
            self.counts["reorder"] += 1
            due += weather.reorder_seconds
        self._hold(1 - side, frame, due)
        if self._strikes(weather.duplicate):
            self.counts["duplicate"] += 1
            self._hold(1 - side, frame, due)

    def _strikes(self, share: float) -> bool:
        return share > 0 and self._random.random() < share

    def _is_cut(self, segment: Segment, side: int, frame: bytes, now: float) -> bool:
        if self.weather.forgets:
            if segment.flags & SYN and not segment.flags & ACK:
                self._known.add(segment.flow)
            elif segment.flow not in self._known:
                self.counts["forgotten"] += 1
                return True
        if not segment.flags & RST and self._strikes(self.weather.reset):
            self.counts["reset"] += 1
            self._hold(1 - side, reset(frame, segment.sequence), now)
            self._hold(side, reset(frame, segment.acknowledgement, turned=True), now)
            return True
        return False

    def _corrupted(self, frame: bytes) -> bytes:
        at = self._random.randrange(14, len(frame))
        return frame[:at] + bytes([frame[at] ^ 1 << self._random.randrange(8)]) + frame[at + 1 :]

    def _hold(self, side: int, frame: bytes, due: float) -> None:
        if self._held_bytes + len(frame) > MOST_HELD_BYTES:
            self.counts["overflow"] += 1
            return
        self._held_bytes += len(frame)
        self._number += 1  # frames of one moment keep their order
        heapq.heappush(self._held, (due, self._number, side, frame))

    def due(self, now: float) -> list[tuple[int, bytes]]:
        """(side, frame) of all that leaves by now."""
        leaving = []
        while self._held and self._held[0][0] <= now:
            _, _, side, frame = heapq.heappop(self._held)
            self._held_bytes -= len(frame)
            self.counts["passed"] += 1
            leaving.append((side, frame))
        return leaving

    def next_due(self) -> float | None:
        """When the next held frame leaves; None where none is held."""
        return self._held[0][0] if self._held else None


def tcp_segment(frame: bytes) -> Segment | None:
    """The TCP segment of an IPv4 frame; None for anything else (RFC 9293, section 3.1)."""
    if frame[12:14] != b"\x08\x00" or len(frame) < 54 or frame[23] != TCP:
        return None
    ip = 14 + (frame[14] & 15) * 4
    if len(frame) < ip + 20:
        return None
    sequence, acknowledgement, flags = struct.unpack_from(">IIxB", frame, ip + 4)
    ends = frozenset((frame[26:30] + frame[ip : ip + 2], frame[30:34] + frame[ip + 2 : ip + 4]))
    return Segment(ends, flags, sequence, acknowledgement)


def reset(frame: bytes, sequence: int, *, turned: bool = False) -> bytes:
    """A RST for the frame's receiver, or turned for its sender; believed where the number is the next one expected
    (RFC 5961, section 3.2)."""
    source, destination = frame[26:30], frame[30:34]
    ip = 14 + (frame[14] & 15) * 4
    ports, macs = frame[ip : ip + 4], frame[:12]
    if turned:
        source, destination, ports, macs = destination, source, ports[2:] + ports[:2], macs[6:] + macs[:6]
    tcp = ports + struct.pack(">IIBBHHH", sequence, 0, 5 << 4, RST, 0, 0, 0)
    pseudo = source + destination + struct.pack(">BBH", 0, TCP, len(tcp))
    tcp = tcp[:16] + internet_checksum(pseudo + tcp) + tcp[18:]
    return macs + b"\x08\x00" + ipv4_header(source, destination, TCP, len(tcp)) + tcp


def fragmentation_needed(frame: bytes, mtu_bytes: int) -> bytes:
    """ICMP type 3, code 4 with a next-hop MTU (RFC 1191, section 4), in the name of the frame's receiver."""
    icmp = struct.pack(">BBHHH", 3, 4, 0, 0, mtu_bytes) + frame[14:42]
    icmp = icmp[:2] + internet_checksum(icmp) + icmp[4:]
    header = ipv4_header(frame[30:34], frame[26:30], ICMP, len(icmp))
    return frame[6:12] + frame[:6] + b"\x08\x00" + header + icmp


def ipv4_header(source: bytes, destination: bytes, protocol: int, payload_bytes: int) -> bytes:
    """Twenty bytes with their checksum (RFC 791, section 3.1)."""
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + payload_bytes, 0, 0, 64, protocol, 0) + source + destination
    return header[:10] + internet_checksum(header) + header[12:]


def internet_checksum(data: bytes) -> bytes:
    """RFC 1071, of an even number of bytes, in the order of the wire."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


# -- the process --------------------------------------------------------------------------------------------------


class Relay:
    """A wire at work on a host; the handle through which its weather is made."""

    def __init__(self, host: Host, left: str, right: str, seed: int = 4795) -> None:
        self._pipe, theirs = get_context("fork").Pipe()
        self._task = host.start(relay, theirs, (left, right), seed)
        theirs.close()
        self._pipe.recv()

    def weather(self, **changes: float) -> None:
        """Let it rain; without arguments the sun shines."""
        self._pipe.send(Weather(**changes))  # type: ignore[arg-type]
        self._pipe.recv()

    def counts(self) -> Counter[str]:
        """Frames so far, by fate."""
        self._pipe.send("counts")
        answer: Counter[str] = self._pipe.recv()
        return answer

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self._task.join(5.0)


def relay(orders: Connection, names: tuple[str, str], seed: int) -> None:
    """Carry frames between two interfaces until the pipe is closed; runs inside the host."""
    wire, sides = Wire(seed), [_open(name) for name in names]
    poller = select.epoll()
    for descriptor in (orders.fileno(), *(side.fileno() for side in sides)):
        poller.register(descriptor, select.EPOLLIN)
    orders.send("ready")
    while True:
        due = wire.next_due()
        ready = {descriptor for descriptor, _ in poller.poll(-1 if due is None else max(0.0, due - time.monotonic()))}
        if orders.fileno() in ready and not _obey(orders, wire):
            return
        for number, side in enumerate(sides):
            if side.fileno() in ready:
                _receive(side, number, wire)
        for number, frame in wire.due(time.monotonic()):
            with suppress(OSError):  # the far end is down, or the queue is full
                sides[number].send(frame)


def _open(name: str) -> socket.socket:
    side = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL))
    side.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    side.bind((name, ETH_P_ALL))
    return side


def _obey(orders: Connection, wire: Wire) -> bool:
    try:
        order = orders.recv()
    except EOFError:
        return False
    if isinstance(order, Weather):
        wire.change(order)
    orders.send(wire.counts)
    return True


def _receive(side: socket.socket, number: int, wire: Wire) -> None:
    now = time.monotonic()
    with suppress(OSError):  # nothing more is there, or the far end is down
        for _ in range(MOST_TURN_FRAMES):
            frame, about = side.recvfrom(MOST_FRAME_BYTES)
            if about[2] != PACKET_OUTGOING:
                wire.take(number, frame, now)
