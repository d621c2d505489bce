"""What several unit tests begin with: a collector on a socket, an agent's link, collectors as processes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Rig
from tests.streams import Bench
from tests.workers import Collector


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A collector that writes below `captures`."""
    made = Rig(tmp_path / "captures")
    yield made
    made.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An agent's end and a collector's."""
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Collector]]:
    """Starts collectors that end with the test."""
    started: list[Collector] = []

    def begin(*arguments: str, **options: Any) -> Collector:
        started.append(Collector(tmp_path, *arguments, **options))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
