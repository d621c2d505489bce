"""The local link: frames are written and acknowledged, a full disk delays them, a broken one ends the run."""

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from guestagent.collector.embedded import EmbeddedCollector
from guestagent.errors import RunError
from guestagent.links.local import MOST_FRAMES_PER_TURN, LocalLink
from tests.captures import numbers, packet, small_disk
from tests.fakes import FakeOwner


@pytest.fixture
def local(tmp_path: Path) -> Iterator[tuple[LocalLink, FakeOwner, EmbeddedCollector]]:
    """A link straight into files."""
    owner = FakeOwner()
    collector = EmbeddedCollector(str(tmp_path), 0, 0.0, 0)
    yield LocalLink(str(tmp_path), collector, owner, 0.0), owner, collector
    collector.close()


def numbers_in(folder: Path) -> list[int]:
    """The packets of all files below."""
    return [number for path in folder.rglob("*.pcapng") for number in numbers(path)]


def test_a_local_link_writes_and_acknowledges(
    local: tuple[LocalLink, FakeOwner, EmbeddedCollector], tmp_path: Path
) -> None:
    """A few frames each turn go to the file and are settled when they are there; more wait for the next turn."""
    link, owner, _ = local
    count = MOST_FRAMES_PER_TURN + 3
    for number in range(count):
        owner.queue([packet(number)])

    assert link.pump(0.0)
    assert list(range(1, MOST_FRAMES_PER_TURN + 1)) == owner.settled
    assert not link.pump(0.0)
    assert list(range(1, count + 1)) == owner.settled
    assert list(range(count)) == numbers_in(tmp_path)
    assert float("inf") == link.deadline()


def test_a_local_link_waits_for_a_full_disk(
    local: tuple[LocalLink, FakeOwner, EmbeddedCollector], tmp_path: Path
) -> None:
    """While the disk is full nothing is settled or taken, the owner hears why once, and then all is written once."""
    link, owner, _ = local
    with small_disk(500):
        for number in range(20):
            owner.queue([packet(number)])
        now = 0.0
        while link.pump(now):
            pass
        settled, unsent = list(owner.settled), owner.window.unsent
        for _ in range(5):
            now += 0.06
            assert not link.pump(now)
            assert now < link.deadline() <= now + 0.1
        assert (settled, unsent) == (owner.settled, owner.window.unsent)
        assert [(False, "the collector can't write: No space left on device; the ring holds on")] == owner.changes[1:]
        assert not link.state.connected
    while link.pump(now + 1.0):
        pass

    assert list(range(1, 21)) == owner.settled
    assert list(range(20)) == numbers_in(tmp_path)
    assert (True, "writing again") == owner.changes[-1]


def test_a_full_disk_that_breaks_is_the_fault_of_a_pump(
    local: tuple[LocalLink, FakeOwner, EmbeddedCollector],
) -> None:
    """The agent expects a fault of the capture where it pumps, and closes its ledger: no retry raises one elsewhere."""
    link, owner, _ = local
    owner.queue([packet(1)])
    with small_disk(100):
        assert not link.pump(0.0)
    assert link.is_blocked
    with mock.patch("guestagent.collector.sinks.output.os.writev", side_effect=OSError(5, "Input/output error")):
        link.tick(link.deadline())
        with pytest.raises(RunError, match="the capture can't be written: Input/output error"):
            link.pump(link.deadline())
    assert [] == owner.settled


def test_a_broken_disk_ends_the_run(local: tuple[LocalLink, FakeOwner, EmbeddedCollector]) -> None:
    """An error that no waiting cures is one sentence, and nothing is settled."""
    link, owner, _ = local
    owner.queue([packet(1)])
    with (
        mock.patch("guestagent.collector.sinks.output.os.writev", side_effect=OSError(5, "Input/output error")),
        pytest.raises(RunError, match="the capture can't be written: Input/output error"),
    ):
        link.pump(0.0)
    assert [] == owner.settled
