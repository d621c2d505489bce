"""What is kept for a collector that lags or is away: half a ring, so many bytes beside it, and no long look at it."""

import pytest

from guestagent.governor.bucket import TokenBucket
from guestagent.tapstream.fanout import AWAY, ENDED, LAGGING, PENDING_BYTES
from tests.replicas import BLOCKS, WatchedRing, copy, sharing_of


@pytest.fixture
def ring() -> WatchedRing:
    """One interface's ring."""
    return WatchedRing(block_count=BLOCKS)


def test_half_a_ring_is_kept_and_no_more(ring: WatchedRing) -> None:
    """One that takes nothing is cut off when half the ring waits for it alone, and loses the older half of that."""
    sharing, (quick, slow) = sharing_of(ring)
    cuts = []
    for _ in range(BLOCKS // 2 + 1):
        ring.fill(3, 0)
        copy(quick)
        sharing.relieve(lambda at: cuts.append(at) or slow.lose_connection())
    books = sharing.describe(1)

    assert [1] == cuts
    assert {AWAY: 0, LAGGING: 9, ENDED: 0} == books["lost_records"]
    assert (0, 6, 2) == (books["delivered"], books["in_flight"], ring.held_blocks())
    assert slow.share.hello().first_sequence == 4
    assert quick.share.hello().acknowledged == {"c0": 5}


def test_nobody_is_cut_off_where_nobody_keeps_up(ring: WatchedRing) -> None:
    """With all collectors away the ring holds everything, as with one."""
    sharing, collectors = sharing_of(ring)
    for _ in range(BLOCKS):
        ring.fill(3, 0)
        for one in collectors:
            one.send()
    sharing.relieve(lambda at: pytest.fail(f"{at} was cut off"))

    assert ring.held_blocks() == BLOCKS
    assert not any(sum(sharing.describe(at)["lost_records"].values()) for at in range(2))


def test_only_where_records_are_stale_is_a_block_walked(ring: WatchedRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the ring dropped, what is given up is not walked before a collector counted stale records."""
    walked = []
    monkeypatch.setattr("guestagent.sharing.stale_records", lambda loan: walked.append(loan) or 1)
    sharing, (one, other) = sharing_of(ring)
    other.lose_connection()
    ring.refuse(5)
    for stale in (0, 1):
        for _ in range(BLOCKS // 2 + 1):
            ring.fill(3, stale)
            copy(one)
            sharing.relieve(lambda _: False)
        assert bool(walked) is bool(stale)


def test_reports_are_bounded_in_bytes(ring: WatchedRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without traffic a collector that is away is owed so many bytes of reports, few long ones or many short ones."""
    monkeypatch.setattr("guestagent.sharing.MOST_KEPT_BYTES", 20_000)
    sharing, (one, other) = sharing_of(ring)
    other.lose_connection()
    for text, fewest, most in (("", 10, 20_000 // PENDING_BYTES), ("x" * 9000, 1, 2)):
        for _ in range(100):
            sharing.desk.window.add_report({"limits": text})
            copy(one)
            sharing.relieve(lambda _: False)
        assert fewest <= sharing.desk.kept_frames <= most
        assert sharing.fanout.beside_bytes <= 20_000

    assert not any(sharing.describe(1)["lost_records"].values())
    other.connect()
    copy(other)
    assert sharing.fanout.beside_bytes == 0


def test_runs_of_blocks_are_bounded_in_bytes(ring: WatchedRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap lets a block out in runs of one packet each: what tells of them is bounded, though the ring has room."""
    monkeypatch.setattr("guestagent.sharing.MOST_KEPT_BYTES", 10 * PENDING_BYTES)
    sharing, (one, _) = sharing_of(ring)
    sharing.desk.gate.packets = TokenBucket(25.0)
    ring.fill(100, 0)
    for now in range(40):
        while one.share.next_frame(float(now)):
            pass
        one.share.acknowledged(sharing.fanout.places[0].sent, "c0", {})
        sharing.relieve(lambda _: False)

    assert sharing.describe(0)["delivered"] >= 40
    assert 1 <= sharing.desk.kept_frames <= 10
