"""A machine under load, simulated: ring, collector, clock and costs, and what a governor makes of them."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import inf

from guestagent.governor import predict
from guestagent.governor.bucket import Gate
from guestagent.governor.demand import Sample
from guestagent.governor.law import Governor
from guestagent.governor.limits import DEFAULT_ORDER, RECORD_BYTES, Budgets, Counters, Limits, Rung, Traffic, Usage
from tests.traffic import MICE, Flows, Load

STEP_SECONDS = 0.005
RETIRE_SECONDS = 0.1
BLOCK_BYTES = 256 << 10
RING_BYTES = 64 << 20
TICK_COST_SECONDS = 0.7e-3
LOOK_COST_SECONDS = 1.5e-6
"""With warm caches; beside an application that uses them it is two or three times that."""
IDLE_CORES = 0.003
WALL_NS = 1_700_000_000_000_000_000


Arrived = dict[Flows, tuple[float, float]]
"""Packets that the filter kept, and ring bytes of each."""


@dataclass
class Machine:
    """Costs in units of what the model believes at first."""

    own_packet: float = 1.0
    own_byte: float = 1.0
    share: float = 1.0
    own_tick: float = 1.0
    cores: int = 2
    link_bytes_per_second: float = 5e9
    noise: float = 0.1
    pressed: Callable[[float], bool] = lambda now: False
    has_counters: bool = True
    has_clock: bool = True
    record_bytes: int = RECORD_BYTES
    """What a record takes beside its frame where it leaves."""


MODEL = Machine()
DEAR = Machine(own_packet=1.4, own_byte=1.4, share=1.4, own_tick=2.5)
CHEAP = Machine(own_packet=0.6, own_byte=0.6, share=0.6)
MIXED = Machine(own_packet=1.4, own_byte=0.6, share=1.2)
MACHINES = {"as the model": MODEL, "dear": DEAR, "cheap": CHEAP, "mixed": MIXED}
CPU_ONLY = Budgets(bytes_per_second=inf)


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

    def whole_from(self) -> float:
        """Since when everything has been whole, to the end; infinite where it is not."""
        since = inf
        for at, one in self.limits:
            is_whole = one.selection == Limits().selection
            since = min(since, at) if is_whole else inf
        return since

    def turns(self) -> int:
        """How often full copy was taken away."""
        kinds = [one.selection == Limits().selection for _, one in self.limits]
        return sum(before and not after for before, after in pairwise(kinds))


def simulate(
    load: Load,
    machine: Machine = MODEL,
    *,
    budgets: Budgets = CPU_ONLY,
    seconds: float = 20.0,
    seed: int = 0,
    order: Sequence[Rung] = DEFAULT_ORDER,
) -> Trace:
    """Run a governor on a machine: filter, ring, link, clocks; what it is told is late, rounded or missing."""
    rng = random.Random(seed)
    governor = Governor(budgets, machine.cores, 0.0, order=order)
    trace = Trace()
    limits = governor.limits
    open_block: list[tuple[float, Limits, Arrived]] = []
    open_size = 0.0
    ring: deque[tuple[float, float, float, list[tuple[float, Limits, Arrived]]]] = deque()
    ring_used = captured = sent = acked = own = stalled = 0.0
    gate = Gate(0.0)
    counts = [0.0] * 4
    own_history: deque[tuple[float, float]] = deque([(0.0, 0.0)])
    for step in range(round(seconds / STEP_SECONDS)):
        now = step * STEP_SECONDS
        cpu = IDLE_CORES * STEP_SECONDS
        own += cpu
        offered_mice = kept_mice = 0.0
        arrived: Arrived = {}
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
                arrived[flows] = kept, size
                open_size += kept * size
            if not limits.paused:
                lost = packets - kept
                cpu += machine.share * (
                    kept * ((1 - out) * predict.CAPTURED_IN_SECONDS + out * predict.CAPTURED_OUT_SECONDS)
                    + lost * ((1 - out) * predict.REJECTED_IN_SECONDS + out * predict.REJECTED_OUT_SECONDS)
                    + lost * flows.size * predict.REJECTED_SECONDS_PER_BYTE
                    + kept * size * predict.COPY_SECONDS_PER_BYTE
                )
            if flows is MICE:
                offered_mice, kept_mice = packets, 0.0 if is_cut else kept
        trace.mice_offered.append(offered_mice)
        trace.mice_kept.append(kept_mice)
        if arrived:
            open_block.append((now, limits, arrived))
        if open_block and (open_size >= BLOCK_BYTES or now - open_block[0][0] >= RETIRE_SECONDS):
            taken = max(open_size, BLOCK_BYTES)
            if ring_used + taken <= RING_BYTES:
                number = sum(sum(n for n, _ in part.values()) for _, _, part in open_block)
                ring.append((open_size, number, taken, open_block))
                ring_used += taken
                wanted = governor.arrived(now, round(number), round(open_size), 1)
                samples = looks(rng, open_block, wanted)
                own += machine.own_tick * LOOK_COST_SECONDS * len(samples)
                cpu += machine.own_tick * LOOK_COST_SECONDS * len(samples)
                governor.seen(round(number), samples)
            else:
                trace.dropped += open_size
            open_block, open_size = [], 0.0
        gate.set_caps(now, limits.byte_cap, limits.packet_cap)
        room, packet_room = gate.room(now)
        room = min(room, machine.link_bytes_per_second * STEP_SECONDS)
        left = 0.0
        while ring and room > 0:
            size, number, taken, parts = ring[0]
            wire = size + number * (machine.record_bytes - RECORD_BYTES)
            part = min(1.0, room / wire, packet_room / number)
            gate.spend(wire * part, number * part)
            left += wire * part
            if part < 1:
                ring[0] = (size * (1 - part), number * (1 - part), taken, parts)
                break
            ring.popleft()
            ring_used -= taken
            room -= wire
            packet_room -= number
            size = sum(sum(n * s for n, s in part.values()) for _, _, part in parts)
            number = sum(sum(n for n, _ in part.values()) for _, _, part in parts)
            used = machine.own_packet * predict.OWN_SECONDS_PER_PACKET * number
            used += machine.own_byte * predict.OWN_SECONDS_PER_BYTE * size
            own += used
            cpu += used
            governor.taken(round(number), round(size))
        sent += left
        acked = sent
        counts[1] += left / 1448
        counts[3] += left
        trace.out.append(left)
        stalled += STEP_SECONDS * (0.9 if machine.pressed(now) else 0.05)
        governor.ring_filled(ring_used / RING_BYTES)
        own_history.append((now, own))
        while len(own_history) > 1 and own_history[1][0] <= now - 0.1:
            own_history.popleft()
        if now >= governor.due_at:
            cpu += machine.own_tick * TICK_COST_SECONDS
            own += machine.own_tick * TICK_COST_SECONDS
            fill = ring_used / RING_BYTES
            counters = Counters(
                int(captured),
                Traffic(*map(int, counts)) if machine.has_counters else None,
                int(acked),
                RING_BYTES,
                fill,
                now - ring[0][3][0][0] if ring else 0.0,
                waiting_bytes=round(sum(one[0] for one in ring)),
                record_bytes=machine.record_bytes,
            )
            own_seconds = own_history[0][1] if machine.has_clock else None
            usage = Usage(machine.cores, own_seconds, stalled, 0.0, 1, 0)
            before, limits = limits, governor.tick(now, counters, usage)
            if limits.selection != before.selection:
                trace.swaps += 1
                governor.applied(now, WALL_NS + int(now * 1e9))
            trace.limits.append((now, limits))
        trace.cpu.append(cpu)
    return trace


def looks(rng: random.Random, parts: list[tuple[float, Limits, Arrived]], most: int) -> list[Sample]:
    """The first records of a block, in their order of time."""
    found: list[Sample] = []
    for at, regime, records in parts:
        numbers = [number for number, _ in records.values()]
        count = min(most - len(found), int(sum(numbers) + rng.random()))
        for flows in rng.choices(list(records), numbers, k=count):
            stop = max(1, flows.sampled(regime.sample)) if len(flows.keys) > 1 else 1
            key = flows.keys[int(rng.random() * stop)]
            found.append(
                (WALL_NS + int(at * 1e9) + 1, key, min(flows.size, 66), flows.size, rng.random() < flows.outgoing)
            )
    return found
