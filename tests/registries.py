"""A collector's registry without its server, and frames handed to its runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guestagent.collector.registry import Registry
from guestagent.collector.run import Run
from guestagent.collector.sinks.directory import DirectorySink, Rotation
from guestagent.collector.sinks.shared import standard_output
from tests.fakes import parsed


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry that writes into a directory."""
    made = Registry(DirectorySink(tmp_path, Rotation()), "collector-1", "0.1")
    yield made
    made.close()


@contextmanager
def nowhere() -> Iterator[Registry]:
    """A registry whose sink forgets."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    registry = Registry(standard_output(descriptor), "collector-1", "0.1")
    yield registry
    registry.close()
    os.close(descriptor)


def take(run: Run, data: bytes) -> bool:
    """Take one frame and flush."""
    run.frame(parsed(data), 0.0)
    return run.flush(0.0)
