"""What a direct tunnel costs: `python -m tests.bench.direct`, as root; a minute. Prints only.

Ring blocks made beforehand go through the link itself to a host in a network namespace, whose neighbour entry is of
nobody: the far end drops at once, and the process's CPU is that of walking, cutting, wrapping and sending. Beside it
the same link with one `send` for each datagram, and for bulk the plain loop of tests/bench/segment.py as well.
"""

import socket
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from guestagent.capture.block import LAYOUT_VIRTIO, VIRTIO, BlockWriter
from guestagent.endpoint import Endpoint
from guestagent.lab.hosts import Lab
from guestagent.links.direct import DirectLink
from guestagent.links.sender import Datagram, Sender
from guestagent.loop import Loop
from guestagent.model import Interface
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.session import Pending
from tests.bench.segment import NOBODY, plainly, super_packet
from tests.frames import IPV4, UDP, ethernet, ipv4, udp

BLOCK_BYTES = 256 * 1024
PRIVATE_BYTES = 24
ROUNDS = 7
SECONDS = 0.5


class Owner:
    """A desk that has one block, again and again, until its time is over."""

    def __init__(self, block: memoryview, records: int, end: int) -> None:
        start = 48 + PRIVATE_BYTES
        frame = frames.write_block_header(block, start, end, interface=0, sequence=1, records=records, flags=0)
        self.pending = Pending(1, Kind.BLOCK, frame)
        self.until = 0.0
        self.taken = 0

    def hello(self) -> Any:
        """Of one interface."""
        return type("Hello", (), {"layout": LAYOUT_VIRTIO, "interfaces": (Interface(0, "eth0", "", 1500),)})

    def next_frame(self, now: float) -> Pending | None:
        """The block."""
        if time.process_time() >= self.until:
            return None
        self.taken += 1
        return self.pending

    def allowance(self, now: float) -> float:
        """No cap."""
        return float("inf")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def one_by_one(self: Sender, lane: int, datagrams: Sequence[Datagram], sizes: Sequence[int]) -> tuple[int, int]:
    """One system call for each datagram."""
    send = self._sockets[lane].send
    for datagram in datagrams:
        send(b"".join(datagram))
    return len(datagrams), 0


def block_of(records: Sequence[tuple[bytes, tuple[int, ...]]]) -> tuple[memoryview, int, int]:
    """As many of these as fit into a block, in turn; (block, records, end)."""
    memory = memoryview(bytearray(BLOCK_BYTES))
    writer = BlockWriter(memory, PRIVATE_BYTES)
    while True:
        frame, virtio = records[writer.count % len(records)]
        if not writer.add(frame, 1_000_000_000, virtio=VIRTIO.pack(*virtio)):
            return memory, writer.count, writer.end


def small(flows: int, sizes: Sequence[int] = (512,)) -> tuple[memoryview, int, int]:
    """UDP of these payloads, in turn of so many flows."""
    plain = (0, 0, 0, 0, 0, 0)
    count = flows * len(sizes)
    return block_of([
        (ethernet(IPV4, ipv4(UDP, udp(bytes(sizes[n % len(sizes)]), source=20_000 + n % flows))), plain)
        for n in range(count)
    ])  # fmt: skip


def cost(block: tuple[memoryview, int, int], plain: bool) -> tuple[float, float]:
    """(µs of CPU for each record, datagrams for each record)."""
    owner, loop = Owner(*block), Loop()
    link = DirectLink([Endpoint("vxlan", NOBODY, 4789, key=7)], owner, loop)  # type: ignore[arg-type]
    send = Sender.send
    if plain:
        Sender.send = one_by_one  # type: ignore[method-assign]
    try:
        link.tick(0.0)
        began = time.process_time()
        owner.until = began + SECONDS
        while link.pump(0.0) or link.is_blocked:
            pass
        spent = time.process_time() - began
        link.finish("")
        records = owner.taken * block[1]
        return spent / records * 1e6, link.state.destinations[0]["frames"] / records
    finally:
        Sender.send = send  # type: ignore[method-assign]
        link.close()
        loop.close()


def plain_bulk() -> float:
    """µs of CPU for each super-packet in the plain loop."""
    frame, virtio = super_packet(45 * 1398)
    view, sent = memoryview(frame), 0
    virtio = (*virtio[:3], 1398, *virtio[4:])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect((NOBODY, 4789))
        began = time.process_time()
        while time.process_time() - began < SECONDS:
            plainly(one, view, virtio, None)  # type: ignore[arg-type]
            sent += 1
        return (time.process_time() - began) / sent * 1e6


LOADS = {
    "512-byte UDP, one flow": lambda: small(1),
    "512-byte UDP, 64 flows": lambda: small(64),
    "64 to 1,200-byte UDP, 64 flows": lambda: small(64, (64, 1200, 200, 512, 700)),
    "bulk TCP, 45 segments of 1,398": lambda: block_of([_bulk(1398)]),
    "bulk TCP, 45 of 1,448, split to fit": lambda: block_of([_bulk(1448)]),
}


def _bulk(size: int) -> tuple[bytes, tuple[int, ...]]:
    frame, virtio = super_packet(45 * size)
    return frame, (*virtio[:3], size, *virtio[4:])


def main() -> None:
    """All loads, both ways to send, in turn."""
    with Lab() as lab:
        vm, sensor = lab.host("vm"), lab.host("sensor")
        lab.link(vm, sensor)
        vm.run(["ip", "neigh", "add", NOBODY, "lladdr", "02:00:00:00:00:99", "dev", "eth0"])
        for name, make in LOADS.items():
            block = make()
            rows = [(vm.call(cost, block, False), vm.call(cost, block, True)) for _ in range(ROUNDS)]
            ours, each = (median(row[i][0] for row in rows) for i in (0, 1))
            per = rows[0][0][1]
            ratio = median(row[0][0] / row[1][0] for row in rows)
            print(f"{name:36s} {ours / per:6.2f} µs per frame, one send each {each / per:6.2f}, ratio {ratio:.2f}")
        plain = median(vm.call(plain_bulk) for _ in range(ROUNDS))
        print(f"{'plain loop of sendto, 45 of 1,398':36s} {plain / 45:6.2f} µs per frame")


if __name__ == "__main__":
    main()
