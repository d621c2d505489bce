"""Runs into a directory of captures, a disk that is full, and what stands in the files."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from guestagent.collector.registry import Registry
from guestagent.collector.run import Run
from guestagent.collector.sinks import output, pcapng, reader
from guestagent.collector.sinks.directory import DirectorySink
from tests.fakes import agent_hello

OTHER_RUN = "fedcba9876543210" * 2


@contextmanager
def small_disk(room: int) -> Iterator[list[int]]:
    """A disk with so much room; the test may change it."""
    real, left = os.writev, [room]

    def writev(descriptor: int, batch: Sequence[bytes]) -> int:
        whole = b"".join(batch)[: left[0]]
        if not whole and any(batch):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(whole)
        return real(descriptor, [whole])

    with mock.patch.object(output.os, "writev", writev):
        yield left


# -- runs into a directory ------------------------------------------------------------------------------------------


def open_run(sink: DirectorySink, **changes: object) -> tuple[Registry, Run]:
    """A registry over the sink and a first run."""
    registry = Registry(sink, "collector-1", "0.1")
    run, _ = registry.open(agent_hello(**changes))  # type: ignore[arg-type]
    return registry, run


def packet(number: int, size: int = 60) -> bytes:
    """A frame that tells its number."""
    return number.to_bytes(4, "big") + bytes(size)


def numbers(path: Path) -> list[int]:
    """The numbers of the packets of one file."""
    return [int.from_bytes(row[-1][:4], "big") for row in reader.packets(path.read_bytes())]


def by_number(folder: Path) -> list[Path]:
    """The files of one run in the order in which they were begun."""
    return sorted(folder.glob("*.pcapng"), key=lambda path: int(path.stem.rpartition("-")[2]))


def comments(path: Path, kind: int, head: int) -> list[str]:
    """The comments of all blocks of one kind."""
    data = path.read_bytes()
    return [
        value.decode()
        for one, start, stop in reader.blocks(data)
        if one == kind
        for code, value in reader.options(data, start + 8 + head, stop - 4)
        if code == pcapng.OPTION_COMMENT
    ]
