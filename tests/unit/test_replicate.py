"""Every frame to several collectors: blocks come back once, in order, and the books of each collector close."""

from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from guestagent.capture.engine import Capture, Wish
from guestagent.capture.source import RetiredBlock
from guestagent.desk import Desk
from guestagent.sharing import MOST_KEPT_FRACTION, Share, Sharing
from guestagent.tapstream.hello import CollectorHello
from guestagent.tapstream.session import Pending
from tests.fakes import EPOCH_NS, FakeSource, interface

COLLECTORS = 3
BLOCKS = 8


class ScribblingRing(FakeSource):
    """Ends like a ring: what was given back is written over at once."""

    def release(self, block: RetiredBlock) -> None:
        """The kernel has it again."""
        super().release(block)
        block.memory[:] = bytes(len(block.memory))

    @property
    def is_full(self) -> bool:
        """Has the kernel no block left?"""
        return len(self.taken) + len(self.waiting) >= self.block_count


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


class NumberedRing(ScribblingRing):
    """Remembers how many stale records each block has."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stale_of: dict[int, int] = {}

    def fill(self, packets: int, stale: int, first_ns: int = EPOCH_NS) -> None:
        """A block, or a drop where there is no room."""
        if self.is_full:
            self.refuse(packets)
            return
        self.retire([bytes(60)] * packets, first_ns, stale)
        number = len(self.stale_of)
        self.waiting[-1] = self.waiting[-1]._replace(number=number)
        self.stale_of[number] = stale


class Replicating(RuleBasedStateMachine):
    """Blocks come; collectors take, acknowledge, die, come back; the ring runs full."""

    def __init__(self) -> None:
        super().__init__()
        self.rings = [NumberedRing(interface(at, f"eth{at}"), block_count=BLOCKS) for at in range(2)]
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
        stale = sum(sum(ring.stale_of.values()) for ring in self.rings)
        assert not any(ring.taken or ring.waiting for ring in self.rings)
        assert (0, stale) == (ledger.in_flight, ledger.unsupported_gso)
        assert not any(one.in_flight for one in self.desk.tap.ledgers.values())
        for at, one in enumerate(self.collectors):
            books = self.sharing.describe(at)
            assert books["delivered"] == one.known()
            assert books["delivered"] + sum(books["lost_records"].values()) == ledger.delivered


TestReplicating = Replicating.TestCase
TestReplicating.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
