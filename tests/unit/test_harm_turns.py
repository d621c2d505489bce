"""The bench tells what the agent's turns make of a request's latency, whatever the host's mood."""

import random

import pytest

from guestagent.errors import RunError
from tests.bench.harm import turns
from tests.bench.harm.book import Answer, Answers
from tests.bench.harm.capture import Phase
from tests.bench.harm.turns import Look, Turn

PID = 77
TOLD = """\
 10.000000100: sched:sched_switch: prev_comm=x prev_pid=77 prev_prio=130 prev_state=S ==> next_comm=y next_pid=5 next_prio=120
 10.099900000: sched:sched_waking: comm=a b pid=77 prio=130 target_cpu=000
 10.100000200: sched:sched_switch: prev_comm=swapper/0 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=a b next_pid=77 next_prio=130
 10.100500000: sched:sched_switch: prev_comm=a b prev_pid=77 prev_prio=130 prev_state=R ==> next_comm=python next_pid=5 next_prio=120
 10.100600000: sched:sched_switch: prev_comm=python prev_pid=5 prev_prio=120 prev_state=S ==> next_comm=a b next_pid=77 next_prio=130
 10.101000000: sched:sched_switch: prev_comm=a b prev_pid=77 prev_prio=130 prev_state=S ==> next_comm=swapper/0 next_pid=0 next_prio=120
 10.200000000: sched:sched_switch: prev_comm=swapper/0 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=a b next_pid=77 next_prio=130
"""  # noqa: E501 - as perf says it


def even_turns(count: int, every_seconds: float = 0.04, seconds: float = 0.001) -> list[Turn]:
    """As a calm agent has them."""
    return [Turn(at * every_seconds, at * every_seconds + seconds) for at in range(count)]


def requests(seconds: float, slow: list[Turn] | None = None) -> Answers:
    """A thousand a second, of 100 µs and a long tail; those due within `slow` turns take a millisecond more."""
    rng, found = random.Random(3), []
    for number in range(int(1000 * seconds)):
        due = (number + rng.random()) / 1000
        is_slow = any(one.start <= due <= one.end for one in slow or ())
        found.append(Answer(due, 100e-6 + rng.expovariate(1 / 30e-6) + 1e-3 * is_slow, True))
    return Answers(found)


def test_a_turn_lasts_from_waking_to_sleeping() -> None:
    """Waiting for the processor is part of it, and who took it in between; what began before the record or ends after
    it is not told."""
    assert turns.turns_of(TOLD, PID) == [Turn(10.0999, 10.101)]
    assert turns.turns_of(TOLD, 78) == []


def test_a_request_is_beside_a_turn_by_its_due_time() -> None:
    """From a little before the turn to a little after it, however long it took."""
    due = [0.9996, 0.9998, 1.0005, 1.0029, 1.0031]
    answers = Answers([Answer(at, 0.5, True) for at in due])

    beside, away = turns.split(answers, [Turn(1.0, 1.001)])

    assert [one.due for one in beside.found] == due[1:4]
    assert [one.due for one in away.found] == [due[0], due[4]]


def test_what_turns_do_is_told_and_nothing_else() -> None:
    """Requests that turns delay move the quotient, the control stays; where turns delay nobody both are one."""
    had = even_turns(500)

    hurt = turns.look("load", "tap", requests(20, slow=had), had)
    calm = turns.look("load", "tap", requests(20), had)

    assert hurt.ratio > 1.5
    assert hurt.control == pytest.approx(1, abs=0.05)
    assert calm.ratio == pytest.approx(1, abs=0.05)
    assert calm.turns_per_second == pytest.approx(25, rel=0.01)
    assert calm.beside == pytest.approx(3.3 / 40, rel=0.1)


def test_a_host_that_is_slower_for_a_while_moves_nothing() -> None:
    """Half of the time at a third of the speed: the quotient is of requests of the same time."""
    had = even_turns(500)
    slowed = [one._replace(seconds=3 * one.seconds) if one.due < 10 else one for one in requests(20).found]

    assert turns.look("load", "tap", Answers(slowed), had).ratio == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("had", [[], [Turn(1, 2)], [Turn(100, 101), Turn(102, 103)]], ids=["none", "one", "elsewhere"])
def test_without_turns_nothing_is_claimed(had: list[Turn]) -> None:
    """An agent that perf did not see is an error, not a promise kept."""
    with pytest.raises(RunError, match="turns of the agent"):
        turns.look("load", "tap", requests(3), had)


def even_phases(seconds: float) -> list[Phase]:
    """A twentieth of a second each, a hundredth between them."""
    return [Phase(at % 2 == 1, 0.06 * at + 0.01, 0.06 * (at + 1), 7 * (at % 2)) for at in range(int(seconds / 0.06))]


def test_what_the_capture_does_is_told_and_nothing_else() -> None:
    """Who is due while the ring is open is compared with who is due while it is shut; between phases nobody is."""
    phases = even_phases(20)
    had = [Turn(one.start, one.end) for one in phases if one.is_open]

    hurt = turns.look_at_capture("load", requests(20, slow=had), phases)
    calm = turns.look_at_capture("load", requests(20), phases)

    assert hurt.beside_p50_us - hurt.away_p50_us == pytest.approx(1000, rel=0.02)
    assert hurt.control == pytest.approx(1, abs=0.06)
    assert calm.ratio == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(
    "phases, reason",
    [
        ([], "none was due"),
        (even_phases(0.2), "none was due"),
        ([one._replace(seen=0) for one in even_phases(9)], "while open"),
        ([one._replace(seen=1) for one in even_phases(9)], "while shut"),
    ],
    ids=["none", "too few", "blind", "never shut"],
)
def test_a_ring_that_did_not_see_what_it_should_claims_nothing(phases: list[Phase], reason: str) -> None:
    """A capture that was never there would look like one that costs nothing."""
    with pytest.raises(RunError, match=reason):
        turns.look_at_capture("load", Answers(requests(9).found[1000:]), phases)


def test_the_report_has_a_row_for_each_load_and_one_for_all() -> None:
    """Medians over the cells of the row; and what is promised of turns and capture is judged for both."""

    def cell(load: str, ratio: float, tap: str = "tap") -> Look:
        return Look(load, tap, 25, 0.1, 120, 100, 200, ratio, 1.0)

    taken = [cell("a", 1.2), cell("a", 1.02), cell("a", 1.03), cell("b", 1.08)]
    told = turns.markdown([*taken, cell("a", 1.01, turns.CAPTURE), cell("b", 1.02, turns.CAPTURE)], "command")

    assert "| tap | a | 25 | 10% | 100 µs | 120 µs | 200 µs | 1.030 (1.02 to 1.20) | 1.000 (1.00 to 1.00) |" in told
    assert "| tap | together | 25 | 10% | 100 µs | 120 µs | 200 µs | 1.055 (1.02 to 1.20) |" in told
    assert "| tap | 1.040 | 1.102 | 1.071 |" in told
