"""Reads back what we wrote: where a file is whole, how far each run came, and the packets for a summary. Pure.

Every length is checked; a file that ends inside a block is whole up to there.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

from guestagent.collector.sinks import pcapng

_WORD = Struct("<I")
_OPTION = Struct("<HH")
_PACKET = Struct("<IIIII")
_SECTION_LEAST_BYTES = 28
_MOST_MARK_BYTES = 4096
"""A mark of 64 interfaces takes 1,612 bytes."""
Buffer = bytes | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class RunPlace:
    """How far one run came in a file."""

    sequence: int
    indexes: dict[int, int]
    """Interface id -> index in the file."""
    stale: dict[int, int]
    """Stale records by interface id, over the whole run."""
    written: dict[int, int]
    """Packets by interface id, in this file, since the interface was described last."""
    tags: dict[int, int]
    """Interface id -> tag of that description."""


@dataclass(slots=True)
class Recovered:
    """How far one file can be trusted."""

    whole_bytes: int = 0
    """Up to here the file holds complete blocks, and every packet has its mark behind it."""
    described: int = 0
    """Interfaces described up to there."""
    runs: dict[bytes, RunPlace] = field(default_factory=dict)


def blocks(data: Buffer) -> Iterator[tuple[int, int, int]]:
    """(kind, start, stop) of each complete little-endian block from the beginning, until one is torn or odd."""
    offset, end = 0, len(data)
    while offset + pcapng.LEAST_BLOCK_BYTES <= end:
        kind, total = pcapng.BLOCK_HEAD.unpack_from(data, offset)
        stop = offset + total
        if total < pcapng.LEAST_BLOCK_BYTES or total & 3 or stop > end:
            return
        if _WORD.unpack_from(data, stop - 4)[0] != total:
            return
        yield kind, offset, stop
        offset = stop


def options(data: Buffer, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """(code, value) of an option list; ends quietly where it is broken."""
    while start + _OPTION.size <= stop:
        code, size = _OPTION.unpack_from(data, start)
        start += _OPTION.size
        if code == pcapng.OPTION_END or start + size > stop:
            return
        yield code, bytes(data[start : start + size])
        start += (size + 3) & ~3


def is_ours(data: Buffer) -> bool:
    """Does the file begin with a section header that guestagent wrote?"""
    for kind, start, stop in blocks(data):
        if kind != pcapng.SECTION or stop - start < _SECTION_LEAST_BYTES:
            return False
        return any(value.startswith(b"guestagent") for _, value in options(data, start + 24, stop - 4))
    return False


def recover(data: Buffer, *, from_last_mark: bool) -> Recovered:
    """Say how far one of our own files can be trusted, walking it from its beginning or from its last mark.

    From the last mark is as good where one run has the file to itself, and reads no more than the torn end.
    """
    start = _last_mark(data) if from_last_mark else 0
    found = Recovered(whole_bytes=start)
    has_unmarked_packets = False
    with memoryview(data) as view, view[start:] as tail:
        for kind, at, stop in blocks(tail):
            if kind == pcapng.PACKET:
                has_unmarked_packets = True
                continue
            if kind == pcapng.INTERFACE:
                found.described += 1
            elif kind == pcapng.OURS and _note_mark(found, tail, at, stop, start):
                has_unmarked_packets = False
            if not has_unmarked_packets:
                found.whole_bytes = start + stop
    return found


def _last_mark(data: Buffer) -> int:
    """Offset of the last mark that lies where it says; 0 where there is none."""
    raw = data if not isinstance(data, memoryview) else data.tobytes()
    end = len(raw)
    while (magic := raw.rfind(pcapng.MARK_MAGIC, 0, end)) > 0:
        start = magic - pcapng.BLOCK_HEAD.size
        tail = raw[max(0, start) : start + _MOST_MARK_BYTES]
        kind, _, stop = next(blocks(tail), (0, 0, 0))
        if start >= 0 and kind == pcapng.OURS and _note_mark(Recovered(), tail, 0, stop, start):
            return start
        end = magic
    return 0


def _note_mark(found: Recovered, data: Buffer, start: int, stop: int, base: int) -> bool:
    """Take a custom block at `base + start` for a mark if it is one."""
    place = start + pcapng.BLOCK_HEAD.size + pcapng.OURS_HEAD.size
    entries = place + pcapng.MARK_PLACE.size
    if stop - 4 < entries or (stop - 4 - entries) % pcapng.MARK_INTERFACE.size:
        return False
    magic, run_id = pcapng.OURS_HEAD.unpack_from(data, start + pcapng.BLOCK_HEAD.size)
    sequence, offset, described = pcapng.MARK_PLACE.unpack_from(data, place)
    if (magic, offset) != (pcapng.MARK_MAGIC, base + start):
        return False
    rows = list(pcapng.MARK_INTERFACE.iter_unpack(data[entries : stop - 4]))
    found.described = described
    found.runs[run_id] = RunPlace(
        sequence,
        indexes={row[0]: row[2] for row in rows},
        stale={row[0]: row[3] for row in rows if row[3]},
        written={row[0]: row[4] for row in rows},
        tags={row[0]: row[1] for row in rows if row[1]},
    )
    return True


def reports(data: Buffer) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(run_id, REPORT) of every report block: counters, limits in force and why; a broken one is left out."""
    for kind, start, stop in blocks(data):
        text = start + pcapng.BLOCK_HEAD.size + pcapng.OURS_HEAD.size
        if kind != pcapng.OURS or text > stop - 4:
            continue
        magic, run_id = pcapng.OURS_HEAD.unpack_from(data, start + pcapng.BLOCK_HEAD.size)
        if magic != pcapng.REPORT_MAGIC:
            continue
        try:
            value = json.loads(bytes(data[text : stop - 4]))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield run_id, value


def mark_at(data: Buffer, start: int, stop: int) -> tuple[bytes, int] | None:
    """(run id, sequence) of the custom block at `start` of a whole file, None where it is no mark."""
    found = Recovered()
    if not _note_mark(found, data, start, stop, 0):
        return None
    ((run_id, place),) = found.runs.items()
    return run_id, place.sequence


def packets(data: Buffer) -> Iterator[tuple[int, int, int, memoryview]]:
    """(interface index, time in ns, original bytes, frame) of every packet block."""
    view = memoryview(data)
    for kind, start, stop in blocks(view):
        if kind != pcapng.PACKET or stop - start < 32:
            continue
        index, high, low, captured, original = _PACKET.unpack_from(view, start + 8)
        frame = start + 8 + _PACKET.size
        if frame + captured <= stop - 4:
            yield index, high << 32 | low, original, view[frame : frame + captured]
