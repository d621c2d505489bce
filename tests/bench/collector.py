"""How much of a core the collector needs: a recorded run of ring blocks, sent as fast as it takes them, into pcapng.

The rate per core is packets (or bits of frames) divided by the CPU seconds of the collector's process, its writes into
the page cache included. Partial checksums are what a virtual NIC with offloads hands over, and it completes each.
"""

import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from guestagent.capture.block import (
    LAYOUT_VIRTIO,
    PACKET_OUTGOING,
    STATUS_CSUM_NOT_READY,
    STATUS_USER,
    VIRTIO,
    VIRTIO_NEEDS_CSUM,
    BlockWriter,
)
from guestagent.capture.ring import BLOCK_BYTES
from guestagent.capture.source import PRIVATE_BYTES
from guestagent.lab.hosts import Lab
from guestagent.model import Interface
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.hello import AgentHello, encode_agent_hello
from tests.bench.clocks import process_seconds
from tests.bench.taps import STREAM_PORT, collector

SMALL_BYTES, SUPER_BYTES = 512, 65_226
"""A super-packet of 45 full TCP segments and its headers."""
BYTES_PER_SECOND = 200_000_000
"""Frames fed per second asked for: at the target rates, 4 Gbit/s or 400 kpps, that is less than a CPU second each."""
_TCP_CHECKSUM = (34, 16)
_TCP4_SEGMENTS = (1, 66, 1448)
"""VIRTIO_NET_HDR_GSO_TCPV4, bytes of headers, bytes of each segment."""
_FREE_SHARE = 4


@dataclass(frozen=True, slots=True)
class Feed:
    """One kind of packets, and what it took to write them."""

    name: str
    frame_bytes: int
    packets: int
    cpu_seconds: float
    wall_seconds: float

    @property
    def packets_per_core(self) -> float:
        """Packets for each CPU second."""
        return self.packets / self.cpu_seconds

    @property
    def bits_per_core(self) -> float:
        """Bits of frames for each CPU second."""
        return self.packets_per_core * self.frame_bytes * 8


FEEDS = (
    ("512-byte packets", SMALL_BYTES, False),
    ("512-byte packets, partial checksums", SMALL_BYTES, True),
    ("64 KB super-packets", SUPER_BYTES, False),
    ("64 KB super-packets, partial checksums", SUPER_BYTES, True),
)


def measure(seconds: float, say: Callable[[str], None]) -> list[Feed]:
    """Every kind of feed into a fresh collector."""
    results = []
    for name, size, partial in FEEDS:
        say(f"collector: {name}")
        with Lab() as lab, TemporaryDirectory(prefix="guestagent-bench-", dir=_fast_directory(seconds)) as directory:
            host = lab.host("collector")
            with collector(host, "127.0.0.1", directory) as process:
                before = process_seconds(process.pid)
                packets, wall = host.call(feed, size, partial, seconds)
                results.append(Feed(name, size, packets, process_seconds(process.pid) - before, wall))
            written = sum(path.stat().st_size for path in Path(directory).rglob("*.pcapng"))
            if written < packets * size:
                raise RuntimeError(f"the collector wrote {written} bytes of {packets} packets of {size}")
    return results


def _fast_directory(seconds: float) -> str | None:
    """Memory where there is plenty, so that the disk's speed is not measured; else where temporary files go."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > _FREE_SHARE * BYTES_PER_SECOND * seconds:
        return str(memory)
    return None


def block_of(frame_bytes: int, partial: bool) -> tuple[bytearray, BlockWriter]:
    """A ring block full of equal frames, as the kernel lays it out, with room for a frame header before it."""
    memory = bytearray(BLOCK_BYTES)
    writer = BlockWriter(memory, PRIVATE_BYTES)
    frame = bytes(12) + b"\x08\x00" + os.urandom(frame_bytes - 14)
    virtio, status = bytes(VIRTIO.size), STATUS_USER
    if partial:
        segments = _TCP4_SEGMENTS if frame_bytes == SUPER_BYTES else (0, 0, 0)
        virtio, status = VIRTIO.pack(VIRTIO_NEEDS_CSUM, *segments, *_TCP_CHECKSUM), STATUS_USER | STATUS_CSUM_NOT_READY
    while writer.add(frame, time.time_ns(), packet_type=PACKET_OUTGOING, virtio=virtio, status=status):
        pass
    return memory, writer


def feed(frame_bytes: int, partial: bool, seconds: float) -> tuple[int, float]:
    """Be an agent that sends the same block again and again; (packets, seconds until all was taken)."""
    memory, writer = block_of(frame_bytes, partial)
    count = max(1, int(seconds * BYTES_PER_SECOND / (writer.count * frame_bytes)))
    nic = Interface(id=0, name="eth0", mac="02:00:00:00:00:01", mtu=1500)
    now = time.time_ns()
    hello = AgentHello("bench", secrets.token_hex(16), "bench", "0", LAYOUT_VIRTIO, 64 << 20, now, 1, (nic,))
    with socket.create_connection(("127.0.0.1", STREAM_PORT)) as stream:
        stream.sendall(frames.PREFACE + frames.encode_json(Kind.HELLO, encode_agent_hello(hello)))
        stream.recv(1 << 16)
        start, view = time.monotonic(), memoryview(memory)
        for sequence in range(1, count + 1):
            stream.sendall(
                frames.write_block_header(
                    view,
                    writer.start,
                    writer.end,
                    interface=0,
                    sequence=sequence,
                    records=writer.count,
                    flags=frames.FLAG_LAST_OF_BLOCK,
                )
            )
        stream.sendall(frames.encode_json(Kind.BYE, {"reason": "the bench is over"}))
        while stream.recv(1 << 16):  # acknowledgements, until the collector has written all and hangs up
            pass
        return count * writer.count, time.monotonic() - start
