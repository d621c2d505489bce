"""Who has what: random breaks, kills and resumes never lose, repeat or reorder a frame."""

from collections import deque
from itertools import count, takewhile

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from guestagent.tapstream.frames import Kind, decode_json
from guestagent.tapstream.session import ACK_SECONDS, MOST_REPORTS, AckClock, Backoff, ReceiveState, SendWindow
from tests.fakes import parsed


class TwoEnds(RuleBasedStateMachine):
    """An agent's window and a collector with memory and disk, joined by a wire that breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.window = SendWindow()
        self.connected = False
        self.wire: deque[int] = deque()
        self.acks: deque[int] = deque()
        self.state = ReceiveState()
        self.memory: list[int] = []
        self.disk: list[int] = []
        self.settled: list[int] = []
        self.added = 0

    @property
    def safe(self) -> int:
        """The last sequence on the disk."""
        return self.disk[-1] if self.disk else 0

    @rule(kind=st.sampled_from([Kind.BLOCK, Kind.INFO]))
    def add(self, kind: Kind) -> None:
        """The agent numbers a frame."""
        self.window.add(kind, lambda sequence: sequence.to_bytes(8, "little"), loan=self.added)
        self.added += 1

    @rule()
    def add_report(self) -> None:
        """The agent reports; beyond the bound this adds nothing."""
        before = self.window.next_sequence
        self.window.add_report({"n": self.added})
        self.added += self.window.next_sequence - before

    @precondition(lambda self: self.connected)
    @rule(number=st.integers(1, 5))
    def send(self, number: int) -> None:
        """The link asks for frames and sends them."""
        for _ in range(number):
            if pending := self.window.send_next():
                self.wire.append(pending.sequence)

    @precondition(lambda self: self.wire)
    @rule(number=st.integers(1, 5))
    def receive(self, number: int) -> None:
        """The collector takes frames into memory."""
        for _ in range(min(number, len(self.wire))):
            sequence = self.wire.popleft()
            if self.state.is_new(sequence):
                self.memory.append(sequence)
                self.state.hold(sequence)

    @rule()
    def flush(self) -> None:
        """The collector's disk takes what is in memory; an ACK goes out where a connection stands."""
        self.disk += self.memory
        self.memory.clear()
        if self.connected:
            self.acks.append(self.safe)

    @precondition(lambda self: self.acks)
    @rule()
    def acknowledge(self) -> None:
        """An ACK reaches the agent."""
        self.settled += [one.sequence for one in self.window.acknowledge(self.acks.popleft())]

    @rule()
    def break_wire(self) -> None:
        """The connection breaks: what was under way is gone."""
        self.connected = False
        self.wire.clear()
        self.acks.clear()

    @rule()
    def kill_collector(self) -> None:
        """kill -9: memory is gone, the next process begins where the disk ends."""
        self.break_wire()
        self.memory.clear()
        self.state = ReceiveState(self.safe)

    @precondition(lambda self: not self.connected)
    @rule()
    def resume(self) -> None:
        """A new connection: the hello answers with what is safe."""
        self.connected = True
        self.settled += [one.sequence for one in self.window.acknowledge(self.safe)]
        self.window.rewind()

    @invariant()
    def nothing_is_lost_twice_or_out_of_order(self) -> None:
        """The disk holds 1, 2, 3 and so on; what is settled is on it; the window holds exactly the rest."""
        assert list(range(1, len(self.disk) + 1)) == self.disk
        assert list(range(1, len(self.settled) + 1)) == self.settled
        assert len(self.settled) <= len(self.disk)
        assert self.added == len(self.settled) + len(self.window)
        assert len(self.settled) + 1 == self.window.first_sequence
        assert 0 == self.state.gaps
        assert 0 <= self.window.unsent <= len(self.window)

    def teardown(self) -> None:
        """In the end, on one good connection, everything arrives."""
        self.break_wire()
        self.resume()
        self.send(len(self.window))
        self.receive(len(self.wire))
        self.flush()
        self.acknowledge()
        assert list(range(1, self.added + 1)) == self.disk == self.settled
        assert 0 == len(self.window) == self.window.unsent


TwoEnds.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestTwoEnds = TwoEnds.TestCase


def sent(window: SendWindow) -> list[int]:
    """Sequences of everything that is unsent, now sent."""
    return [pending.sequence for pending in iter(window.send_next, None)]


def test_reports_beyond_the_bound_renew_the_last() -> None:
    """With 64 REPORTs waiting, another replaces the newest under its number; blocks go on being numbered."""
    window = SendWindow()
    for number in range(MOST_REPORTS + 10):
        window.add_report({"n": number})
    window.add(Kind.BLOCK, lambda _: b"block")
    window.add_report({"n": 99})

    reports = [parsed(bytes(one.frame)) for one in iter(window.send_next, None) if one.kind is Kind.REPORT]

    assert list(range(1, MOST_REPORTS + 1)) == [frame.sequence for frame in reports]
    assert [*range(MOST_REPORTS - 1), 99] == [decode_json(frame)["n"] for frame in reports]
    assert MOST_REPORTS + 1 == len(window)


def test_facts_that_change_while_nobody_listens_take_no_room() -> None:
    """Of each interface the latest waits; what was given to a connection, or has packets behind it, stays as it was."""
    window = SendWindow()
    for change in range(1000):
        window.add_info(change % 2, {"change": change})
    assert infos(window) == [998, 999]

    assert window.send_next()
    window.rewind()
    window.add_info(0, {"change": 1000})
    window.add_info(1, {"change": 1001})
    assert infos(window) == [998, 1001, 1000]

    window.add(Kind.BLOCK, lambda _: b"")
    window.add_info(1, {"change": 1002})
    window.add_report({})
    window.add_info(1, {"change": 1003})
    assert infos(window) == [998, 1001, 1000, 1003]


def infos(window: SendWindow) -> list[int]:
    """What the INFO frames say, in their order."""
    frames = [parsed(one.frame) for one in window._frames if one.kind == Kind.INFO]
    return [decode_json(frame)["change"] for frame in frames]


def test_a_report_under_way_is_not_changed() -> None:
    """A REPORT that this connection was given keeps its bytes; a later one is added as soon as there is room."""
    window = SendWindow()
    for number in range(MOST_REPORTS):
        window.add_report({"n": number})
    given_out = [bytes(pending.frame) for pending in iter(window.send_next, None)]
    window.add_report({"n": 99})
    window.rewind()

    assert given_out == [bytes(pending.frame) for pending in iter(window.send_next, None)]
    window.acknowledge(1)
    window.add_report({"n": 100})
    assert [MOST_REPORTS + 1] == sent(window)


def test_acknowledgements_settle_in_order_and_once() -> None:
    """An ACK settles everything up to it, oldest first; a late or repeated one settles nothing."""
    window = SendWindow()
    for loan in "abcd":
        window.add(Kind.BLOCK, lambda _: b"", loan)
    assert [1, 2, 3] == [pending.sequence for _ in range(3) if (pending := window.send_next())]

    assert ["a", "b"] == [pending.loan for pending in window.acknowledge(2)]
    assert [] == window.acknowledge(2) == window.acknowledge(0)
    assert [4] == sent(window)
    assert ["c", "d"] == [pending.loan for pending in window.abandon()]
    assert (0, 5, 5) == (len(window), window.next_sequence, window.first_sequence)


@given(st.lists(st.integers(1, 12), max_size=30))
def test_gaps_and_duplicates_are_counted(sequences: list[int]) -> None:
    """Every number up to the held one was taken or is a gap; every other arrival is a duplicate."""
    state, taken = ReceiveState(), []
    for sequence in sequences:
        if state.is_new(sequence):
            state.hold(sequence)
            taken.append(sequence)

    assert sorted(set(taken)) == taken
    assert state.held_sequence == len(taken) + state.gaps
    assert len(sequences) == len(taken) + state.duplicates


@given(st.lists(st.tuples(st.integers(0, 300_000), st.floats(0, 0.05)), min_size=1, max_size=20))
def test_an_ack_is_due_within_20_ms_or_an_eighth_of_the_ring(arrivals: list[tuple[int, float]]) -> None:
    """From the first frame on an ACK is due no later than 20 ms, at once beyond an eighth of the ring, never sooner."""
    clock, now = AckClock(1 << 20), 100.0
    assert clock.due_at is None
    first, total = now, 0
    for size, pause in arrivals:
        clock.received(size, now)
        total += size
        assert clock.due_at is not None
        assert clock.due_at == now if total >= (1 << 20) // 8 else clock.due_at == first + ACK_SECONDS
        now += pause
        if clock.due_at <= now:
            clock.sent()
            assert clock.due_at is None
            first, total = now, 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80), st.floats(0, 1e6))
def test_backoff_keeps_its_bounds(fractions: list[float], start: float) -> None:
    """Waits double from 0.1 s, stay within 1 s for ten seconds and 5 s later, and jitter takes off half at most."""
    draws = iter(fractions)
    backoff, now, full = Backoff(lambda: next(draws)), start, 0.1
    for fraction in fractions:
        most = 1.0 if now - start < 10 else 5.0
        wait = backoff.failed(now)
        assert min(full, most) / 2 <= wait <= min(full, most)
        assert abs(min(full, most) * (0.5 + fraction / 2) - wait) < 1e-9
        now, full = now + wait, min(full * 2, 5.0)
    backoff.served(progressed=True)


def test_backoff_begins_anew() -> None:
    """After a success the next outage is tried quickly again; the waits of one without jitter are known."""
    backoff = Backoff(lambda: 1.0)
    times = takewhile(lambda now: now < 25, count(0.0, 0.0))
    now, waits = next(times), []
    while now < 25:
        waits.append(backoff.failed(now))
        now += waits[-1]

    assert [0.1, 0.2, 0.4, 0.8] == waits[:4]
    assert {1.0} == set(waits[4:13])
    assert {5.0} == set(waits[14:])
    backoff.served(progressed=True)
    assert 0.1 == backoff.failed(now)
