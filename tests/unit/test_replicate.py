"""Every frame to several collectors: blocks come back once, in order, and the books of each collector close."""

from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from guestagent.agent import Agent
from guestagent.config import RunConfig
from guestagent.endpoint import Endpoint
from guestagent.governor.bucket import TokenBucket
from guestagent.links.replicate import ReplicateLink
from guestagent.sharing import MOST_KEPT_FRACTION, Sharing
from guestagent.steering import budgets_of
from guestagent.tapstream.fanout import AWAY, ENDED
from guestagent.tapstream.frames import ProtocolError
from guestagent.tapstream.hello import CollectorHello
from tests.fakes import EPOCH_NS, interface
from tests.replicas import BLOCKS, FileCollector, WatchedRing, copy, desk_of, sharing_of

COLLECTORS = 3


class Replicating(RuleBasedStateMachine):
    """Blocks come; collectors take, acknowledge, die, come back; the ring runs full, and disks do."""

    def __init__(self) -> None:
        super().__init__()
        self.rings = [WatchedRing(interface(at, f"eth{at}"), block_count=BLOCKS) for at in range(2)]
        self.desk = desk_of(*self.rings)
        self.sharing = Sharing(self.desk, COLLECTORS)
        self.collectors = [FileCollector(share, f"c{at}") for at, share in enumerate(self.sharing.shares)]
        self.clock = EPOCH_NS

    @rule(at=st.integers(0, 1), packets=st.integers(1, 4), stale=st.integers(0, 2), blocks=st.integers(1, BLOCKS))
    def capture(self, at: int, packets: int, stale: int, blocks: int) -> None:
        """The kernel retires some blocks."""
        for _ in range(blocks):
            self.clock += 1000
            self.rings[at].fill(packets, 0 if at else stale, self.clock)

    @rule()
    def report(self) -> None:
        """A second is over."""
        self.desk.window.add_report({})

    @rule(
        at=st.integers(0, COLLECTORS - 1),
        unheard=st.integers(0, 2),
        sent=st.integers(0, 20),
        received=st.integers(0, 20),
        acks=st.booleans(),
    )
    def work(self, at: int, unheard: int, sent: int, received: int, acks: bool) -> None:
        """A connected collector takes frames and perhaps says so; one that is away comes back, perhaps by the second
        hello that it hears, and the agent gave up the connection of the first.
        """
        one = self.collectors[at]
        if not one.is_connected:
            for _ in range(unheard):
                one.hear()
            one.connect()
        for _ in range(sent):
            one.send()
        one.receive(received)
        if acks:
            one.acknowledge()

    @rule(at=st.integers(0, COLLECTORS - 1), is_full=st.booleans())
    def fill_disk(self, at: int, is_full: bool) -> None:
        """A disk has no room, or has some again."""
        self.collectors[at].disk.is_full = is_full

    @precondition(lambda self: any(one.is_connected for one in self.collectors))
    @rule(at=st.integers(0, COLLECTORS - 1), received=st.integers(0, 20), is_killed=st.booleans())
    def die(self, at: int, received: int, is_killed: bool) -> None:
        """The connection breaks after some frames more came through, by kill -9 perhaps."""
        one = self.collectors[at]
        if one.is_connected:
            one.receive(received)
        one.lose_connection()
        if is_killed:
            one.restart()

    @rule()
    def relieve(self) -> None:
        """What the link does each turn."""
        self.sharing.relieve(lambda at: self.collectors[at].lose_connection())
        assert self.desk.tap.kept_fraction() <= MOST_KEPT_FRACTION

    @invariant()
    def the_books_are_sound(self) -> None:
        """Nothing is counted twice, in the ledger and for each collector; what is owed lies in ring and window."""
        ledger = self.desk.tap.refresh()
        assert 0 <= ledger.in_flight
        for at, one in enumerate(self.collectors):
            books = self.sharing.describe(at)
            assert books["delivered"] == one.known()
            assert books["in_flight"] >= 0

    def teardown(self) -> None:
        """After the end every block is back, and each collector has, or is counted to lack, what was delivered."""
        self.sharing.finish()
        self.desk.abandon()
        ledger = self.desk.tap.refresh()
        stale = sum(sum(ring.stale_of) for ring in self.rings)
        assert not any(ring.taken or ring.waiting for ring in self.rings)
        assert (0, stale) == (ledger.in_flight, ledger.unsupported_gso)
        assert not any(one.in_flight for one in self.desk.tap.ledgers.values())
        for at, one in enumerate(self.collectors):
            books = self.sharing.describe(at)
            assert books["delivered"] == one.known()
            assert books["delivered"] + sum(books["lost_records"].values()) == ledger.delivered


TestReplicating = Replicating.TestCase
TestReplicating.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.fixture
def ring() -> WatchedRing:
    """One interface's ring."""
    return WatchedRing(block_count=BLOCKS)


def test_a_block_waits_for_the_slower_one(ring: WatchedRing) -> None:
    """The ledger counts what one collector has; the block goes back when the other has it, too."""
    sharing, (quick, slow) = sharing_of(ring)
    ring.fill(3, 0)
    copy(quick)
    assert (3, 1, 1) == (sharing.desk.tap.refresh().delivered, ring.held_blocks(), sharing.desk.kept_frames)
    assert not sharing.desk.is_settled

    copy(slow)
    assert (3, 0, 0) == (sharing.desk.tap.refresh().delivered, ring.held_blocks(), sharing.desk.kept_frames)
    assert sharing.desk.is_settled


def test_stale_records_that_different_collectors_missed(ring: WatchedRing) -> None:
    """Two collectors that each lack a block with stale records: the ledger has all of these once, and closes."""
    sharing, (one, other) = sharing_of(ring)
    for lucky, unlucky in ((one, other), (other, one)):
        unlucky.lose_connection()
        for _ in range(BLOCKS // 2 + 1):
            ring.fill(3, 1)
            copy(lucky)
        sharing.relieve(lambda _: False)
        unlucky.connect()
        copy(unlucky)
    sharing.finish()
    ledger = sharing.desk.tap.refresh()

    assert (10, 30, 0) == (ledger.unsupported_gso, ledger.delivered, ledger.in_flight)
    for at in range(2):
        books = sharing.describe(at)
        assert (30, 0) == (books["delivered"] + books["lost_records"][AWAY], books["in_flight"])
        assert books["lost_records"][AWAY] > 0


def test_an_acknowledgement_of_what_was_never_sent_is_refused(ring: WatchedRing) -> None:
    """A collector that claims frames which only the other one was sent is cut off, and no block goes back."""
    _, (one, other) = sharing_of(ring)
    ring.fill(3, 0)
    copy(one)
    with pytest.raises(ProtocolError, match="acknowledges frame 1, which was never sent"):
        other.share.acknowledged(1, "c1", {})
    with pytest.raises(ProtocolError, match="which was never sent"):
        other.share.resumed(CollectorHello("c1", "", 7, {}))

    assert ring.held_blocks() == 1


def test_an_acknowledgement_may_be_ahead_of_the_connection(ring: WatchedRing) -> None:
    """A collector whose disk was full acknowledges what an earlier connection brought: what follows it is sent next."""
    sharing, (one, other) = sharing_of(ring)
    for _ in range(3):
        ring.fill(1, 0)
    copy(one)
    while other.send():
        pass
    other.share.resumed(CollectorHello("c1", "", None, {}))
    assert other.send()
    other.share.acknowledged(3, "c1", {})
    assert not other.send()
    ring.fill(1, 0)
    again = other.share.next_frame(0.0)

    assert again is not None
    assert (4, 3) == (again.sequence, sharing.describe(1)["delivered"])


def test_an_answer_that_nobody_heard_claims_nothing_later(ring: WatchedRing) -> None:
    """One that stood still finds two hellos, and only its second answer arrives: what it never took is lost for it."""
    sharing, (quick, slow) = sharing_of(ring)
    for _ in range(2):
        ring.fill(3, 0)
    assert [True, True] == [slow.send(), slow.send()]
    slow.receive()
    for _ in range(2 * BLOCKS):
        copy(quick)
        sharing.relieve(lambda _: slow.lose_connection())
        ring.fill(3, 0)
    slow.hear()
    slow.connect()
    books = sharing.describe(1)

    assert (1, 3) == (len(slow.frames), books["delivered"])
    assert sum(books["lost_records"].values()) == 3 * (slow.share.hello().first_sequence - 2)


def test_counts_of_interfaces_that_are_not_there_are_not_kept(ring: WatchedRing) -> None:
    """What a collector counts of an interface that the run does not have changes no books, and takes no memory."""
    sharing, (one, _) = sharing_of(ring)
    one.share.acknowledged(0, "c0", {"unsupported_gso": {"99": 5}})

    assert (0, {}) == (sharing.describe(0)["delivered"], sharing.fanout.places[0].told_stale)


def test_a_hold_holds_what_another_has_already(ring: WatchedRing) -> None:
    """While the loop detector looks, no collector is sent anything, lest that comes back and looks like traffic."""
    sharing, (one, other) = sharing_of(ring)
    ring.fill(3, 0)
    copy(one)
    sharing.desk.is_held = True
    assert not other.send()

    sharing.desk.is_held = False
    assert other.send()


def test_the_first_that_may_go_on_wakes_the_agent(ring: WatchedRing) -> None:
    """The cap on packets, which all wait for, does not put off what one collector's part of the bytes allows before."""
    sharing, (one, _) = sharing_of(ring)
    sharing.desk.gate_opens_at = 0.25
    sharing.desk.gate.packets = TokenBucket(1.0)
    sharing.desk.gate.packets.spend(1)
    assert not one.send()

    assert sharing.desk.gate_opens_at == 0.25


def test_at_the_end_the_books_are_closed_before_the_ring_is_given_up(ring: WatchedRing) -> None:
    """A block of which one run is kept for a collector, and the rest waits for a cap: it is read, then it goes back."""
    sharing, (quick, _) = sharing_of(ring)
    sharing.desk.gate.packets = TokenBucket(25.0)
    ring.fill(3, 1)
    assert [True, False] == [quick.send(), quick.send()]
    quick.share.acknowledged(1, "c0", {})
    agent = Agent.__new__(Agent)
    agent._desk, agent._link, agent._config = sharing.desk, ReplicateLink([], sharing), RunConfig()
    agent._stop_reason, agent._failure = "stopped by a signal", ""
    agent.snapshot = lambda: sharing.desk.tap.refresh().as_dict()  # type: ignore[method-assign]
    agent.finish()
    ledger = sharing.desk.tap.refresh()

    assert (1, 2, 1, 0) == (ledger.delivered, ledger.capped, ledger.unsupported_gso, ledger.in_flight)
    assert [1, 0] == [sharing.describe(at)["delivered"] for at in range(2)]
    assert sharing.describe(1)["lost_records"][ENDED] == 1


def test_what_collectors_remark_stands_side_by_side(ring: WatchedRing) -> None:
    """The remark of one is not wiped out by the other's acknowledgement."""
    sharing, (one, other) = sharing_of(ring)
    one.share.acknowledged(0, "c0", {"note": "disk\nfull"})
    other.share.acknowledged(0, "c1", {})
    assert "disk\\nfull" in sharing.desk.collector_note

    one.share.acknowledged(0, "c0", {})
    assert sharing.desk.collector_note == ""


def test_each_copy_has_its_own_part_of_the_cap(ring: WatchedRing) -> None:
    """What one collector's connection spends is not the other's, and together they stay within the cap."""
    both = (Endpoint("tcp", "10.0.0.1", 4795), Endpoint("tcp", "10.0.0.2", 4795))
    config = RunConfig(to=both, mode="replicate", rate=2000.0, packets=100.0)
    budgets = budgets_of(config, 0)
    sharing, (one, other) = sharing_of(ring)
    sharing.desk.gate.set_caps(0.0, budgets.bytes_per_second, inf)
    for share in (one.share, other.share):
        assert share.allowance(0.0) == 0
    assert sharing.desk.gate_opens_at < inf
    one.share.spent(1000)

    assert (1000.0, 50.0) == (budgets.bytes_per_second, budgets.packets_per_second)
    assert one.share.allowance(0.5) == 0
    assert other.share.allowance(0.5) == 40
