"""pcapng as we write it: foreign readers see each frame byte for byte, with its time, direction, tag and checksum."""

import json
import shutil
import struct
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.utils import RawPcapNgReader

from guestagent.capture.block import (
    FRAME_OFFSET_BYTES,
    STATUS_CSUM_NOT_READY,
    STATUS_USER,
    STATUS_VLAN_VALID,
    VIRTIO,
    BlockWriter,
    MalformedBlock,
)
from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.sinks.pcapng import PacketEncoder
from guestagent.model import Interface
from tests.fakes import EPOCH_NS, RUN_ID, interface, run_of_records
from tests.unit.test_checksum import NETWORKS, TRANSPORTS, partial

RUN = bytes.fromhex(RUN_ID)
FLAGS_OPTION = 2

Row = tuple[bytes, int, int, int, tuple[int, int] | None]
ROWS = st.lists(
    st.tuples(
        st.binary(min_size=14, max_size=90),
        st.integers(0, (2**32 - 1) * 10**9),
        st.integers(0, 5000),
        st.integers(0, 4),
        st.none() | st.tuples(st.integers(0, 0xFFFF), st.sampled_from([0x8100, 0x88A8])),
    ),
    max_size=6,
)


def records_of(rows: list[Row]) -> tuple[memoryview, int]:
    """The run of these records: frame, time, bytes cut off, direction, tag."""
    memory = bytearray(64 + sum(len(row[0]) + 128 for row in rows))
    writer = BlockWriter(memory, 0)
    for frame, time_ns, cut, kind, vlan in rows:
        assert writer.add(frame, time_ns, original_bytes=len(frame) + cut, packet_type=kind, vlan=vlan)
    return memoryview(memory)[writer.start : writer.end], writer.count


def with_tag(frame: bytes, vlan: tuple[int, int] | None) -> bytes:
    """The frame as it was on the wire."""
    return frame if vlan is None else frame[:12] + struct.pack(">HH", vlan[1], vlan[0]) + frame[12:]


def file_of(*parts: bytes, facts: Interface | None = None) -> bytes:
    """A file with one interface and these blocks."""
    head = pcapng.section("a comment", "guestagent 0.1", "Linux")
    return head + pcapng.interface(facts or interface(), "vm-1", "host-1", RUN) + b"".join(parts)


def scapy_packets(data: bytes) -> list[tuple[bytes, Any]]:
    """(frame, metadata) as scapy reads them."""
    return list(RawPcapNgReader(BytesIO(data)))


def raw_packets(data: bytes) -> list[tuple[int, bytes, int]]:
    """(flags option, frame, padding) of each packet block, by the draft and nothing of ours."""
    found, at = [], 0
    while at < len(data):
        kind, total = struct.unpack_from("<II", data, at)
        if kind == 6:
            captured = struct.unpack_from("<I", data, at + 20)[0]
            padded = (captured + 3) & ~3
            code, size, flags, end = struct.unpack_from("<HHII", data, at + 28 + padded)
            assert (FLAGS_OPTION, 4, 0) == (code, size, end)
            assert bytes(padded - captured) == data[at + 28 + captured : at + 28 + padded]
            assert total == 28 + padded + 12 + 4
            found.append((flags, data[at + 28 : at + 28 + captured], padded - captured))
        assert total == struct.unpack_from("<I", data, at + total - 4)[0]
        at += total
    return found


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


def encode_one(frame: bytes, **fields: Any) -> tuple[bytes, PacketEncoder]:
    """(frame in the file, encoder) of a single record."""
    records, count = run_of_records([frame], **fields)
    encoder = PacketEncoder(has_virtio=True)
    data, _, _ = encoder.encode(memoryview(records), count, 0)
    return raw_packets(data)[0][1], encoder


@pytest.mark.parametrize("version", NETWORKS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("vlan", [None, (0x2064, 0x8100), (5, 0x88A8)])
@pytest.mark.parametrize("size", [0, 1, 100, 1001])
def test_checksum_first_then_the_tag(version: int, transport: str, vlan: tuple[int, int] | None, size: int) -> None:
    """A partial checksum is completed as scapy would, also where the VLAN tag comes back into the frame."""
    frame, start, offset, whole = partial(version, transport, (bytes(range(256)) * 4)[:size])
    virtio = VIRTIO.pack(1, 0, 0, 0, start, offset)

    written, encoder = encode_one(frame, virtio=virtio, status=STATUS_USER | STATUS_CSUM_NOT_READY, vlan=vlan)

    assert with_tag(whole, vlan) == written
    assert (1, 0) == (encoder.checksums_completed, encoder.checksums_left)


def test_a_restored_tag_is_what_scapy_makes_of_it() -> None:
    """scapy finds priority, id and the packet behind the restored tag."""
    frame = bytes(Ether(type=0x0800) / IP(src="10.0.0.1", dst="10.0.0.9") / TCP())
    written, _ = encode_one(frame, vlan=(5 << 13 | 42, 0x8100))
    packet = Ether(written)

    assert (5, 42) == (packet[Dot1Q].prio, packet[Dot1Q].vlan)
    assert "10.0.0.9" == packet[IP].dst


def test_a_tag_without_its_type_is_a_c_tag() -> None:
    """Where the kernel does not know the tag's EtherType, 0x8100 is written."""
    frame = bytes(range(40))
    written, _ = encode_one(frame, status=STATUS_USER | STATUS_VLAN_VALID)

    assert with_tag(frame, (0, 0x8100)) == written


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"original_bytes": 200}, id="cut short"),
        pytest.param({"virtio": VIRTIO.pack(0, 0, 0, 0, 34, 16)}, id="not described"),
        pytest.param({"virtio": VIRTIO.pack(1, 0, 0, 0, 98, 1)}, id="place outside"),
        pytest.param({"virtio": VIRTIO.pack(1, 0, 0, 0, 0xFFFF, 0xFFFF)}, id="place far outside"),
    ],
)
def test_a_checksum_that_can_not_be_completed_is_left_and_counted(fields: dict[str, Any]) -> None:
    """A frame that is cut, or whose header lies, is written as it came, and counted."""
    frame = bytes(range(100))
    written, encoder = encode_one(frame, **{"virtio": VIRTIO.pack(1, 0, 0, 0, 34, 16), **fields, "status": 9})

    assert frame == written
    assert (0, 1) == (encoder.checksums_completed, encoder.checksums_left)


def test_without_virtio_headers_nothing_is_completed() -> None:
    """In the plain layout the ten bytes before a frame mean nothing."""
    frame = bytes(range(100))
    records, count = run_of_records([frame], virtio=VIRTIO.pack(1, 0, 0, 0, 34, 16), status=9)
    encoder = PacketEncoder(has_virtio=False)
    data, _, _ = encoder.encode(memoryview(records), count, 0)

    assert frame == raw_packets(data)[0][1]
    assert (0, 1) == (encoder.checksums_completed, encoder.checksums_left)


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


@pytest.mark.parametrize("original", [2**32 - 4, 2**32 - 1])
def test_the_greatest_length_with_a_tag(original: int) -> None:
    """A peer's frame of 4 GB on the wire does not overflow when its tag is put back."""
    frame = bytes(60)
    written, _ = encode_one(frame, original_bytes=original, vlan=(1, 0x8100))

    assert with_tag(frame, (1, 0x8100)) == written


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


def tool(*command: str) -> str:
    """What a program of Wireshark says."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file with everything that we write into one."""
    frames = [bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.9") / TCP(sport=at)) for at in range(1, 4)]
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
