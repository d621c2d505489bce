"""Files with frames of wire size: every one fits the MTU, scapy agrees with each sum, a kill loses and repeats none."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.capture.block import (
    LAYOUT_PLAIN,
    LAYOUT_VIRTIO,
    STATUS_CSUM_NOT_READY,
    STATUS_USER,
    VIRTIO,
    MalformedBlock,
)
from guestagent.collector.registry import Registry
from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.sinks.directory import DirectorySink, Rotation
from guestagent.collector.sinks.shared import single_file, standard_output
from guestagent.collector.sinks.wiresize import WireSizeEncoder
from guestagent.encap.segment import Segmenter
from tests import frames
from tests.crashes import Agent, Sink, abandon, crash_and_resume, killed_after, written_packets
from tests.fakes import EPOCH_NS, agent_hello, block_frame, packets_frame, parsed, run_of_records
from tests.pcapng_files import ROWS, Row, file_of, raw_packets, records_of
from tests.segments import by_scapy, offload, payload_of, plain

MTU_FRAME_BYTES = 1514
MSS = {4: 1460, 6: 1440}
HEADERS_BYTES = {4: 54, 6: 74}
SUPER_BYTES = 20_000


def super_packet(version: int = 4, size: int = SUPER_BYTES, **fields: Any) -> tuple[bytes, int]:
    """A run of one super-packet as the ring holds it: cut at the MSS, its checksum left to the card."""
    frame = plain(frames.TCP, version, frames.tcp(payload_of(size)))
    virtio = VIRTIO.pack(*offload(frames.TCP, version, MSS[version], HEADERS_BYTES[version] - 20))
    return run_of_records([frame], **{"virtio": virtio, "status": STATUS_USER | STATUS_CSUM_NOT_READY, **fields})


def encoded(records: bytes, count: int, layout: str = LAYOUT_VIRTIO) -> tuple[bytes, int, int, WireSizeEncoder]:
    """What the encoder makes of a run, and the encoder."""
    encoder = WireSizeEncoder(layout, Segmenter())
    return *encoder.encode(memoryview(records), count, 0), encoder


@pytest.mark.parametrize("version", MSS)
@pytest.mark.parametrize("size", [1, 1440, 1461, SUPER_BYTES, 60_000])
@pytest.mark.parametrize("kind", [0, 4])
def test_super_packets_are_written_as_frames(version: int, size: int, kind: int) -> None:
    """Each fits the MTU, has scapy's sums, the record's time and direction, its own length; all make the stream."""
    data, packets, stale, encoder = encoded(*super_packet(version, size, packet_type=kind))
    rows = list(reader.packets(file_of(data)))
    written = [bytes(row[-1]) for row in rows]

    assert (len(rows), 0) == (packets, stale)
    assert -(-size // MSS[version]) == packets == encoder.checksums_completed
    assert max(map(len, written)) <= MTU_FRAME_BYTES
    assert written == [by_scapy(frame) for frame in written]
    assert [(0, EPOCH_NS, len(frame)) for frame in written] == [row[:3] for row in rows]
    assert payload_of(size) == b"".join(frame[HEADERS_BYTES[version] :] for frame in written)
    assert {pcapng._DIRECTION[kind]} == {flags for flags, _, _ in raw_packets(data)}


def test_of_a_slice_the_lengths_stay_true() -> None:
    """A super-packet cut to its headers becomes as many frames as the wire had, with their lengths, each counted."""
    frame = plain(frames.TCP, 4, frames.tcp(payload_of(SUPER_BYTES)))
    virtio = VIRTIO.pack(*offload(frames.TCP, 4, MSS[4], 34))
    records, count = run_of_records([frame[:54]], virtio=virtio, original_bytes=len(frame), status=9)
    data, packets, _, encoder = encoded(records, count)
    lengths = [row[2] for row in reader.packets(file_of(data))]

    assert [MTU_FRAME_BYTES] * 13 + [54 + SUPER_BYTES % MSS[4]] == lengths
    assert {54} == {len(row[-1]) for row in reader.packets(file_of(data))}
    assert (0, packets) == (encoder.checksums_completed, encoder.checksums_left)


@given(ROWS)
def test_without_super_packets_both_encoders_agree(rows: list[Row]) -> None:
    """Whatever the records are, tagged, sliced, of any direction: the very bytes of a file without the option."""
    records, count = records_of(rows)
    plainly = pcapng.PacketEncoder(has_virtio=True).encode(records, count, 3)

    assert plainly == WireSizeEncoder(LAYOUT_VIRTIO, Segmenter()).encode(records, count, 3)


def test_without_virtio_headers_nothing_is_cut() -> None:
    """The plain layout does not tell how: the record stays whole, its checksum is counted as left."""
    records, count = super_packet()
    data, packets, _, encoder = encoded(records, count, LAYOUT_PLAIN)

    assert 1 == packets
    assert SUPER_BYTES + 54 == len(raw_packets(data)[0][1])
    assert (0, 1) == (encoder.checksums_completed, encoder.checksums_left)


@given(st.binary(max_size=300), st.integers(0, 5))
def test_any_bytes_are_refused_or_written(junk: bytes, count: int) -> None:
    """Of a hostile run nothing is counted, or all of it is written in whole blocks."""
    segmenter = Segmenter()
    encoder = WireSizeEncoder(LAYOUT_VIRTIO, segmenter)
    good, _ = super_packet()
    for run, number in ((junk, count), (good + junk, 1 + count)):
        before = segmenter.segments
        try:
            data, packets, stale = encoder.encode(memoryview(run), number, 0)
        except MalformedBlock:
            assert before == segmenter.segments
        else:
            assert packets == len(raw_packets(data))
            assert packets + stale >= number


def script() -> list[bytes]:
    """Small packets, super-packets and stale records in turn."""
    stale, count = run_of_records([bytes(60)], status=0)
    return [
        packets_frame(1, [b"\x01" * 60]),
        block_frame(2, *super_packet(size=4000)),
        block_frame(3, stale, count),
        block_frame(4, *super_packet(6, size=3000)),
        packets_frame(5, [b"\x05" * 60]),
    ]


FRAMES_IN_SCRIPT, RECORDS_IN_SCRIPT = 1 + 3 + 3 + 1, 5


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_kill_in_the_middle(tmp_path: Path, kind: str) -> None:
    """Killed at any place, inside a super-packet's frames too, the next process goes on: each frame is there once."""

    def opened(root: Path) -> Sink:
        if kind == "directory":
            return DirectorySink(root, Rotation(rotate_bytes=3000), wire_size=True)
        return single_file(root / "all.pcapng", wire_size=True)

    def agents() -> list[Agent]:
        return [Agent(agent_hello(), script())]

    with killed_after(1 << 30) as left:
        sink = opened(tmp_path / "whole")
        serve_all(sink, agents()[0])
        total = (1 << 30) - left[0]
    abandon(sink)
    wanted = written_packets(tmp_path / "whole")
    section = 200 if kind == "file" else 0
    assert FRAMES_IN_SCRIPT == len(wanted)
    for budget in range(section, total, 97):
        root = tmp_path / str(budget)
        assert crash_and_resume(lambda root=root: opened(root), agents(), budget)
        assert wanted == written_packets(root), f"killed after {budget} of {total} bytes"


def serve_all(sink: Sink | Any, agent: Agent) -> Registry:
    """All frames of an agent, each flushed."""
    registry = Registry(sink, "collector-1", "0.1")
    run, _ = registry.open(agent.hello)
    for data in agent.script:
        run.frame(parsed(data), 0.0)
        assert run.flush(0.0)
    return registry


@pytest.mark.parametrize("wire_size", [False, True])
def test_the_report_counts_records_and_frames(tmp_path: Path, wire_size: bool) -> None:
    """`received` counts records, `written` frames: more of them with the option, one for each sound record without."""
    registry = serve_all(DirectorySink(tmp_path, Rotation(), wire_size=wire_size), Agent(agent_hello(), script()))
    registry.close()
    counts = registry.report()["agents"]["vm-1"]

    assert (RECORDS_IN_SCRIPT, 1) == (counts["received"], counts["unsupported_gso"])
    assert (FRAMES_IN_SCRIPT if wire_size else RECORDS_IN_SCRIPT - 1) == counts["written"]
    assert (6 if wire_size else 0) == counts["segments"]
    assert (0, 0) == (counts["unverifiable"], counts["not_understood"])
    (place,) = [reader.recover(path.read_bytes(), from_last_mark=True) for path in tmp_path.rglob("*.pcapng")]
    assert [{0: counts["written"]}] == [run.written for run in place.runs.values()]


def test_standard_output_has_them_too() -> None:
    """`--write -` is cut as well."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    serve_all(standard_output(write_end, wire_size=True), Agent(agent_hello(), script())).close()
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert FRAMES_IN_SCRIPT == len(list(reader.packets(pipe.read())))
