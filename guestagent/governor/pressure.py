"""When the VM needs its time for others, and when the collector takes less than we capture. Pure; time is an argument.

**Yield.** Four signs, each smoothed over 0.3 s so that a strong one is believed within a third of a second and a single
reading is not: tasks wait for a CPU (pressure stall information), more tasks run or wait than there are cores, the
hypervisor takes time away, our own stream is sent again. A busy VM without waiting tasks shows none of them. Pressure
is over when all signs have been below four fifths of their thresholds for two seconds. Below half of them was too much
to ask: a VM that works through 30,000 packets a second shows that by itself, and would never have got its copies back.

**Back-pressure.** While the ring is over half full, or the oldest unacknowledged frame grows old, capture may bring in
nine tenths of what the collector acknowledged in the last second; so the ring drains. It bounds what is *captured* and
never what is sent: a bound on sending, made from what was sent, would shrink with itself. The second is counted from
the moment there was a backlog, or a burst after an idle time would be judged by the idling. Where nothing is
acknowledged (the collector is away), the free part of the ring is spent over the next ten seconds.
"""

from collections import deque
from math import exp, inf
from typing import NamedTuple

from guestagent.governor.limits import Counters, Usage

SMOOTH_SECONDS = 0.3
CALM_SECONDS = 2.0
CALM_FACTOR = 0.8
STALL_FRACTION = 0.4
"""Of the time. A core's worth of work on each core, and our own five percent beside it, stay below a quarter."""
STEAL_FRACTION = 0.1
RUNNING_PER_CORE = 2.0
RETRANSMITTED_PER_SECOND = 20.0

RING_HIGH, RING_LOW = 0.5, 0.25
LAG_SECONDS = 0.5
"""A collector acknowledges each 20 ms; the rest is the path."""
LAG_GROWTH = 1.1
ACKED_SECONDS = 1.0
ACKED_SHARE = 0.9
LEAST_ACKED_SECONDS = 0.02
BACKLOG_FILL = 0.02
AWAY_SECONDS = 10.0


class _Reading(NamedTuple):
    now: float
    usage: Usage


class Yielding:
    """Says whether, and why, the VM is under pressure."""

    def __init__(self) -> None:
        self._last: _Reading | None = None
        self._levels: dict[str, float] = {}
        self._calm_since = -inf
        self._why = ""

    def step(self, now: float, usage: Usage) -> str:
        """What the pressure is, as a piece of a sentence; empty where there is none."""
        if self._last is None or now <= self._last.now:
            self._last = self._last or _Reading(now, usage)
            return self._why
        seconds, before = now - self._last.now, self._last.usage
        self._last = _Reading(now, usage)
        pull = 1 - exp(-seconds / SMOOTH_SECONDS)
        for name, level in _signs(seconds, before, usage).items():
            old = self._levels.get(name, 0.0)
            self._levels[name] = old + (min(level, 2.0) - old) * pull
        strongest = max(self._levels, key=self._levels.__getitem__, default="")
        if not strongest or self._levels[strongest] < (CALM_FACTOR if self._why else 1.0):
            if now - self._calm_since >= CALM_SECONDS:
                self._why = ""
        else:
            self._calm_since, self._why = now, strongest
        return self._why


def _signs(seconds: float, before: Usage, usage: Usage) -> dict[str, float]:
    """Each sign that this host shows, in units of its threshold."""
    stalled = _growth(before.stalled_seconds, usage.stalled_seconds) / seconds
    stolen = _growth(before.stolen_seconds, usage.stolen_seconds) / seconds / usage.cores
    again = _growth(before.retransmitted, usage.retransmitted) / seconds
    return {
        "tasks wait for a CPU": stalled / STALL_FRACTION,
        "the hypervisor takes CPU time away": stolen / STEAL_FRACTION,
        "more tasks run than there are cores": (usage.running or 0) / usage.cores / RUNNING_PER_CORE,
        "our own stream is being sent again": again / RETRANSMITTED_PER_SECOND,
    }


def _growth(before: float | None, after: float | None) -> float:
    return 0.0 if before is None or after is None else max(0.0, after - before)


class BackPressure:
    """Says how many bytes/s the capture may bring in."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, int, float]] = deque()
        """(when, acknowledged bytes, lag), of the last second of backlog."""
        self._is_on = False

    def step(self, now: float, counters: Counters) -> float:
        """The cap that the collector's pace asks for; infinite while it keeps up."""
        is_backlog = counters.ring_fill > BACKLOG_FILL or counters.ack_lag_seconds > LAG_SECONDS / 2
        if not is_backlog:
            self._past.clear()
        self._past.append((now, counters.acked_bytes, counters.ack_lag_seconds))
        while len(self._past) > 2 and self._past[1][0] <= now - ACKED_SECONDS:
            self._past.popleft()
        since, acked, lag = self._past[0]
        grows = counters.ack_lag_seconds > max(LAG_SECONDS, lag * LAG_GROWTH)
        is_lagging = counters.ack_lag_seconds > LAG_SECONDS / 2 and self._is_on
        threshold = RING_LOW if self._is_on else RING_HIGH
        self._is_on = counters.ring_fill > threshold or grows or is_lagging
        if not self._is_on:
            return inf
        free_bytes = max(0.0, 1 - counters.ring_fill) * counters.ring_bytes
        pace = (counters.acked_bytes - acked) / max(LEAST_ACKED_SECONDS, now - since)
        return max(ACKED_SHARE * pace, free_bytes / AWAY_SECONDS)
