"""How long requests take beside the agent's turns on the processor, and away from them, in one and the same cell.

A pair of cells tells 1.05 from 1.00 where nothing beside nothing is 1.00. On a shared host that is 0.9 to 1.1, for the
host's mood changes in seconds. Within a cell it is the same for all: so the kernel tells when the agent was awake
(sched_waking, sched_switch), and a request is beside a turn, or away from all of them, by the time at which it was due,
which is fixed beforehand. The quotient of the 99th percentiles of all requests and of those away is what the turns make
of it: waiting for the processor, cold caches, what was written leaving by timers, acknowledgements, the sensor's work.
What each packet pays for its copy into the ring is in both, and is a row of its own (harm.capture).

The control asks the same of turns that nobody had: the real ones, later, and requests beside real ones left out.
"""

import re
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from guestagent.errors import RunError
from tests.bench.clocks import machine
from tests.bench.figures import Figure
from tests.bench.harm import capture
from tests.bench.harm.book import Answers, percentile
from tests.bench.harm.figures import figure
from tests.bench.harm.loads import Capacity, Load, Work
from tests.bench.harm.rounds import WARM_SECONDS, stage
from tests.bench.harm.taps import BUDGET, ROOMY, TAPS
from tests.bench.perf import perf
from tests.bench.report import rows
from tests.bench.scene import IPERF_PORT, Scene

LOOK_SECONDS, CAPTURE_SECONDS = 10.0, 40.0
"""Beside and away share nine tenths of the requests; open and shut share none, so their quotient scatters more."""
ROUNDS = 6
LIMIT = 1.05
LEAD_SECONDS = 0.0003
"""Who was due so long before a turn may still be on the way when it begins; three medians."""
TRAIL_SECONDS = 0.002
"""The kernel sends, and is told of what arrived, for so long after a turn. With 0, 1, 4 or 8 ms: the same to 0.015."""
CONTROL_SECONDS = 0.01
"""How much later the control's turns are; who is beside a real one then is left out."""
CAPTURE = "its capture alone"
_SPARE_SECONDS = 4.0
"""For perf to begin, and to end; for the last ring."""
_MOVE = re.compile(
    r"(?P<time>\d+\.\d+): sched:sched_(?:waking: .* pid=(?P<woken>\d+) "
    r"|switch: .* prev_pid=(?P<off>\d+) .* prev_state=(?P<state>\S+) .* next_pid=(?P<on>\d+) )"
)


class Turn(NamedTuple):
    """From waking to sleeping, by the monotonic clock; who had the processor in between is part of it.

    Not from the time at which it got the processor: who is nice gets it when all else is quiet, so the busy times would
    be away from its turns.
    """

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Look:
    """What one cell showed; of the capture alone, beside is while the ring is open, and away while it is shut."""

    load: str
    tap: str
    turns_per_second: float
    beside: float
    """The part of the requests."""
    beside_p50_us: float
    away_p50_us: float
    away_p99_us: float
    ratio: float
    """Of the 99th percentiles: with the tap to without what it does there."""
    control: float


def turns_of(told: str, pid: int) -> list[Turn]:
    """From `perf script` of sched:sched_waking and sched_switch. One that was under way at the beginning or at the end
    is left out."""
    found: list[Turn] = []
    start, is_told = 0.0, False
    for one in _MOVE.finditer(told):
        if str(pid) in (one["woken"], one["on"]):
            start = start or float(one["time"])
        elif one["off"] == str(pid) and not one["state"].startswith("R"):
            if is_told and start:
                found.append(Turn(start, float(one["time"])))
            start, is_told = 0.0, True
    return found


def split(answers: Answers, turns: Sequence[Turn], later_seconds: float = 0.0) -> tuple[Answers, Answers]:
    """(beside turns, away from them); the turns as if so much later."""
    starts = [one.start - LEAD_SECONDS + later_seconds for one in turns]
    beside, away = [], []
    for answer in answers.found:
        at = bisect_right(starts, answer.due) - 1
        is_beside = at >= 0 and answer.due <= turns[at].end + TRAIL_SECONDS + later_seconds
        (beside if is_beside else away).append(answer)
    return Answers(beside), Answers(away)


def look(load: str, tap: str, answers: Answers, turns: Sequence[Turn]) -> Look:
    """Of the requests from the first turn to the last; RunError where there is nothing to compare."""
    if len(turns) < 2:
        raise RunError(f"perf saw {len(turns)} turns of the agent")
    start, end = turns[0].start, turns[-1].end
    answers = answers.between(start, end)
    beside, away = split(answers, turns)
    _, control = split(away, turns, CONTROL_SECONDS)
    if not (beside.found and control.found):
        raise RunError(f"of {len(answers.found)} requests {len(beside.found)} were beside turns of the agent")
    return Look(
        load=load,
        tap=tap,
        turns_per_second=len(turns) / (end - start),
        beside=len(beside.found) / len(answers.found),
        beside_p50_us=_us(beside, 0.5),
        away_p50_us=_us(away, 0.5),
        away_p99_us=_us(away, 0.99),
        ratio=_us(answers, 0.99) / _us(away, 0.99),
        control=_us(away, 0.99) / _us(control, 0.99),
    )


def look_at_capture(load: str, answers: Answers, phases: Sequence[capture.Phase]) -> Look:
    """RunError as `look`."""
    open_, first, second = capture.parts(answers, phases)
    shut = Answers(sorted([*first.found, *second.found]))
    return Look(
        load=load,
        tap=CAPTURE,
        turns_per_second=0.0,
        beside=1.0,
        beside_p50_us=_us(open_, 0.5),
        away_p50_us=_us(shut, 0.5),
        away_p99_us=_us(shut, 0.99),
        ratio=_us(open_, 0.99) / _us(shut, 0.99),
        control=_us(first, 0.99) / _us(second, 0.99),
    )


def _us(answers: Answers, fraction: float) -> float:
    return 1e6 * percentile(answers.ordered_seconds, fraction)


def measure(loads: Sequence[Load], rounds: int, directory: Path, say: Callable[[str], None]) -> list[Look]:
    """One cell of each load with each tap in each round."""
    found = []
    with stage(LOOK_SECONDS, say) as (scene, capacity):
        for number in range(rounds):
            for load in loads:
                say(f"round {number + 1}: {load.name}")
                found += [_measure(scene, load, tap, capacity, directory / "turns") for tap in (BUDGET, ROOMY)]
                found.append(_measure_capture(scene, load, capacity))
    return found


def _measure_capture(scene: Scene, load: Load, capacity: Capacity) -> Look:
    seconds = WARM_SECONDS + CAPTURE_SECONDS
    work = Work(scene, load, seconds + _SPARE_SECONDS, capacity)
    # Of a flow that is heavy the agent's filter rejects all but a hundredth.
    phases = scene.vm.call(capture.come_and_go, seconds, f"not tcp port {IPERF_PORT}")
    return look_at_capture(load.name, work.finish(), phases)


def _measure(scene: Scene, load: Load, tap: str, capacity: Capacity, recorded: Path) -> Look:
    with TAPS[tap](scene) as running:
        work = Work(scene, load, WARM_SECONDS + LOOK_SECONDS + _SPARE_SECONDS, capacity)
        time.sleep(WARM_SECONDS)
        (pid,) = running.pids
        switches = ["-e", "sched:sched_switch", "--filter", f"prev_pid=={pid} || next_pid=={pid}"]
        wakings = ["-e", "sched:sched_waking", "--filter", f"pid=={pid}"]
        clock = ["-k", "CLOCK_MONOTONIC", "-o", str(recorded)]
        perf("record", "-q", "-a", *switches, *wakings, *clock, "--", "sleep", str(LOOK_SECONDS))
        answers = work.finish()
    told = perf("script", "-i", str(recorded), "-F", "time,event,trace", "--ns")
    return look(load.name, tap, answers, turns_of(told, pid))


def markdown(looks: Sequence[Look], command: str) -> str:
    """The whole report."""
    taps = list(dict.fromkeys(one.tap for one in looks))
    loads = list(dict.fromkeys(one.load for one in looks))
    body = [
        _row(tap, load, [one for one in looks if (one.tap, one.load) == (tap, load)]) for tap in taps for load in loads
    ]
    body += [_row(tap, "together", [one for one in looks if one.tap == tap]) for tap in taps]
    return (
        "# Requests beside the agent's turns\n\n"
        f"`{command}` on {time.strftime('%Y-%m-%d', time.gmtime())}: {machine()}; one core is the VM's, peer, switch "
        "and collector have the rest. 1,000 requests a second go to an echo server beside each load, at times fixed "
        f"beforehand. *Beside* is what was due from {1e3 * LEAD_SECONDS:g} ms before a turn of the agent to "
        f"{1e3 * TRAIL_SECONDS:g} ms after it, by the kernel's scheduler; *away* is the rest of the same "
        f"{LOOK_SECONDS:g} s. The 99th percentile of all requests in units of that of those away is what the turns "
        f"make of it. What each packet pays for its copy into the ring is in both; so *{CAPTURE}* is a ring that is "
        f"open and shut by turns for {CAPTURE_SECONDS:g} s, and nobody reads; its filter rejects bulk TCP, as the "
        "agent's does nearly all of a heavy flow. *Beside* it is open, *away* it is shut, and the quotient is of "
        "these two. The *control* asks the same of turns that nobody had, and of one half of the shut times and the "
        f"other. Medians of {len(looks) // len(taps) // len(loads)} cells, *together* of those of all loads, and in "
        "parentheses their interval by order statistics.\n\n"
        + rows(["tap", "load", "turns/s", "beside", "p50 away", "beside", "p99 away", "p99, times", "control"], body)
        + f"\n\nPromised is {LIMIT:g} for both, the median of the turns times that of the capture. The latter copies "
        "every packet; an agent that sheds copies fewer.\n\n"
        + rows(["both", *loads, "together"], _both(looks, taps, loads))
        + "\n"
    )


def _both(looks: Sequence[Look], taps: Sequence[str], loads: Sequence[str]) -> list[list[object]]:
    def ratio(tap: str, load: str) -> float:
        return _figure([one for one in looks if one.tap == tap and load in (one.load, "together")], "ratio").median

    columns = [*loads, "together"]
    return [
        [tap, *(f"{ratio(tap, load) * ratio(CAPTURE, load):.3f}" for load in columns)] for tap in taps if tap != CAPTURE
    ]


def _row(tap: str, load: str, looks: Sequence[Look]) -> list[object]:
    def told(field: str, form: str) -> str:
        return form.format(_figure(looks, field).median)

    ratios = [f"{one.median:.3f} ({one.low:.2f} to {one.high:.2f})" for one in _ratios(looks)]
    times = [told(field, "{:.0f} µs") for field in ("away_p50_us", "beside_p50_us", "away_p99_us")]
    return [tap, load, told("turns_per_second", "{:.0f}"), told("beside", "{:.0%}"), *times, *ratios]


def _ratios(looks: Sequence[Look]) -> list[Figure]:
    return [_figure(looks, field) for field in ("ratio", "control")]


def _figure(looks: Sequence[Look], field: str) -> Figure:
    return figure([getattr(one, field) for one in looks])
