"""The governor against a simulated machine whose costs, delays and noise differ from what it believes."""

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import pytest

from guestagent.governor import predict
from guestagent.governor.law import Governor
from guestagent.governor.limits import Budgets, Counters, Limits, Traffic, Usage, budgets_for

STEP_SECONDS = 0.005
RETIRE_SECONDS = 0.1
BLOCK_BYTES = 256 << 10
RING_BYTES = 64 << 20
TICK_COST_SECONDS = 0.3e-3
WALL_NS = 1_700_000_000_000_000_000


class Flows:
    """Equal flows that send together; one of them is an elephant or a flood."""

    def __init__(self, name: int, count: int, pps: float, size: int, outgoing: float = 0.5) -> None:
        rng = random.Random(name)
        self.keys = sorted(rng.getrandbits(32) for _ in range(count))
        self.pps, self.size, self.outgoing = pps, size, outgoing

    def sampled(self, fraction: float) -> int:
        """How many of them a sample of flows keeps."""
        return bisect_left(self.keys, fraction * 2**32)


Load = Callable[[float], Sequence[tuple[Flows, float]]]
"""Seconds -> who sends, and how much of its rate."""

MICE = Flows(1, 500, 2000, 400)
BULK = Flows(2, 1, 12e9 / 8 / 65000, 65000, outgoing=1.0)
FLOOD = Flows(3, 1, 160_000, 64, outgoing=1.0)
FLOOD_IN = Flows(4, 1, 160_000, 64, outgoing=0.0)
SWARM = Flows(5, 20_000, 160_000, 64, outgoing=1.0)
STORM = Flows(6, 20_000, 2_000_000, 64, outgoing=1.0)
ELEPHANTS = [Flows(10 + i, 1, 800e6 / 8 / 20000, 20000, outgoing=0.8) for i in range(6)]


@dataclass
class Machine:
    """Costs in units of what the model believes at first."""

    own_packet: float = 1.0
    own_byte: float = 1.0
    share: float = 1.0
    cores: int = 2
    link_bytes_per_second: float = 5e9
    noise: float = 0.1
    pressed: Callable[[float], bool] = lambda now: False
    has_counters: bool = True


@dataclass
class Trace:
    """What happened, per step and per tick."""

    cpu: list[float] = field(default_factory=list)
    out: list[float] = field(default_factory=list)
    limits: list[tuple[float, Limits]] = field(default_factory=list)
    mice_offered: list[float] = field(default_factory=list)
    mice_kept: list[float] = field(default_factory=list)
    dropped: float = 0.0
    swaps: int = 0

    def worst_percent(self, cores: int, window_seconds: float = 5.0, after_seconds: float = 2.0) -> float:
        """The highest CPU share of any window."""
        width, skip = round(window_seconds / STEP_SECONDS), round(after_seconds / STEP_SECONDS)
        sums = list(accumulate(self.cpu[skip:], initial=0.0))
        return max((b - a) for a, b in zip(sums, sums[width:], strict=False)) / window_seconds / cores * 100

    def between(self, start: float, stop: float) -> list[Limits]:
        """The limits in force then, without probes."""
        return [one for at, one in self.limits if start <= at < stop and not one.is_probe]

    def whole_mice(self, start: float, stop: float) -> float:
        """The part of the mice's packets kept whole."""
        a, b = round(start / STEP_SECONDS), round(stop / STEP_SECONDS)
        return sum(self.mice_kept[a:b]) / sum(self.mice_offered[a:b])

    def turns(self) -> int:
        """How often full copy was taken away."""
        kinds = [one.filter_key == Limits().filter_key for _, one in self.limits]
        return sum(before and not after for before, after in zip(kinds, kinds[1:], strict=False))


def simulate(
    load: Load, machine: Machine, *, budgets: Budgets | None = None, seconds: float = 30.0, seed: int = 0, **options
) -> Trace:
    """Run a governor on a machine."""
    rng = random.Random(seed)
    governor = Governor(budgets or budgets_for(0, bytes_per_second=float("inf")), machine.cores, 0.0, **options)
    trace = Trace()
    limits = governor.limits
    open_block: dict[Flows, list[float]] = {}
    open_since = 0.0
    ring: deque[tuple[float, float, float, dict[Flows, float], Limits]] = deque()
    ring_used = captured = sent = acked = own = stalled = tokens = 0.0
    counts = [0.0] * 4
    own_history: deque[tuple[float, float]] = deque([(0.0, 0.0)])
    for step in range(round(seconds / STEP_SECONDS)):
        now = step * STEP_SECONDS
        cpu = 0.003 * STEP_SECONDS
        offered_mice = kept_mice = 0.0
        for flows, level in load(now):
            packets = flows.pps * level * STEP_SECONDS * rng.uniform(1 - machine.noise, 1 + machine.noise)
            is_heavy = len(flows.keys) == 1 and flows.keys[0] in limits.heavy
            keep = limits.heavy_fraction if is_heavy else flows.sampled(limits.sample) / len(flows.keys)
            keep = 0.0 if limits.paused else keep
            is_cut = is_heavy or limits.slice == "headers"
            size = 96 + min(flows.size, 66 if is_cut else 10**9)
            kept = packets * keep
            out = flows.outgoing
            counts[0] += packets * (1 - out)
            counts[1] += packets * out
            counts[2] += packets * (1 - out) * flows.size
            counts[3] += packets * out * flows.size
            captured += kept
            if kept:
                entry = open_block.setdefault(flows, [0.0, 0.0])
                entry[0] += kept
                entry[1] += kept * size
            if not limits.paused:
                lost = packets - kept
                cpu += machine.share * (
                    kept * ((1 - out) * predict.CAPTURED_IN_SECONDS + out * predict.CAPTURED_OUT_SECONDS)
                    + lost * ((1 - out) * predict.REJECTED_IN_SECONDS + out * predict.REJECTED_OUT_SECONDS)
                    + kept * size * predict.COPY_SECONDS_PER_BYTE
                )
            if flows is MICE:
                offered_mice, kept_mice = packets, 0.0 if is_cut else kept
        trace.mice_offered.append(offered_mice)
        trace.mice_kept.append(kept_mice)
        size = sum(entry[1] for entry in open_block.values())
        if open_block and (size >= BLOCK_BYTES or now - open_since >= RETIRE_SECONDS):
            taken = max(size, BLOCK_BYTES)
            if ring_used + taken <= RING_BYTES:
                ring.append((now, size, taken, {key: entry[0] for key, entry in open_block.items()}, limits))
                ring_used += taken
            else:
                trace.dropped += size
            open_block, open_since = {}, now
        elif not open_block:
            open_since = now
        cap = limits.byte_cap
        tokens = min(cap * 0.04, tokens + cap * STEP_SECONDS) if cap < 1e18 else 1e18
        room = min(machine.link_bytes_per_second * STEP_SECONDS, tokens)
        left = 0.0
        while ring and room > 0:
            at, size, taken, records, regime = ring[0]
            part = min(1.0, room / size)
            if part < 1 and size > 0:
                ring[0] = (at, size * (1 - part), taken, {k: n * (1 - part) for k, n in records.items()}, regime)
            else:
                ring.popleft()
                ring_used -= taken
            amount, number = size * part, sum(records.values()) * part
            room -= amount
            left += amount
            used = machine.own_packet * predict.OWN_SECONDS_PER_PACKET * number
            used += machine.own_byte * predict.OWN_SECONDS_PER_BYTE * amount
            own += used
            cpu += used
            samples = []
            if governor.wants_peek(now) and number >= 1:
                who = rng.choices(list(records), list(records.values()), k=min(64, int(number)))
                for flows in who:
                    stop = max(1, flows.sampled(regime.sample)) if len(flows.keys) > 1 else 1
                    key = flows.keys[int(rng.random() * stop)]
                    when = WALL_NS + int((at - rng.random() * STEP_SECONDS) * 1e9)
                    samples.append((when, key, min(flows.size, 66), flows.size, rng.random() < flows.outgoing))
            governor.block(now, round(number), round(amount), samples)
        tokens -= left
        sent += left
        acked = sent
        counts[1] += left / 1448
        counts[3] += left
        trace.out.append(left)
        stalled += STEP_SECONDS * (0.9 if machine.pressed(now) else 0.05)
        if now >= governor.due_at:
            cpu += TICK_COST_SECONDS
            own += TICK_COST_SECONDS
            own_history.append((now, own))
            while len(own_history) > 1 and own_history[1][0] <= now - 0.1:
                own_history.popleft()
            fill = ring_used / RING_BYTES
            counters = Counters(
                int(captured),
                Traffic(*map(int, counts)) if machine.has_counters else None,
                int(acked),
                RING_BYTES,
                fill,
                now - ring[0][0] if ring else 0.0,
            )
            usage = Usage(machine.cores, own_history[0][1], stalled, 0.0, 1, 0)
            before, limits = limits, governor.tick(now, counters, usage)
            if limits.filter_key != before.filter_key:
                trace.swaps += 1
                governor.applied(now, WALL_NS + int(now * 1e9))
            trace.limits.append((now, limits))
        trace.cpu.append(cpu)
    return trace


if __name__ == "__main__":
    import sys, time

    LOADS = {
        "mice": lambda t: [(MICE, 1)],
        "bulk step": lambda t: [(MICE, 1)] + ([(BULK, 1)] if 5 < t < 15 else []),
        "bulk": lambda t: [(MICE, 1), (BULK, 1)],
        "flood": lambda t: [(MICE, 1), (FLOOD, 1)],
        "flood step": lambda t: [(MICE, 1)] + ([(FLOOD, 1)] if 5 < t < 15 else []),
        "flood in": lambda t: [(MICE, 1), (FLOOD_IN, 1)],
        "swarm": lambda t: [(MICE, 1), (SWARM, 1)],
        "swarm step": lambda t: [(MICE, 1)] + ([(SWARM, 1)] if 5 < t < 15 else []),
        "storm step": lambda t: [(MICE, 1)] + ([(STORM, 1)] if 5 < t < 15 else []),
        "ramp": lambda t: [(MICE, 1), (BULK, min(1, t / 20))],
        "square4": lambda t: [(MICE, 1)] + ([(BULK, 1)] if t % 4 < 2 else []),
        "square8": lambda t: [(MICE, 1)] + ([(FLOOD, 1)] if t % 12 < 6 else []),
        "bursts": lambda t: [(MICE, 1)] + ([(FLOOD, 1)] if t % 0.1 < 0.01 else []),
        "six": lambda t: [(MICE, 1)] + [(e, 1) for e in ELEPHANTS],
        "churn": lambda t: [(MICE, 1), (CHURN[int(t)], 1)],
    }
    CHURN = [Flows(100 + i, 1, 12e9 / 8 / 65000, 65000, outgoing=1.0) for i in range(61)]
    for name, load in LOADS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        for f in (1.0, 1.4, 0.6):
            m = Machine(own_packet=f, own_byte=f, share=f)
            t0 = time.time()
            tr = simulate(load, m, seconds=30)
            last = tr.limits[-1][1]
            h = tr.between(20, 30)
            print(
                f"{name:12} x{f} worst5s {tr.worst_percent(2):.2f}% mean {sum(tr.cpu[4000:]) / 10 / 2 * 100:.2f}% mice whole {tr.whole_mice(10, 30):.2f} swaps {tr.swaps} turns {tr.turns()} ticks {len(tr.limits)} {time.time() - t0:.1f}s | {last.reason[:140]} p={last.heavy_fraction:.3f} s={last.sample:.3f} {last.slice}"
            )
