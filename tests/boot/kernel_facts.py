"""What the capture meets in this kernel, as JSON; runs inside the VM on the installed package (DESIGN, section 3).

The probes of `guestagent check` say what the agent decides. This says why: the figures behind it, taken on lo.
"""

import json
import select
import socket
import time
from pathlib import Path
from statistics import median
from typing import Any

from guestagent.capture.block import walk
from guestagent.capture.bpf import compose
from guestagent.capture.interfaces import describe, links
from guestagent.capture.packetsocket import attach_filter, open_packet_socket
from guestagent.capture.ring import RETIRE_MS, Ring
from guestagent.errors import ConfigError

SEGMENT_BYTES, SEGMENTS = 512, 3
UDP_SEGMENT = 103
MOST_INSTRUCTIONS = 4096
"""BPF_MAXINSNS (linux/bpf_common.h)."""


def ring(virtio: bool) -> Ring:
    link = links()["lo"]
    return Ring(describe(link, 0), link.index, compose(loopback=True), block_count=8, virtio=virtio)


def send(segmented: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        if segmented:
            udp.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT_BYTES)
        udp.sendto(bytes(SEGMENT_BYTES * SEGMENTS), udp.getsockname())


def retire_ms() -> dict[str, float]:
    """From a datagram on an idle link until its block is ours."""
    taken = []
    with_ring = ring(virtio=False)
    watch = select.epoll()
    watch.register(with_ring, select.EPOLLIN | select.EPOLLET)
    for _ in range(10):
        time.sleep(0.037)  # no multiple of the timer's period
        began = time.monotonic()
        send(segmented=False)
        while (block := with_ring.take()) is None:
            watch.poll(2.0)
        taken.append((time.monotonic() - began) * 1000)
        with_ring.release(block)
    watch.close()
    with_ring.close()
    return {"asked": RETIRE_MS, "least": min(taken), "median": median(taken), "most": max(taken)}


def super_packet(virtio: bool) -> dict[str, int]:
    """What becomes of one UDP_SEGMENT datagram."""
    of = ring(virtio)
    send(segmented=True)
    time.sleep(3 * RETIRE_MS / 1000)
    records = stale = size = 0
    while (block := of.take()) is not None:
        for record in walk(block.memory[block.start : block.end], block.records):
            records += 1
            stale += record is None
            size += record[2] if record else 0
        of.release(block)
    statistics = of.statistics()
    of.close()
    return {
        "captured": statistics.captured,
        "dropped": statistics.dropped,
        "records": records,
        "stale": stale,
        "bytes": size,
    }


def fits(instructions: int) -> bool:
    """Whether a program of this length can be attached, and swapped for another as long."""
    last = compose()[-1]
    load = (0, 0, 0, 0)  # BPF_LD | BPF_IMM: one instruction of the kernel's own, as most of ours
    with open_packet_socket("lo") as tap:
        try:
            for _ in range(2):
                attach_filter(tap, (load,) * (instructions - 1) + (last,))
        except ConfigError:
            return False
    return True


def longest_program() -> int:
    fitting, failing = 1, MOST_INSTRUCTIONS + 1
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        fitting, failing = (middle, failing) if fits(middle) else (fitting, middle)
    return fitting


facts: dict[str, Any] = {
    "retire_ms": retire_ms(),
    "udp_segment_with_virtio_header": super_packet(virtio=True),
    "udp_segment_without": super_packet(virtio=False),
    "optmem_max_bytes": int(Path("/proc/sys/net/core/optmem_max").read_text()),
    "longest_program_swapped": longest_program(),
}
print(json.dumps(facts))
