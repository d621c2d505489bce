"""What budgets, caps, the collector's pace and the VM's pressure ask for, each as bounds on cost. Pure.

The essay on how the numbers work together stands above the law (law.py).
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from guestagent.governor.limits import DEFAULT_CPU_PERCENT, OWN_CORES, Budgets, Counters, Rung, Usage
from guestagent.governor.predict import Cost
from guestagent.governor.pressure import BackPressure, Yielding

AIM = 0.9
"""Of a bound, when limits are chosen: room for what a mean over half a second doesn't show."""
GIVE_BACK, GIVE_BACK_WHOLE = 0.95, 1.05
"""Of the aim: what better limits may cost, and what a full copy may, if the last one given back was not taken again."""
TOLERANCE = 1.05
"""Of what limits in force may cost beyond the aim while a debt grows: a filter is not swapped for less than that."""
BURST_SECONDS = 0.1
"""A credit may be spent within one tick."""
REPAY_SECONDS = 2.0
MOST_CREDIT_SECONDS = 0.25
MOST_DEBT_SECONDS = 2.0
"""In seconds of budget: a stall of the whole VM isn't held against us for longer."""
LEAST_SHARE = 0.1
"""Of the budget, in the deepest debt: enough for the headers of most VMs."""
ORDINARY_SHARE, MOST_OVERDRAFT = 0.2, 3.0
"""Of the budget: what ordinary flows may always take beside an elephant, and where even that ends. With less, 2,000
packets/s beside a flood of 160,000 don't fit on a single core; with more, a flood that can be paid for breaks it."""
RING_SHARE, RING_DELAY_SECONDS = 0.25, 0.5
"""The part of the ring that a cap may fill, and how fast."""
MOST_WAIT_SECONDS, WAIT_SECONDS = 1.0, 0.5
"""Of a cap's time, that may wait in the ring, and that should: more would be late copies, and late is next to lost for
a sensor; with less, a cap would not be used up whenever traffic takes a breath."""
CATCH_UP_SECONDS, LEAST_CATCH_UP = 5.0, 0.5
"""What waits beyond is gone in so long, at the price of half of the cap at most."""
GIVE_BACK_TO_CAP, GIVE_BACK_WHOLE_TO_CAP = 1.03, 0.98
"""A cap is kept by its bucket, so better limits may cost a little more than it; a full copy may not."""
CAPS = ("rate", "packets")
WIRE_OVERHEAD = 1.05
"""Bytes on the wire for one of a record: 66 of headers in each 1,514, and reports."""
YIELD_SHARE = 0.2
MOST_STEP_SECONDS = 1.0
"""What was spent in a longer time than this is booked as if in this: the VM was suspended."""


class Bound(NamedTuple):
    """One reason to shed: what the limits in force may cost, what new ones may, and the rungs it may use."""

    cause: str
    tolerated: Cost
    aim: Cost
    order: Sequence[Rung]
    better: Cost
    """What less severe limits may cost, to be given back."""
    whole: Cost
    """What a full copy may cost, to be given back, if the last one was not taken again."""
    grant: Cost
    """What it allows who owes nothing: flows are weighed against this. In debt hardly any flow would be ordinary."""


class Overheads(NamedTuple):
    """What is spent whatever the limits."""

    record_bytes: float
    """Of the ring, for a record of mean size."""
    idle_cores: float
    elephant_cores: float
    """For heavy flows, nearly all of whose packets are rejected."""


class Account:
    """CPU seconds that the budget brought in and that were not spent; in debt after an overrun."""

    def __init__(self, budget_cores: float) -> None:
        self.budget_cores = self._granted_cores = budget_cores
        self.balance_seconds = MOST_CREDIT_SECONDS * budget_cores if budget_cores < inf else 0.0

    def spend(self, seconds: float, cores: float) -> None:
        """Book some time."""
        if self.budget_cores < inf:
            balance = self.balance_seconds + (self._granted_cores - cores) * min(seconds, MOST_STEP_SECONDS)
            most, least = MOST_CREDIT_SECONDS * self.budget_cores, -MOST_DEBT_SECONDS * self.budget_cores
            self.balance_seconds = max(least, min(most, balance))

    def bounds(self, order: Sequence[Rung], overheads: Overheads) -> list[Bound]:
        """What may be spent from now on; beside an elephant, what is spent on it, and what on all."""
        budget, debt = self.budget_cores, min(0.0, self.balance_seconds) / REPAY_SECONDS
        aim = max(LEAST_SHARE * budget, AIM * budget + debt)
        self._granted_cores = budget
        if not overheads.elephant_cores:
            return [self._bound(aim, order)]
        unavoidable = overheads.idle_cores + overheads.elephant_cores
        wider = max(aim, min(unavoidable + ORDINARY_SHARE * budget, MOST_OVERDRAFT * budget))
        self._granted_cores = max(budget, wider)
        of_elephants = tuple(rung for rung in order if rung in (Rung.HEAVY, Rung.THIN))
        return [self._bound(aim, of_elephants), self._bound(wider, order)]

    def _bound(self, aim: float, order: Sequence[Rung]) -> Bound:
        tolerated = max(TOLERANCE * aim, aim + self.balance_seconds / BURST_SECONDS)
        target = Cost(aim, AIM * OWN_CORES, inf, inf)
        grant = target._replace(cpu=AIM * self.budget_cores)
        return _bound("cpu", Cost(tolerated, OWN_CORES, inf, inf), target, order, grant)


def _bound(cause: str, tolerated: Cost, aim: Cost, order: Sequence[Rung], grant: Cost) -> Bound:
    return Bound(cause, tolerated, aim, order, aim.times(GIVE_BACK), aim.times(GIVE_BACK_WHOLE), grant)


class Bounds:
    """All of them, at any moment."""

    def __init__(self, budgets: Budgets, cores: int, order: Sequence[Rung]) -> None:
        self._budgets, self._cores, self._order = budgets, cores, order
        self._yielding, self._back_pressure = Yielding(), BackPressure()
        self.account = Account(budgets.cpu_percent / 100 * cores)

    def at(self, now: float, counters: Counters, usage: Usage, overheads: Overheads) -> list[Bound]:
        """Those that hold now."""
        found = self.account.bounds(self._order, overheads) if self.account.budget_cores < inf else []
        rate, packets = self._budgets.bytes_per_second, self._budgets.packets_per_second
        if rate < inf or packets < inf:
            found.append(self._caps(counters, max(1.0, overheads.record_bytes)))
        pace = self._back_pressure.step(now, counters) if self._budgets.follows_collector else inf
        if pace < inf:
            cap = Cost(inf, inf, pace, inf)
            found.append(_bound("collector", cap, cap, self._order, cap))
        if self._budgets.yields and (pressure := self._yielding.step(now, usage)):
            cores = min(self.account.budget_cores, DEFAULT_CPU_PERCENT / 100 * self._cores)
            cap = Cost(overheads.idle_cores + YIELD_SHARE * cores, inf, YIELD_SHARE * rate, inf)
            gentle = tuple(rung for rung in self._order if rung not in (Rung.SAMPLE, Rung.PAUSE))
            found.append(_bound(pressure, cap, cap, gentle, cap))
        return found

    def _caps(self, counters: Counters, record_bytes: float) -> Bound:
        """The caps, as far as the ring may delay what is beyond them."""
        rate = self._budgets.bytes_per_second / WIRE_OVERHEAD / counters.copies
        packets = self._budgets.packets_per_second / counters.copies
        tightest = min(rate, packets * record_bytes)
        waiting_seconds = counters.waiting_bytes / tightest
        most_bytes = min(RING_SHARE * counters.ring_bytes, MOST_WAIT_SECONDS * tightest)
        room = max(0.0, most_bytes - counters.waiting_bytes) / RING_DELAY_SECONDS
        cap = Cost(inf, inf, rate, packets)
        aim = cap.times(max(LEAST_CATCH_UP, min(1.0, 1 + (WAIT_SECONDS - waiting_seconds) / CATCH_UP_SECONDS)))
        return Bound(
            "rate" if rate < inf else "packets",
            Cost(inf, inf, GIVE_BACK_TO_CAP * rate + room, GIVE_BACK_TO_CAP * packets + room / record_bytes),
            aim,
            self._order,
            aim.times(GIVE_BACK_TO_CAP),
            aim.times(GIVE_BACK_WHOLE_TO_CAP),
            cap,
        )
