"""The loop detector against simulated networks: a loop is found within seconds, and nothing else is called one."""

import random
from bisect import bisect_right
from collections.abc import Callable

import pytest

from guestagent.governor.feedback import LoopDetector, Sample, Verdict

STEP_SECONDS = 0.01
RETIRE_SECONDS = 0.1
"""A block waits so long in the kernel before the agent sees it."""

Load = Callable[[float], float]
"""Seconds -> application bytes/s on the tapped interface."""


def simulate(
    load: Load, *, echo: float, same_nic: bool, seconds: float = 60.0, seed: int = 0, copies: int = 1
) -> tuple[bool, float, float]:
    """(was a loop called, when, seconds of holding) for an agent that copies everything.

    `echo` is the part of its own bytes that comes back into the capture, wrapped; `same_nic`: its excluded bytes cross
    the tapped interface too. Of several `copies` one comes back.
    """
    detector, rng = LoopDetector(0.0), random.Random(seed)
    seen = captured = sent = backlog = 0.0
    pipeline: list[tuple[float, float]] = []
    held, held_seconds, now = False, 0.0, 0.0
    line_rate = 1e9
    while now < seconds:
        now += STEP_SECONDS
        fresh = load(now) * STEP_SECONDS * rng.uniform(0.8, 1.2)
        out = 0.0 if held else min(backlog, line_rate * STEP_SECONDS)
        backlog -= out
        sent += copies * out
        seen += fresh + (copies * out if same_nic else out if echo else 0.0)
        arrived = fresh + echo * out
        pipeline.append((now + RETIRE_SECONDS, arrived * 1.03))
        while pipeline and pipeline[0][0] <= now:
            size = pipeline.pop(0)[1]
            captured += size
            backlog += size
        held_seconds += STEP_SECONDS * held
        if now >= detector.due_at:
            verdict = detector.step(now, Sample(int(seen), int(captured), int(sent), copies))
            held = verdict is Verdict.HOLD
            if verdict is Verdict.LOOP:
                return True, now, held_seconds
    return False, now, held_seconds


def idle(_: float) -> float:
    """Nothing."""
    return 0.0


def trickle(_: float) -> float:
    """Some keep-alives."""
    return 2000.0


def steady(_: float) -> float:
    """20 Mbit/s."""
    return 2.5e6


def bulk(_: float) -> float:
    """1 Gbit/s."""
    return 1.25e8


def bursts(now: float) -> float:
    """A second of 80 Mbit/s, a second of nothing."""
    return 1e7 if int(now) % 2 else 0.0


def short_bursts(now: float) -> float:
    """A tenth of a second in every half."""
    return 5e7 if now % 0.5 < 0.1 else 0.0


def stop_and_go(now: float) -> float:
    """Irregular pauses."""
    return 2e7 if int(now * 3) % 5 not in (1, 4) else 1e4


LOADS = [idle, trickle, steady, bulk, bursts, short_bursts, stop_and_go]


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("same_nic", [True, False], ids=["same NIC", "another NIC"])
@pytest.mark.parametrize("seed", range(3))
def test_real_traffic_is_never_a_loop(load: Load, same_nic: bool, seed: int) -> None:
    """A full copy of any traffic, over the tapped NIC or another one, is not called a loop in two minutes."""
    called, _, held = simulate(load, echo=0.0, same_nic=same_nic, seconds=120, seed=seed)

    assert not called
    assert held <= (0.0 if same_nic and load in (steady, bulk) else 3.0)


@pytest.mark.parametrize("seed", range(60))
def test_bursts_of_any_rhythm_are_no_loop(seed: int) -> None:
    """Bursts of any period, length and rate, regular or not, copied over another NIC, are never called a loop."""
    rng = random.Random(seed)
    period = rng.choice([rng.uniform(0.05, 1), rng.uniform(0.3, 6)])
    length, rate, jitter = period * rng.uniform(0.03, 0.9), 10 ** rng.uniform(5.5, 8), rng.choice([0, 0, 0.2])
    starts = [-period * rng.random()]
    while starts[-1] < 60:
        starts.append(starts[-1] + period * (1 + jitter * rng.uniform(-1, 1)))

    def load(now: float) -> float:
        return rate if now - starts[bisect_right(starts, now) - 1] < length else 0.0

    called, when, _ = simulate(load, echo=0.0, same_nic=False, seconds=60, seed=seed)

    assert not called, f"after {when:.1f} s: {length:.2f} s of {rate:.0f} B/s each {period:.2f} s"


@pytest.mark.parametrize("load", [trickle, steady, bulk, bursts, stop_and_go])
@pytest.mark.parametrize("seed", range(3))
def test_a_loop_is_found_within_seconds(load: Load, seed: int) -> None:
    """Copies that come back wrapped, and grow with each round, are called a loop within eight seconds of 1 Mbit/s."""

    def until_one_second(now: float) -> float:
        return load(now) if now < 1.5 else 0.0

    for each in (load, until_one_second):
        if each is load and load in (bulk, bursts, stop_and_go):
            continue  # real traffic beside the loop: see below
        called, when, _ = simulate(each, echo=1.0, same_nic=True, seed=seed)
        assert called
        assert when < (15.0 if load is trickle else 8.0)


@pytest.mark.parametrize("same_nic", [True, False], ids=["same NIC", "another NIC"])
def test_a_loop_in_one_of_several_copies_is_found(same_nic: bool) -> None:
    """Of the streams to two or three collectors the one that comes back is found; without one nothing is called."""

    def until_one_second(now: float) -> float:
        return steady(now) if now < 1.5 else 0.0

    for copies in (2, 3):
        called, when, _ = simulate(until_one_second, echo=1.0, same_nic=same_nic, copies=copies)
        assert called
        assert when < 8.0
        assert not simulate(steady, echo=0.0, same_nic=same_nic, copies=copies)[0]


def test_samples_are_wanted_as_often_as_they_tell_something() -> None:
    """Once a second while nothing is suspected; during a hold often, as it shall not outlast its purpose."""
    detector, waits = LoopDetector(5.0), {Verdict.GO_ON: set(), Verdict.HOLD: set()}
    assert detector.due_at == 5.0
    for second in range(4):
        now = detector.due_at
        verdict = detector.step(now, Sample(*[second * 10**7] * 3))
        waits[verdict].add(round(detector.due_at - now, 3))

    assert waits == {Verdict.GO_ON: {1.0}, Verdict.HOLD: {0.03}}


@pytest.mark.parametrize("load", [steady, bursts])
def test_a_loop_behind_real_traffic_is_found(load: Load) -> None:
    """A loop that begins while real traffic was judged sound is found too, by its growth."""
    detector = LoopDetector(0.0)
    seen = captured = sent = now = 0.0
    held = False
    verdicts = []
    while now < 30 and Verdict.LOOP not in verdicts:
        step = max(STEP_SECONDS, detector.due_at - now)
        now += step
        fresh = load(now) * step
        looped = 0.0 if held or now < 10 else 1e9 * step
        seen += fresh + looped
        captured += fresh + looped
        sent += 0.0 if held else fresh + looped
        verdict = detector.step(now, Sample(int(seen), int(captured), int(sent)))
        held = verdict is Verdict.HOLD
        verdicts.append(verdict)

    assert Verdict.LOOP in verdicts
    assert 10 < now < 20


def test_a_resting_detector_holds_once_a_minute() -> None:
    """Real traffic over another NIC is held for a quarter of a second, then left alone for a minute."""
    _, _, held = simulate(steady, echo=0.0, same_nic=False, seconds=110)

    assert 0.2 <= held <= 0.8
