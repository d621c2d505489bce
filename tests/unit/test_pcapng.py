"""pcapng as we write it: foreign readers see each frame byte for byte, with its time, direction, tag and checksum."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from guestagent.capture.block import (
    FRAME_OFFSET_BYTES,
    STATUS_USER,
    BlockWriter,
    MalformedBlock,
)
from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.sinks.pcapng import PacketEncoder
from guestagent.model import Interface
from tests.fakes import EPOCH_NS, MAC, run_of_records
from tests.pcapng_files import ROWS, RUN, Row, file_of, raw_packets, records_of, scapy_packets, tool, with_tag


@settings(max_examples=150)
@given(ROWS)
def test_frames_are_read_as_they_were(rows: list[Row]) -> None:
    """scapy reads every frame byte-exact with its length on the wire and its time in nanoseconds; so do we."""
    records, count = records_of(rows)
    data, packets, stale = PacketEncoder(has_virtio=True).encode(records, count, 0)
    whole = file_of(data)
    expected = [
        (with_tag(frame, vlan), len(frame) + cut + (4 if vlan else 0), time_ns) for frame, time_ns, cut, _, vlan in rows
    ]

    assert (len(rows), 0) == (packets, stale)
    assert expected == [(f, meta.wirelen, meta.tshigh << 32 | meta.tslow) for f, meta in scapy_packets(whole)]
    assert expected == [(bytes(row[-1]), row[-2], row[1]) for row in reader.packets(whole)]


DIRECTIONS = {0: (1, 1), 1: (1, 3), 2: (1, 2), 3: (1, 4), 4: (2, 0)}
"""epb_flags by packet type: bits 0-1 are 1 in, 2 out; bits 2-4 are 1 unicast, 2 multicast, 3 broadcast, 4 other."""


@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("size", range(14, 22))
def test_direction_and_padding(kind: int, size: int) -> None:
    """Each packet type becomes the draft's direction flags; frames are padded with zeros to 32 bits."""
    records, count = run_of_records([bytes([0xEE]) * size] * 2, packet_type=kind)
    data, _, _ = PacketEncoder(has_virtio=True).encode(memoryview(records), count, 0)
    direction, reception = DIRECTIONS[kind]

    assert [(direction | reception << 2, b"\xee" * size, -size & 3)] * 2 == raw_packets(data)


def test_stale_records_are_counted_and_never_written() -> None:
    """Of a record without STATUS_USER not one byte reaches the file."""
    memory = bytearray(4096)
    writer = BlockWriter(memory, 0)
    for at in range(6):
        writer.add(b"\xde\xad" * 20 if at % 2 else b"good" * 10, EPOCH_NS, status=0 if at % 2 else STATUS_USER)
    data, packets, stale = PacketEncoder(has_virtio=True).encode(memoryview(memory)[48 : writer.end], 6, 0)

    assert (3, 3) == (packets, stale)
    assert [b"good" * 10] * 3 == [frame for _, frame, _ in raw_packets(data)]
    assert b"\xde\xad" not in data


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 255)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2**32 - 1)), max_size=4),
)
def test_hostile_runs_are_encoded_or_malformed(rows: list[tuple[bytes, int]], changes: list[tuple[int, int]]) -> None:
    """Records of any content are written as whole blocks of bounded size, or the run is MalformedBlock."""
    records, count = run_of_records([frame for frame, _ in rows])
    made = bytearray(records)
    for word, value in changes:
        struct.pack_into("<I", made, word * 4 % (len(made) - 4), value)
    for at, (_, status) in enumerate(rows):
        made[at * FRAME_OFFSET_BYTES % len(made)] |= status & 1
    try:
        data, packets, stale = PacketEncoder(has_virtio=True).encode(memoryview(made), count, 0)
    except MalformedBlock:
        return
    assert packets == len(raw_packets(data))
    assert count == packets + stale
    assert len(data) <= len(made)


TEXTS = st.text(max_size=300)


@given(TEXTS, TEXTS, st.integers(0, 2**32 - 1), st.sampled_from(["", "02:00:00:00:00:01"]))
def test_any_facts_make_whole_blocks(name: str, comment: str, speed: int, mac: str) -> None:
    """Section, interface and statistics of any text stay well-formed, and scapy reads on behind them."""
    name, comment = name.encode(errors="replace").decode(), comment.encode(errors="replace").decode()
    facts = Interface(0, name, mac, 1500, speed_mbit=speed)
    records, count = run_of_records([b"x" * 60])
    packet, _, _ = PacketEncoder(has_virtio=True).encode(memoryview(records), count, 0)
    statistics = pcapng.statistics(0, EPOCH_NS, {"captured": 2**63 - 1}, 1, comment)
    whole = (
        pcapng.section(comment, "guestagent", "Linux") + pcapng.interface(facts, "a", "b", RUN) + statistics + packet
    )

    assert [b"x" * 60] == [frame for frame, _ in scapy_packets(whole)]
    assert len(whole) == list(reader.blocks(whole))[-1][2]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file with everything that we write into one."""
    frames = [bytes(Ether(dst=MAC) / IP(src="10.0.0.1", dst="10.0.0.9") / TCP(sport=at)) for at in range(1, 4)]
    records, count = run_of_records(frames, vlan=(42, 0x8100), packet_type=4)
    packets, _, _ = PacketEncoder(has_virtio=True).encode(memoryview(records), count, 0)
    facts = Interface(0, "ens5", "02:00:00:00:00:07", 9001, speed_mbit=25_000)
    head = file_of(facts=facts)
    parts = [packets, pcapng.report(RUN, {"interfaces": {}}), packets]
    offset = len(head) + sum(map(len, parts))
    parts.append(pcapng.mark(RUN, 3, offset, 1, [(0, 0, 0, 0, 6)]))
    counters = {"captured": 1000, "dropped_by_ring": 30, "unsupported_gso": 4}
    parts.append(pcapng.statistics(0, EPOCH_NS, counters, 6, "the agent ended"))
    path = tmp_path / "all.pcapng"
    path.write_bytes(head + b"".join(parts))
    return path


def test_capinfos_reads_interface_and_statistics(written: Path) -> None:
    """capinfos finds the interface with name, speed and nanoseconds, and no packet but the six."""
    said = tool("capinfos", str(written))

    assert "Number of packets:   6" in said
    assert "Name = ens5" in said
    assert "Speed = 25000000000" in said
    assert "Time precision = nanoseconds (9)" in said
    assert "Number of stat entries = 1" in said
    assert "a comment" in said


def test_tshark_reads_frames_and_directions(written: Path) -> None:
    """tshark decodes tag, addresses, direction, interface and time to the nanosecond; our own blocks stay unseen."""
    fields = ["frame.time_epoch", "vlan.id", "ip.dst", "tcp.srcport", "frame.interface_name"]
    flags = [word for field in fields for word in ("-e", field)]
    said = tool("tshark", "-r", str(written), "-T", "fields", *flags)
    expected = [f"1700000000.12345{6789 + 1000 * at}\t42\t10.0.0.9\t{at + 1}\tens5" for at in range(3)]

    assert expected * 2 == said.splitlines()
    assert "Outbound" in tool("tshark", "-r", str(written), "-c", "1", "-V")


def test_a_report_is_whole_json(written: Path) -> None:
    """A REPORT is found in the file as it came."""
    data = written.read_bytes()
    found = [
        json.loads(data[start + 28 : stop - 4])
        for kind, start, stop in reader.blocks(data)
        if kind == pcapng.OURS and data[start + 8 : start + 12] == pcapng.REPORT_MAGIC
    ]

    assert [{"interfaces": {}}] == found
