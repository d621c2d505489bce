"""Every frame to several collectors: blocks come back once, in order, and the books of each collector close."""

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from math import inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from guestagent.agent import Agent
from guestagent.capture.engine import Capture, Wish
from guestagent.capture.source import RetiredBlock
from guestagent.config import RunConfig
from guestagent.desk import Desk
from guestagent.endpoint import Endpoint
from guestagent.governor.bucket import TokenBucket
from guestagent.links.replicate import ReplicateLink
from guestagent.links.stream import StreamLink
from guestagent.model import Exclusion
from guestagent.observe.rows import DESTINATION_REASONS, DESTINATION_ROWS
from guestagent.sharing import MOST_KEPT_FRACTION, Share, Sharing
from guestagent.steering import budgets_of
from guestagent.tapstream import frames
from guestagent.tapstream.fanout import AWAY, ENDED, LAGGING
from guestagent.tapstream.frames import Kind, ProtocolError
from guestagent.tapstream.hello import CollectorHello
from guestagent.tapstream.session import Backoff, Pending
from tests.fakes import EPOCH_NS, FakeSource, interface
from tests.streams import FakeCollector, SkewedLoop

COLLECTORS = 3
BLOCKS = 8


class WatchedRing(FakeSource):
    """Ends like a ring: what was given back is written over at once. Remembers how many stale records a block has."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stale_of: list[int] = []

    def fill(self, packets: int, stale: int, first_ns: int = EPOCH_NS) -> None:
        """A block, or a drop where there is no room."""
        if len(self.taken) + len(self.waiting) >= self.block_count:
            self.refuse(packets)
            return
        self.retire([bytes(60)] * packets, first_ns, stale)
        self.waiting[-1] = self.waiting[-1]._replace(number=len(self.stale_of))
        self.stale_of.append(stale)

    def release(self, block: RetiredBlock) -> None:
        """The kernel has it again."""
        super().release(block)
        block.memory[:] = bytes(len(block.memory))
        block.memory.release()


def desk_of(*sources: FakeSource) -> Desk:
    """A desk without filters."""
    return Desk(Capture(list(sources), {}, {}, Wish(), "ring", ""), "vm-1")


class FileCollector:
    """A collector that writes files: what it took it has, also after kill -9; it tells when it is asked."""

    def __init__(self, share: Share, name: str) -> None:
        self.share, self.name = share, name
        self.is_connected = False
        self.on_the_way: deque[tuple[Pending, bytes]] = deque()
        self.frames: dict[int, tuple[int, int]] = {}
        """(records, stale ones) by sequence."""
        self.held = self.place = 0
        """The last frame that it has, and the last that has passed it."""
        self.told = 0
        """The last frame that the agent knows it has."""

    def stale(self) -> dict[int, int]:
        """As an ACK tells it; interface 0 has them all."""
        return {0: sum(stale for _, stale in self.frames.values())}

    def connect(self) -> None:
        """Greet, as the collector's Run does."""
        hello = self.share.hello()
        answer = CollectorHello(self.name, "", self.held or None, self.stale())
        assert hello.acknowledged.get(self.name, 0) == self.told
        self.place = max(self.place, hello.first_sequence - 1)
        self.told = self.held
        self.on_the_way.clear()
        self.is_connected = True
        self.share.resumed(answer)

    def send(self) -> bool:
        """The agent writes one more frame into the connection."""
        pending = self.share.next_frame(0.0)
        if pending is not None:
            self.on_the_way.append((pending, bytes(pending.frame)))
        return pending is not None

    def receive(self) -> None:
        """Take one frame: it is the next one, and its memory is still what it was."""
        pending, sent = self.on_the_way.popleft()
        assert bytes(pending.frame) == sent, "a frame went back while it was being sent"
        assert pending.sequence == self.place + 1
        self.held = self.place = pending.sequence
        loan = pending.loan
        stale = loan.source.stale_of[loan.block.number] if loan else 0
        self.frames[pending.sequence] = (loan.records if loan else 0, stale)

    def acknowledge(self) -> None:
        """Say how far it has everything."""
        self.told = max(self.told, self.held)
        self.share.acknowledged(self.place, self.name, {"unsupported_gso": {"0": self.stale()[0]}})

    def lose_connection(self) -> bool:
        """What is on the way is lost."""
        was_connected, self.is_connected = self.is_connected, False
        self.on_the_way.clear()
        return was_connected

    def known(self) -> int:
        """Packets that the agent knows it has."""
        return sum(records - stale for at, (records, stale) in self.frames.items() if at <= self.told)


class Replicating(RuleBasedStateMachine):
    """Blocks come; collectors take, acknowledge, die, come back; the ring runs full."""

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

    @rule(at=st.integers(0, COLLECTORS - 1), sent=st.integers(0, 20), received=st.integers(0, 20), acks=st.booleans())
    def work(self, at: int, sent: int, received: int, acks: bool) -> None:
        """A connected collector takes frames and perhaps says so; one that is away comes back."""
        one = self.collectors[at]
        if not one.is_connected:
            one.connect()
        for _ in range(sent):
            one.send()
        for _ in range(min(received, len(one.on_the_way))):
            one.receive()
        if acks:
            one.acknowledge()

    @precondition(lambda self: any(one.is_connected for one in self.collectors))
    @rule(at=st.integers(0, COLLECTORS - 1), received=st.integers(0, 20))
    def die(self, at: int, received: int) -> None:
        """kill -9, after it took some frames more."""
        one = self.collectors[at]
        for _ in range(min(received, len(one.on_the_way))):
            one.receive()
        one.lose_connection()

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


def sharing_of(ring: WatchedRing, count: int = 2) -> tuple[Sharing, list[FileCollector]]:
    """A desk over this ring, and collectors that are connected."""
    sharing = Sharing(desk_of(ring), count)
    collectors = [FileCollector(share, f"c{at}") for at, share in enumerate(sharing.shares)]
    for one in collectors:
        one.connect()
    return sharing, collectors


def copy(one: FileCollector) -> None:
    """Everything that there is goes to a collector and is acknowledged."""
    while one.send():
        one.receive()
    one.acknowledge()


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


def test_counts_of_interfaces_that_are_not_there_are_not_kept(ring: WatchedRing) -> None:
    """What a collector counts of an interface that the run does not have changes no books, and takes no memory."""
    sharing, (one, _) = sharing_of(ring)
    one.share.acknowledged(0, "c0", {"unsupported_gso": {"99": 5}})

    assert (0, {0: 0}) == (sharing.describe(0)["delivered"], sharing.fanout.places[0].told_stale)


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


def test_reports_alone_are_bounded(ring: WatchedRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without traffic a collector that is away is owed a bounded number of reports."""
    monkeypatch.setattr("guestagent.sharing.MOST_KEPT_FRAMES", 10)
    sharing, (one, other) = sharing_of(ring)
    other.lose_connection()
    for _ in range(100):
        sharing.desk.window.add_report({})
        copy(one)
        sharing.relieve(lambda _: False)

    assert sharing.desk.kept_frames <= 10
    assert not any(sharing.describe(1)["lost_records"].values())


def test_each_copy_has_its_own_part_of_the_cap(ring: WatchedRing) -> None:
    """What one collector's connection spends is not the other's, and together they stay within the cap."""
    both = (Endpoint("tcp", "10.0.0.1", 4795), Endpoint("tcp", "10.0.0.2", 4795))
    config = RunConfig(to=both, mode="replicate", rate=2000.0, packets=100.0)
    budgets = budgets_of(config, 0, config.streams)
    sharing, (one, other) = sharing_of(ring)
    sharing.desk.gate.set_caps(0.0, budgets.bytes_per_second, inf)
    for share in (one.share, other.share):
        assert share.allowance(0.0) == 0
    assert sharing.desk.gate_opens_at < inf
    one.share.spent(1000)

    assert (1000.0, 50.0) == (budgets.bytes_per_second, budgets.packets_per_second)
    assert one.share.allowance(0.5) == 0
    assert other.share.allowance(0.5) == 40


def test_a_connection_stays_left_out_while_another_is_made_again_and_again() -> None:
    """However often the second collector is tried, the capture never sees the stream to the first."""
    left_out: list[tuple[Exclusion, ...]] = []
    desk = desk_of(WatchedRing(block_count=BLOCKS))
    desk._attach = lambda *_: left_out.append(tuple(desk._exclusions))  # type: ignore[method-assign]
    one, other = Sharing(desk, 2).shares
    stream = Exclusion(6, "10.0.0.1", 4795, 50000)
    one.exclude(stream)
    for port in range(50001, 50020):
        other.exclude(Exclusion(6, "10.0.0.2", 4795, port))

    assert all(stream in now for now in left_out)
    assert left_out[-1][-1].local_port == 50019


class Bench:
    """A replicating link to two collectors on 127.0.0.1."""

    def __init__(self) -> None:
        self.loop = SkewedLoop()
        self.ring = WatchedRing(block_count=BLOCKS)
        self.sharing = Sharing(desk_of(self.ring), 2)
        self.sharing.desk._attach = lambda *_: None  # type: ignore[method-assign]
        self.collectors = [FakeCollector(receive_bytes=4096) for _ in range(2)]
        self.link = ReplicateLink(
            [
                StreamLink([Endpoint("tcp", "127.0.0.1", one.port)], share, self.loop, None, Backoff(lambda: 0.0))
                for one, share in zip(self.collectors, self.sharing.shares, strict=True)
            ],
            self.sharing,
        )

    def turn(self, times: int = 1) -> None:
        """The agent's loop."""
        for _ in range(times):
            self.link.tick(self.loop.now())
            self.loop.run_once(0.002)
            self.link.pump(self.loop.now())

    def connect(self, *numbers: int, held: int | None = None) -> None:
        """Collectors accept and greet."""
        self.loop.skew += 1.0
        for at in numbers:
            self.turn(3)
            self.collectors[at].accept()
            while not self.collectors[at].heard:
                self.turn()
                self.collectors[at].hear()
            self.collectors[at].greet(held)
        self.turn(5)

    def close(self) -> None:
        """Give everything back."""
        self.link.close()
        for one in self.collectors:
            one.close_connection()
            one.listener.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Two collectors that have not accepted yet."""
    made = Bench()
    yield made
    made.close()


def test_the_stalled_connection_is_cut_and_made_again(bench: Bench) -> None:
    """A collector that stops reading is cut off in the middle of a frame; its next hello begins where it goes on."""
    bench.connect(0, 1)
    quick, stalled = bench.collectors
    assert bench.link.state.connected
    for number in range(1, BLOCKS):
        bench.ring.retire([bytes(900_000)])
        while number not in quick.sequences():
            bench.turn()
            quick.hear()
        quick.acknowledge(number)
        bench.turn(3)
    state = bench.link.state

    assert state.connected
    assert (1, [True, False]) == (state.reconnects, [one["serves"] for one in state.destinations])
    assert "left behind" in state.text
    assert bench.ring.held_blocks() <= BLOCKS // 2
    bench.connect(1, held=None)
    (hello,) = [frames.json.loads(text) for kind, _, text in stalled.heard if kind is Kind.HELLO]
    assert hello["first_sequence"] == bench.sharing.fanout.first_sequence > 1
    while BLOCKS - 1 not in stalled.sequences():
        bench.turn()
        stalled.hear()
    assert list(range(hello["first_sequence"], BLOCKS)) == stalled.sequences()


def test_status_and_metrics_have_the_books(bench: Bench) -> None:
    """Each destination of the link's state carries its books, and the tables of metrics read them."""
    bench.connect(0)
    rows = asdict(bench.link.state)["destinations"]
    read = {row.name: [row.value(one) for one in rows] for row in DESTINATION_ROWS}

    assert [{AWAY: 0, LAGGING: 0, ENDED: 0}] * 2 == [one["lost_records"] for one in rows]
    assert [0, 0] == read["guestagent_destination_delivered_records_total"]
    assert [0, 0] == read["guestagent_destination_in_flight_records"]
    assert [1, 0] == read["guestagent_destination_serves"]
    assert "lost_records" in {key for _, _, key in DESTINATION_REASONS}
