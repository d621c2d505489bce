"""`guestagent merge`: the files of several collectors as one, each packet once.

A run that went from one collector to another may have left frames at both: sent to the first, not acknowledged in time,
sent again to the second. The marks tell: the packets before a mark are those of its run and sequence.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.sinks.output import Output, open_file
from guestagent.collector.sinks.track import section_of
from guestagent.errors import ConfigError, GuestagentError

_PLACE = Struct("<III")
"""Interface index and the two halves of the time, behind a packet block's head."""
_LEAST_PACKET_BYTES = 32
_FLUSH_BYTES = 4 << 20


class Chunk(NamedTuple):
    """The packets of one frame. Chunks are in order of their first packet's time."""

    first_ns: int
    run_id: bytes
    sequence: int
    file: int
    packets: tuple[tuple[int, int], ...]
    """Where each block begins and ends."""


class Source:
    """One file: its chunks, and the descriptions of its interfaces."""

    def __init__(self, path: str, number: int, stack: ExitStack) -> None:
        self._path, self._number = path, number
        self.interfaces: list[bytes] = []
        try:
            file = stack.enter_context(Path(path).open("rb"))  # noqa: SIM115 - the stack closes it
            mapped = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{path} can't be read: {reason}; leave it out") from error
        self.data = stack.enter_context(memoryview(mapped))
        if not reader.is_ours(self.data):
            raise ConfigError(f"{path} is no capture of guestagent collect: its packets have no marks; leave it out")

    def chunks(self) -> Iterator[Chunk]:
        """Every frame that has its mark; what stands behind the last one was acknowledged by nobody."""
        packets: list[tuple[int, int]] = []
        has_marks = False
        for kind, start, stop in reader.blocks(self.data):
            if kind == pcapng.INTERFACE:
                self.interfaces.append(bytes(self.data[start:stop]))
            elif kind == pcapng.PACKET:
                self._check(start, stop)
                packets.append((start, stop))
            elif kind == pcapng.OURS and (mark := reader.mark_at(self.data, start, stop)):
                first_ns = self._time_ns(packets[0][0]) if packets else 0
                yield Chunk(first_ns, *mark, self._number, tuple(packets))
                packets, has_marks = [], True
        if packets and not has_marks:
            raise ConfigError(f"{self._path} has packets without marks, as what was merged before: leave it out")

    def _check(self, start: int, stop: int) -> None:
        if stop - start < _LEAST_PACKET_BYTES or self._index(start) >= len(self.interfaces):
            raise ConfigError(
                f"{self._path} is broken: the packet block at byte {start} is of no interface; leave it out"
            )

    def _index(self, start: int) -> int:
        index, _, _ = _PLACE.unpack_from(self.data, start + pcapng.BLOCK_HEAD.size)
        return int(index)

    def _time_ns(self, start: int) -> int:
        _, high, low = _PLACE.unpack_from(self.data, start + pcapng.BLOCK_HEAD.size)
        return int(high << 32 | low)


def merge(files: Sequence[str], output: str) -> str:
    """Write one file from several; a sentence on what came together. Raises ConfigError, RunError."""
    with ExitStack() as stack:
        sources = [Source(path, number, stack) for number, path in enumerate(files)]
        frames: dict[tuple[bytes, int], Chunk] = {}
        twice = 0
        for source in sources:
            for chunk in source.chunks():
                known = frames.get((chunk.run_id, chunk.sequence))
                twice += len(known.packets) and len(chunk.packets) if known else 0
                if known is None or not known.packets:  # a new page repeats the last mark, without packets
                    frames[chunk.run_id, chunk.sequence] = chunk
        count = _write(sources, sorted(frames.values()), output)
    missing = _missing(frames)
    return (
        f"{count} packets in {output}; {twice} were there twice, {missing} frames of the runs are in none of the files"
    )


def _missing(frames: dict[tuple[bytes, int], Chunk]) -> int:
    """Numbers between a run's first and last frame that no file holds."""
    bounds: dict[bytes, tuple[int, int, int]] = {}
    for run_id, sequence in frames:
        low, high, held = bounds.get(run_id, (sequence, sequence, 0))
        bounds[run_id] = min(low, sequence), max(high, sequence), held + 1
    return sum(high - low + 1 - held for low, high, held in bounds.values())


def _write(sources: Sequence[Source], chunks: Sequence[Chunk], output: str) -> int:
    path = Path(output)
    try:
        out = open_file(path, exclusive=True)
    except FileExistsError:
        raise ConfigError(f"{output} exists: choose another -o") from None
    try:
        out.write(section_of(f"merged from {len(sources)} files"))
        indexes: dict[bytes, int] = {}
        for source in sources:
            for description in source.interfaces:
                if description not in indexes:
                    indexes[description] = len(indexes)
                    out.write(description)
        count = _copy(sources, chunks, indexes, out)
        if not out.flush():
            raise ConfigError(f"{output} can't be written: {out.blocked_by}; choose another -o")
    except GuestagentError:
        os.unlink(path)
        raise
    finally:
        out.close()
    return count


def _copy(sources: Sequence[Source], chunks: Sequence[Chunk], indexes: dict[bytes, int], out: Output) -> int:
    count, waiting = 0, out.size
    for chunk in chunks:
        source = sources[chunk.file]
        for start, stop in chunk.packets:
            block = bytearray(source.data[start:stop])
            index, high, low = _PLACE.unpack_from(block, pcapng.BLOCK_HEAD.size)
            _PLACE.pack_into(block, pcapng.BLOCK_HEAD.size, indexes[source.interfaces[index]], high, low)
            out.write(bytes(block))
            count += 1
        if out.size - waiting > _FLUSH_BYTES:
            waiting = out.size
            if not out.flush():
                raise ConfigError(f"{out.blocked_by}: choose another -o")
    return count
