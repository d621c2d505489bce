"""A collector of several whose disk is full, or that is started again: its books are what it has."""

import pytest

from guestagent.sharing import Sharing
from guestagent.tapstream.hello import CollectorHello
from tests.replicas import BLOCKS, FileCollector, WatchedRing, copy, sharing_of


@pytest.fixture
def ring() -> WatchedRing:
    """One interface's ring."""
    return WatchedRing(block_count=BLOCKS)


def give_up(ring: WatchedRing, sharing: Sharing, quick: FileCollector, slow: FileCollector) -> None:
    """Half a ring and more goes to the quick one alone."""
    for _ in range(BLOCKS // 2 + 1):
        ring.fill(3, 1)
        copy(quick)
        sharing.relieve(lambda _: slow.lose_connection())


def test_what_waits_for_a_full_disk_is_counted_when_it_is_written(ring: WatchedRing) -> None:
    """A collector took frames and has no room for them, and is given up meanwhile: once it has written them after all,
    its books say so, and what the file has is what the agent says that it has.
    """
    sharing, (quick, slow) = sharing_of(ring)
    slow.disk.is_full = True
    for _ in range(3):
        ring.fill(3, 1)
        slow.send()
    slow.receive(2)
    for _ in range(2):
        give_up(ring, sharing, quick, slow)
        slow.connect()
        slow.acknowledge()
    assert (0, 0) == (sharing.describe(1)["delivered"], slow.known())
    slow.disk.is_full = False
    slow.receive(0)
    slow.acknowledge()
    copy(slow)
    books = sharing.describe(1)

    assert {1, 2} < set(slow.frames)
    assert 3 not in slow.frames
    assert (slow.known(), 0) == (books["delivered"], books["in_flight"])
    assert books["delivered"] + sum(books["lost_records"].values()) == sharing.desk.tap.refresh().delivered


def test_what_waits_for_a_full_disk_dies_with_its_collector(ring: WatchedRing) -> None:
    """Killed before it could write them, it lacks the frames that were given up, and its next hello says so."""
    sharing, (quick, slow) = sharing_of(ring)
    slow.disk.is_full = True
    ring.fill(3, 1)
    slow.send()
    slow.receive()
    give_up(ring, sharing, quick, slow)
    slow.connect()
    slow.restart()
    slow.connect()
    copy(slow)
    books = sharing.describe(1)

    assert 1 not in slow.frames
    assert (slow.known(), 0) == (books["delivered"], books["in_flight"])


def test_a_collector_can_not_claim_to_wait_for_ever(ring: WatchedRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says with each hello that it took everything leaves no more in doubt than an honest one could."""
    monkeypatch.setattr("guestagent.tapstream.fanout.MOST_WAITING", 5)
    sharing, (quick, slow) = sharing_of(ring)
    for _ in range(4):
        ring.fill(3, 0)
        while slow.send():
            pass
        give_up(ring, sharing, quick, slow)
        slow.share.resumed(CollectorHello("c1", "", None, {}, 2**63 - 1))

    assert len(sharing.fanout.places[1].doubts) == 5


def test_a_collector_that_forgets_counts_stale_records_anew(ring: WatchedRing) -> None:
    """What collectors without files had counted before they were started again stays in their books and the ledger."""
    sharing, collectors = sharing_of(ring)
    for _ in range(2):
        ring.fill(3, 1)
        for one in collectors:
            copy(one)
            one.restart(forgets=True)
            one.connect()
    ledger = sharing.desk.tap.refresh()

    assert (2, 6) == (ledger.unsupported_gso, ledger.delivered)
    assert [6, 6] == [sharing.describe(at)["delivered"] for at in range(2)]
    assert [0, 0] == [sharing.describe(at)["in_flight"] for at in range(2)]
