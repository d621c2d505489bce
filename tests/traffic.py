"""Who sends how much, and when, on the simulated machine of the governor's tests."""

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import inf


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
TORRENT = Flows(8, 1, 400_000, 64, outgoing=1.0)
FLOOD_IN = Flows(4, 1, 160_000, 64, outgoing=0.0)
SWARM = Flows(5, 20_000, 160_000, 64, outgoing=1.0)
STORM = Flows(6, 20_000, 500_000, 64, outgoing=1.0)
CHURN = [Flows(100 + i, 1, 12e9 / 8 / 65000, 65000, outgoing=1.0) for i in range(31)]
ELEPHANTS = [Flows(10 + i, 1, 800e6 / 8 / 20000, 20000, outgoing=0.8) for i in range(6)]


def always(*flows: Flows) -> Load:
    """Mice, and these all the time."""
    return lambda now: [(one, 1.0) for one in (MICE, *flows)]


def between(start: float, stop: float, *flows: Flows) -> Load:
    """Mice, and these for a while."""
    return lambda now: [(MICE, 1.0), *((one, 1.0) for one in flows if start <= now < stop)]


def ramp(flows: Flows, seconds: float) -> Load:
    """From nothing to the full rate."""
    return lambda now: [(MICE, 1.0), (flows, min(1.0, now / seconds))]


def square(period: float, on: float, *flows: Flows, stop: float = inf) -> Load:
    """On and off, and at last off."""
    return lambda now: [(MICE, 1.0), *((one, 1.0) for one in flows if now < stop and now % period < on)]


def churn(now: float) -> Sequence[tuple[Flows, float]]:
    """A new elephant each second."""
    return [(MICE, 1.0), (CHURN[int(now)], 1.0)]


HEAVY_LOADS: dict[str, Load] = {
    "bulk": always(BULK),
    "bulk step": between(5, 12, BULK),
    "flood": always(FLOOD),
    "flood step": between(5, 12, FLOOD),
    "flood in": always(FLOOD_IN),
    "elephants": always(*ELEPHANTS),
    "ramp": ramp(BULK, 12),
    "square": square(4, 2, BULK),
    "slow square": square(8, 4, FLOOD),
    "churn": churn,
}
"""To cut or thin heavy flows is enough."""
WIDE_LOADS: dict[str, Load] = {
    "swarm": always(SWARM),
    "swarm step": between(5, 12, SWARM),
    "storm step": between(5, 12, STORM),
    "swarm square": square(6, 3, SWARM),
}
"""Many small flows: ordinary ones have to give."""
LOADS = {**HEAVY_LOADS, **WIDE_LOADS}
STEADY = {"bulk": [BULK], "flood": [FLOOD], "flood in": [FLOOD_IN], "elephants": ELEPHANTS, "swarm": [SWARM]}
