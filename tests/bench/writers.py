"""pcapng writers, CPU per 512-byte packet: ours, which takes whole blocks, beside the libraries, which take packets.

Each gets what it likes best: ours a ring block, the others bytes with a time; all write to /dev/null.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from guestagent.capture.block import walk
from guestagent.collector.sinks.pcapng import PacketEncoder
from tests.bench.collector import SMALL_BYTES, block_of

REPEATS = 30


@dataclass(frozen=True, slots=True)
class Writer:
    """One writer's CPU microseconds per packet."""

    name: str
    microseconds: float


def measure(say: Callable[[str], None]) -> list[Writer]:
    """Every writer that is installed here; ours first."""
    say("pcapng writers")
    memory, written = block_of(SMALL_BYTES, False)
    records = memoryview(memory)[written.start : written.end]
    found = [record for record in walk(records, written.count) if record]
    packets = [(record[0], bytes(records[record[4] : record[5]])) for record in found]
    writers: dict[str, Callable[[], object]] = {
        "guestagent": lambda: _ours(records, written.count),
        "scapy, PcapNgWriter": lambda: _scapy("PcapNgWriter", packets),
        "scapy, PcapWriter (classic pcap)": lambda: _scapy("PcapWriter", packets),
        "python-pcapng, FileWriter": lambda: _python_pcapng(packets),
    }
    for name, write in list(writers.items()):
        try:
            write()
        except ImportError as error:
            say(f"{name} left out: {error}")
            del writers[name]
    times = [{name: _cpu(write) for name, write in writers.items()} for _ in range(REPEATS)]
    return [Writer(name, median(one[name] for one in times) / len(packets) * 1e6) for name in writers]


def _cpu(write: Callable[[], object]) -> float:
    start = time.process_time()
    write()
    return time.process_time() - start


def _ours(records: memoryview, count: int) -> None:
    data, _, _ = PacketEncoder(has_virtio=True).encode(records, count, 0)
    with open(os.devnull, "wb") as file:
        file.write(data)


def _scapy(name: str, packets: list[tuple[int, bytes]]) -> None:
    import scapy.utils

    with getattr(scapy.utils, name)(os.devnull) as writer:
        writer.linktype = 1  # bytes do not tell, and it would say so on standard error
        writer.write_header(packets[0][1])
        for time_ns, data in packets:
            writer.write_packet(data, sec=time_ns / 1e9, usec=0, caplen=len(data), wirelen=len(data))


def _python_pcapng(packets: list[tuple[int, bytes]]) -> None:
    from pcapng import FileWriter, blocks

    section = blocks.SectionHeader()
    section.new_member(blocks.InterfaceDescription, link_type=1, snaplen=0)
    with open(os.devnull, "wb") as file:
        writer = FileWriter(file, section)
        for time_ns, data in packets:
            packet = section.new_member(blocks.EnhancedPacket, packet_data=data, packet_len=len(data))
            packet.timestamp = time_ns / 1e9
            writer.write_block(packet)
