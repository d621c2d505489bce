"""Several sources as one: blocks by time, and a ledger whose identity holds whatever happens to them."""

from collections import deque
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from guestagent.capture.bpf import REJECT_ALL
from guestagent.capture.tap import Loan, Tap
from guestagent.model import InterfaceLedger, total
from tests.fakes import EPOCH_NS, FakeSource, interface

SOURCES = st.integers(0, 2)


class Accounting(RuleBasedStateMachine):
    """Records come, are taken, delivered or lost; a collector tells of stale ones; the ring overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.sources = [FakeSource(interface(at, f"eth{at}"), block_count=1000) for at in range(3)]
        self.tap = Tap(self.sources)
        self.loans: deque[Loan] = deque()
        self.stale_in: dict[int, deque[int]] = {at: deque() for at in range(3)}
        self.told = dict.fromkeys(range(3), 0)
        self.refused = dict.fromkeys(range(3), 0)
        self.real_stale = dict.fromkeys(range(3), 0)
        self.retired = dict.fromkeys(range(3), 0)
        self.collector = "a"
        self.clock = EPOCH_NS

    @rule(at=SOURCES, packets=st.integers(0, 5), stale=st.integers(0, 3))
    def retire(self, at: int, packets: int, stale: int) -> None:
        """The kernel retires a block."""
        self.clock += 1000
        self.sources[at].retire([bytes(60)] * packets, self.clock, stale)
        self.stale_in[at].append(stale)
        self.real_stale[at] += stale
        self.retired[at] += packets

    @rule(at=SOURCES, count=st.integers(1, 9))
    def overflow(self, at: int, count: int) -> None:
        """The ring is full."""
        self.sources[at].refuse(count)
        self.refused[at] += count

    @rule()
    def take(self) -> None:
        """The link asks for a block."""
        if loan := self.tap.take():
            self.loans.append(loan)

    @precondition(lambda self: self.loans)
    @rule(number=st.integers(1, 4))
    def deliver(self, number: int) -> None:
        """An ACK settles the oldest, and tells how many of the records were stale so far; perhaps twice."""
        settled = [self.loans.popleft() for _ in range(min(number, len(self.loans)))]
        self.tap.settle([None, *settled], delivered=True)
        for loan in settled:
            self.told[loan.source.interface.id] += self.stale_in[loan.source.interface.id].popleft()
        for _ in range(2):
            self.tap.note(self.collector, "unsupported_gso", {**self.told, 77: 5})

    @invariant()
    def the_identity_holds(self) -> None:
        """captured = delivered + dropped + unsupported + in flight, and what is in flight is in the ring."""
        whole = self.tap.refresh()
        for at, source in enumerate(self.sources):
            ledger = self.tap.ledgers[at]
            on_the_way = sum(block.records for block in source.waiting) + sum(block.records for block in source.taken)
            assert ledger.captured == source.captured
            assert ledger.unsupported_gso == self.told[at]
            untold = self.real_stale[at] - self.told[at]
            assert ledger.dropped_by_ring == self.refused[at] + untold
            assert ledger.in_flight == on_the_way - untold
        assert whole.captured == sum(source.captured for source in self.sources)

    def teardown(self) -> None:
        """At the end whatever is left is lost, and nothing is in flight."""
        self.tap.settle(self.loans, delivered=False)
        self.tap.abandon_rest(capped=False)
        self.tap.refresh()
        for at, source in enumerate(self.sources):
            ledger = self.tap.ledgers[at]
            assert 0 == ledger.in_flight, ledger
            assert self.refused[at] == ledger.dropped_by_ring
            assert self.real_stale[at] == ledger.unsupported_gso
            assert self.retired[at] == ledger.delivered + ledger.lost_on_link
            assert 0 == source.held_blocks()


Accounting.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestAccounting = Accounting.TestCase


@given(st.lists(st.lists(st.integers(0, 50), max_size=6).map(sorted), min_size=1, max_size=4))
def test_blocks_come_in_order_of_time(times: list[list[int]]) -> None:
    """Sources whose blocks are ordered are merged in order of each block's first packet."""
    sources = [FakeSource(interface(at), block_count=100) for at in range(len(times))]
    for source, row in zip(sources, times, strict=True):
        for first_ns in row:
            source.retire([bytes(60)], first_ns)
    tap = Tap(sources)
    taken = list(iter(tap.take, None))

    assert sorted(chain.from_iterable(times)) == [block.first_ns for block in (loan.block for loan in taken)]
    assert all(source.held_blocks() == len(row) for source, row in zip(sources, times, strict=True))


def test_bytes_are_those_of_the_wire() -> None:
    """wire_bytes leaves out record headers; delivered bytes are those of the records, captured those of the blocks."""
    source = FakeSource()
    source.retire([bytes(1000)] * 10)
    tap = Tap([source])
    loan = tap.take()
    assert loan is not None
    size = loan.end - loan.start
    tap.settle([loan], delivered=True)

    assert 10_000 <= tap.wire_bytes <= 10_000 + 10 * 8 + 100
    assert (loan.block.ring_bytes, size) == (tap.ledgers[0].captured_ring_bytes, tap.ledgers[0].delivered_bytes)


def test_a_second_collector_counts_for_itself() -> None:
    """Stale records are counted per collector: after a change of collectors no count is taken twice or lost."""
    source = FakeSource()
    source.retire([bytes(60)] * 2, stale=3)
    source.retire([bytes(60)] * 2, stale=4)
    tap = Tap([source])
    for collector, count in (("a", 3), ("b", 4)):
        tap.settle([tap.take()], delivered=True)
        tap.note(collector, "unsupported_gso", {0: count})
    ledger = tap.refresh()

    assert (4, 7, 0, 0) == (ledger.delivered, ledger.unsupported_gso, ledger.dropped_by_ring, ledger.in_flight)


def test_the_fullest_ring_counts() -> None:
    """held_fraction is that of the source with the most blocks on loan."""
    sources = [FakeSource(interface(0), 4), FakeSource(interface(1), 4)]
    tap = Tap(sources)
    assert 0.0 == tap.held_fraction()
    for _ in range(2):
        sources[1].retire([bytes(60)])
        tap.take()
    assert 0.5 == tap.held_fraction()
    assert 2 << 20 == tap.ring_bytes


def test_every_source_is_told() -> None:
    """Filters and the end reach each source."""
    sources = [FakeSource(interface(at)) for at in range(2)]
    tap = Tap(sources)
    tap.reject_all()
    tap.close()

    assert [[REJECT_ALL]] * 2 == [source.programs for source in sources]
    assert all(source.is_closed for source in sources)


@given(st.lists(st.builds(InterfaceLedger, *[st.integers(0, 99)] * 8), max_size=5))
def test_sums_of_ledgers(ledgers: list[InterfaceLedger]) -> None:
    """The sum of ledgers is that of each counter, and of what is in flight."""
    whole = total(ledgers).as_dict()

    assert all(whole[key] == sum(one.as_dict()[key] for one in ledgers) for key in whole)
    assert {
        "captured",
        "delivered",
        "capped",
        "dropped_by_ring",
        "unsupported_gso",
        "lost_on_link",
        "in_flight",
    } <= set(whole)
