"""When the governor wants to be asked, and how closely it looks meanwhile."""

from itertools import pairwise
from math import inf

import pytest

from guestagent.governor.limits import Budgets
from guestagent.governor.pace import (
    CALM_LOOKS_PER_SECOND,
    CROWDED_FILL,
    CROWDED_TICK_SECONDS,
    LEAST_TICK_SECONDS,
    PEEK_RECORDS,
    PEEK_SECONDS,
    PROBE_SECONDS,
    STEADY_TICK_SECONDS,
    TICK_SECONDS,
    Pace,
    State,
)
from guestagent.governor.predict import CostModel
from tests.plant import DEAR, Machine, simulate
from tests.traffic import FLOOD, LOADS, MICE

MODEL = CostModel()
BUDGET_CORES = 0.1
DEAR_RECORDS = next(n for n in range(10**6) if MODEL.price(n, 200 * n) > BUDGET_CORES * TICK_SECONDS)
"""Of 200 bytes, a tick's share of the budget."""


def paced(state: State, *, moved: bool = False, usual: int = 0) -> Pace:
    """After a tick at 10 s, and one before it in which so many records came in a tick's time."""
    pace = Pace(Budgets(bytes_per_second=inf), BUDGET_CORES, 0.0)
    pace.begin(10.0 - TICK_SECONDS, 0.0)
    if usual:
        pace.arrived(10.0, usual, 200 * usual, MODEL)
    pace.ticked(10.0, 0.0, state, MODEL, has_moved=moved)
    return pace


@pytest.mark.parametrize(
    "pace, seconds",
    [
        (paced(State.WHOLE, moved=True), TICK_SECONDS),
        (paced(State.WHOLE), STEADY_TICK_SECONDS),
        (paced(State.SHEDDING, moved=True), TICK_SECONDS),
        (paced(State.SHEDDING), STEADY_TICK_SECONDS),
        (paced(State.DOUBTING), LEAST_TICK_SECONDS),
        (paced(State.PROBING), PROBE_SECONDS),
    ],
    ids=["given-back", "whole", "moving", "steady", "doubting", "probing"],
)
def test_the_less_there_is_to_decide_the_later_the_next_tick(pace: Pace, seconds: float) -> None:
    """Each state has its wait."""
    assert pace.due_at == pytest.approx(10.0 + seconds)


def test_a_move_is_followed_by_a_few_close_ticks() -> None:
    """Four, and then those of limits that hold still: each takes CPU that the limits could have kept copies with."""
    pace, waits = paced(State.SHEDDING, moved=True), []
    now = 10.0
    for _ in range(6):
        waits.append(pace.due_at - now)
        now = pace.due_at
        pace.ticked(now, 0.0, State.SHEDDING, MODEL, has_moved=False)
    assert waits == pytest.approx([TICK_SECONDS] * 4 + [STEADY_TICK_SECONDS] * 2)


def test_a_tick_is_welcome_early() -> None:
    """Who is awake in the last third of a wait need not wake again for the tick; a tick that ends a look is on time."""
    for pace in (paced(State.WHOLE), paced(State.SHEDDING), paced(State.SHEDDING, moved=True)):
        wait_seconds = pace.due_at - 10.0
        assert 10.0 + 0.6 * wait_seconds < pace.early_at < pace.due_at
    for pace in (paced(State.DOUBTING), paced(State.PROBING)):
        assert pace.early_at == pace.due_at
    hurried = paced(State.WHOLE)
    hurried.arrived(10.0, 2 * DEAR_RECORDS, 400 * DEAR_RECORDS, MODEL)
    assert hurried.early_at == hurried.due_at


@pytest.mark.parametrize(
    "pace, after_seconds, records, is_hurried",
    [
        (paced(State.WHOLE), 0.0, 2 * DEAR_RECORDS, True),
        (paced(State.WHOLE), 0.1, 2 * DEAR_RECORDS, False),
        (paced(State.WHOLE), 0.4, 5 * DEAR_RECORDS, False),
        (paced(State.SHEDDING), 0.1, 2 * DEAR_RECORDS, False),
        (paced(State.SHEDDING), 0.1, 3 * DEAR_RECORDS, True),
        (paced(State.SHEDDING), 0.4, 5 * DEAR_RECORDS, False),
        (paced(State.SHEDDING, usual=4 * DEAR_RECORDS), 0.1, 9 * DEAR_RECORDS, False),
        (paced(State.SHEDDING, usual=4 * DEAR_RECORDS), 0.1, 11 * DEAR_RECORDS, True),
        (paced(State.SHEDDING, usual=4 * DEAR_RECORDS), 0.4, 20 * DEAR_RECORDS, False),
        (paced(State.PROBING), 0.04, 100 * DEAR_RECORDS, False),
    ],
)
def test_what_is_more_than_usual_brings_the_tick_forward(
    pace: Pace, after_seconds: float, records: int, is_hurried: bool
) -> None:
    """A copy is looked at when more came than usually by then, and than the budget has, whole or reduced; a probe at
    its end."""
    due = pace.due_at
    pace.arrived(10.0 + after_seconds, records, 200 * records, MODEL)

    assert pace.due_at == pytest.approx(10.0 + LEAST_TICK_SECONDS if is_hurried else due)


def test_a_ring_that_fills_is_looked_at_at_once() -> None:
    """An eighth of the ring more than at the last tick is reason enough for the next."""
    pace = paced(State.SHEDDING)
    pace.ring_filled(CROWDED_FILL)
    assert pace.due_at == pytest.approx(10.0 + STEADY_TICK_SECONDS)
    pace.ring_filled(CROWDED_FILL + 0.01)
    assert pace.due_at == pytest.approx(10.0 + CROWDED_TICK_SECONDS)


def looks(pace: Pace, every_seconds: float, blocks: int = 1) -> int:
    """In the second after 20 s, where blocks come so often."""
    return blocks * sum(pace.looks(20.0 + at * every_seconds, blocks) for at in range(round(1 / every_seconds)))


@pytest.mark.parametrize("every_seconds, blocks", [(0.001, 1), (PEEK_SECONDS, 1), (0.02, 1), (0.02, 3)])
def test_a_calm_tap_looks_at_no_more_than_its_share(every_seconds: float, blocks: int) -> None:
    """However many blocks come, a second's looks cost the same; after a pause they are a block's full number."""
    pace = paced(State.WHOLE)

    assert pace.looks(19.0, blocks) == PEEK_RECORDS
    assert looks(pace, every_seconds, blocks) <= CALM_LOOKS_PER_SECOND + blocks * PEEK_RECORDS


@pytest.mark.parametrize("pace", [paced(State.DOUBTING), paced(State.PROBING), paced(State.SHEDDING, moved=True)])
def test_who_doubts_looks_closely_and_not_for_ever(pace: Pace) -> None:
    """Where a decision hangs on it, the first looks after a tick are as deep as they may be."""
    found = [pace.looks(10.0 + at * 1.01 * PEEK_SECONDS, 1) for at in range(1, 9)]

    assert found[:4] == [PEEK_RECORDS] * 4
    assert max(found[4:]) < PEEK_RECORDS / 4


def test_a_surge_is_looked_at_closely_from_its_first_block() -> None:
    """What just arrived counts before anyone looks at it."""
    pace = paced(State.WHOLE)
    pace.looks(10.0, 1)
    pace.arrived(10.0 + 2 * PEEK_SECONDS, 2 * DEAR_RECORDS, 400 * DEAR_RECORDS, MODEL)

    assert pace.looks(10.0 + 2 * PEEK_SECONDS, 1) == PEEK_RECORDS


def test_many_flows_that_are_shed_are_asked_for_three_times_a_second() -> None:
    """Beside a constant swarm the ticks, with those of probes, are that few; none comes in a rush."""
    trace = simulate(LOADS["swarm"], DEAR, seconds=20)
    ticks = [at for at, _ in trace.limits if at >= 10]

    assert len(ticks) <= 35
    assert min(after - before for before, after in pairwise(ticks)) >= PROBE_SECONDS - 1e-6


def test_thinning_anew_makes_nobody_hurry() -> None:
    """A heavy flow that grows is thinned several times, at the pace of limits that hold still."""
    trace = simulate(lambda now: [(MICE, 1.0), (FLOOD, 0.2 + 0.1 * now)], Machine(), seconds=14)
    settled = trace.between(3, 14)

    assert len({one.heavy_fraction for one in settled}) >= 4
    assert {one.heavy for one in settled} == {tuple(FLOOD.keys)}
    assert len(settled) <= 2.5 * 11
