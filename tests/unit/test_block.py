"""Records of a block: what is written is walked again, and no bytes at all make the walk leave its buffer."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestagent.capture.block import (
    FRAME_OFFSET_BYTES,
    STATUS_USER,
    STATUS_VLAN_TPID_VALID,
    STATUS_VLAN_VALID,
    VIRTIO,
    BlockWriter,
    MalformedBlock,
    Record,
    stale_count,
    walk,
)
from tests.fakes import EPOCH_NS, run_of_records

LEAST_RECORD_BYTES = 59
"""Up to the packet type at +58: less than that is no record."""
NEXT, SEC, NSEC, SNAPLEN, LENGTH, STATUS, MAC = 0, 4, 8, 12, 16, 20, 24
"""Offsets in struct tpacket3_hdr of <linux/if_packet.h>."""

U32 = st.integers(0, 2**32 - 1)


def patched(records: bytes, *changes: tuple[int, int]) -> bytes:
    """The run with other 32-bit words at these offsets (16-bit at MAC)."""
    made = bytearray(records)
    for offset, value in changes:
        struct.pack_into("<H" if offset == MAC else "<I", made, offset, value)
    return bytes(made)


def check_bounds(records: bytes, count: int) -> list[Record | None]:
    """Walk to the end or to MalformedBlock; what came lies inside, in order and apart."""
    got: list[Record | None] = []
    try:
        got.extend(walk(records, count))
    except MalformedBlock:
        return got
    assert count == len(got)
    border = 0
    for record in got:
        if record is not None:
            _, captured, original, status, start, stop, _, _, kind = record
            assert border <= start <= stop <= len(records)
            assert captured == stop - start <= original
            assert status & STATUS_USER
            assert 0 <= kind < 256
            border = stop
    return got


@given(st.binary(max_size=700), U32 | st.integers(0, 12))
def test_any_bytes_are_records_or_malformed(data: bytes, count: int) -> None:
    """Any bytes with any count give records inside the buffer, apart from each other, or MalformedBlock."""
    check_bounds(data, count)


@settings(max_examples=400)
@given(
    st.lists(st.binary(max_size=80), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=6),
    st.integers(-2, 2),
    st.integers(0, 200),
)
def test_mutated_runs_stay_inside(packets: list[bytes], changes: list[tuple[int, int]], more: int, cut: int) -> None:
    """A sound run with some bytes changed, a count that lies or an end cut off never reaches outside or overlaps."""
    records, count = run_of_records(packets)
    made = bytearray(records[: max(0, len(records) - cut)] if cut < 100 else records)
    for offset, value in changes:
        if made:
            made[offset % len(made)] = value
    check_bounds(bytes(made), max(0, count + more))


@given(st.lists(st.tuples(U32, U32, U32, U32, U32, st.integers(0, 0xFFFF)), min_size=1, max_size=8))
def test_any_header_fields_stay_inside(rows: list[tuple[int, int, int, int, int, int]]) -> None:
    """Headers of any content where records may stand never lead outside the buffer."""
    data = b"".join(
        struct.pack("<IIIIIIH", step % 200, sec, nsec, captured % 100, original % 100, 1, mac % 120) + bytes(94)
        for step, sec, nsec, captured, original, mac in rows
    )
    check_bounds(data, len(rows))


@given(
    st.lists(
        st.tuples(
            st.binary(max_size=100),
            st.integers(0, (2**32 - 1) * 10**9),
            st.integers(0, 5000),
            st.integers(0, 4),
            st.none() | st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
        ),
        max_size=8,
    )
)
def test_written_records_are_walked(rows: list[tuple[bytes, int, int, int, tuple[int, int] | None]]) -> None:
    """What BlockWriter adds, walk yields: time, lengths, direction, VLAN tag and the bytes."""
    memory = bytearray(4096)
    writer = BlockWriter(memory, 24)
    for frame, time_ns, cut, kind, vlan in rows:
        assert writer.add(frame, time_ns, original_bytes=len(frame) + cut, packet_type=kind, vlan=vlan)
    records = memory[writer.start : writer.end]
    vlan_status = STATUS_VLAN_VALID | STATUS_VLAN_TPID_VALID
    expected = [
        (time_ns, len(frame), len(frame) + cut, STATUS_USER | (vlan_status if vlan else 0), *(vlan or (0, 0)), kind)
        for frame, time_ns, cut, kind, vlan in rows
    ]

    walked = [record for record in walk(records, writer.count) if record is not None]

    assert expected == [(*record[:4], *record[6:]) for record in walked]
    assert [row[0] for row in rows] == [bytes(records[record[4] : record[5]]) for record in walked]
    assert 0 == writer.start % 8 == writer.end % 8 == len(records) % 8
    assert (rows[0][1] if rows else 0) == writer.first_ns


def test_the_virtio_header_stands_before_the_frame() -> None:
    """The ten bytes of struct virtio_net_hdr lie right in front of the frame, in every record."""
    headers = [VIRTIO.pack(1, 1, 54, 1448, 34, 16), VIRTIO.pack(0, 0, 0, 0, 0, 0)]
    memory = bytearray(1024)
    writer = BlockWriter(memory, 0)
    for header in headers:
        writer.add(b"frame", EPOCH_NS, virtio=header)
    starts = [record[4] for record in walk(memory[writer.start : writer.end], 2) if record]

    assert headers == [bytes(memory[writer.start + at - 10 : writer.start + at]) for at in starts]


def test_a_full_block_takes_nothing_more() -> None:
    """A record for which there is no room is refused and changes no byte."""
    memory = bytearray(512)
    writer = BlockWriter(memory, 24)
    assert writer.add(bytes(100), EPOCH_NS)
    before = bytes(memory), writer.end, writer.count

    assert not writer.add(bytes(512), EPOCH_NS)
    assert before == (bytes(memory), writer.end, writer.count)
    assert writer.add(bytes(512 - writer.end - FRAME_OFFSET_BYTES), EPOCH_NS)
    assert 512 == writer.end


@given(
    st.lists(st.tuples(st.booleans(), st.binary(min_size=LEAST_RECORD_BYTES, max_size=90)), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_stale_records_are_none_whatever_they_hold(rows: list[tuple[bool, bytes]], status: int) -> None:
    """A record without STATUS_USER is None, however mad its other fields are; its neighbours are sound, and counted."""
    frames = [b"whole frame %d" % at for at in range(len(rows))]
    records, count = run_of_records(frames)
    made = bytearray(records)
    offsets = [record[4] - FRAME_OFFSET_BYTES for record in walk(records, count) if record]
    for (is_stale, junk), offset in zip(rows, offsets, strict=True):
        if is_stale:
            made[offset + 4 : offset + LEAST_RECORD_BYTES] = junk[4:LEAST_RECORD_BYTES]
            struct.pack_into("<I", made, offset + STATUS, status & ~STATUS_USER)

    walked = [record and bytes(made[record[4] : record[5]]) for record in walk(bytes(made), count)]

    assert [None if is_stale else frame for (is_stale, _), frame in zip(rows, frames, strict=True)] == walked
    assert walked.count(None) == stale_count(memoryview(made), 0, count)


TWO, _ = run_of_records([bytes(60), bytes(60)])
STEP = 152


@pytest.mark.parametrize(
    "records, count",
    [
        pytest.param(b"", 1, id="nothing"),
        pytest.param(TWO[: LEAST_RECORD_BYTES - 1], 1, id="half a header"),
        pytest.param(TWO, 3, id="more records than there are"),
        pytest.param(TWO, 2**32 - 1, id="four billion records"),
        pytest.param(patched(TWO, (NEXT, 0)), 2, id="a next offset of 0"),
        pytest.param(patched(TWO, (NEXT, STEP - 1)), 2, id="a next offset into the frame"),
        pytest.param(patched(TWO, (NEXT, 2**32 - 1)), 2, id="a next offset beyond the end"),
        pytest.param(patched(TWO, (NEXT, 0), (STATUS, 0)), 2, id="a stale record that stays in place"),
        pytest.param(patched(TWO, (NEXT, 58), (STATUS, 0)), 2, id="a stale record shorter than a header"),
        pytest.param(patched(TWO, (MAC, 67)), 2, id="a frame inside the header"),
        pytest.param(patched(TWO, (MAC, 0xFFFF)), 2, id="a frame beyond the end"),
        pytest.param(patched(TWO, (SNAPLEN, 2**32 - 1), (LENGTH, 2**32 - 1)), 1, id="a frame of 4 GB"),
        pytest.param(patched(TWO, (SNAPLEN, 61)), 2, id="more captured than there was"),
        pytest.param(patched(TWO, (NSEC, 10**9)), 2, id="a second of a billion nanoseconds"),
    ],
)
def test_malformed_runs_are_refused(records: bytes, count: int) -> None:
    """Each lie about a length or an offset is MalformedBlock."""
    with pytest.raises(MalformedBlock):
        list(walk(records, count))


def test_the_last_next_offset_means_nothing() -> None:
    """The kernel leaves the last record's next offset as it was: whatever it says, the run is sound."""
    for value in (0, 1, 2**32 - 1):
        made = bytearray(TWO)
        struct.pack_into("<I", made, STEP, value)
        assert 2 == len([record for record in walk(bytes(made), 2) if record])
