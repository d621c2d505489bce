"""When the next tick is due, and how closely to look until then: the more, the more changes. Pure.

A tick takes two milliseconds beside a busy application, whose data has pushed ours out of the caches; on a VM of one
core ten a second are two fifths of a budget of 5 %. So limits that hold still are asked about a fifth as often, and
whatever changes that brings the next tick forward. How far heavy flows are thinned may follow them meanwhile.

What is kept must not decide how often we look: a whole copy that brought its ticks forward cost more than the forecast
that gave it back, was taken again, and so on.
"""

from enum import Enum
from math import inf

from guestagent.governor.limits import Budgets
from guestagent.governor.predict import CostModel

TICK_SECONDS = 0.1
LEAST_TICK_SECONDS = 0.02
"""A shorter look has too few packets to judge by."""
STEADY_TICK_SECONDS, STEADY_AFTER_SECONDS = 0.5, 0.35
"""Four looks at what a move made of the load. In a whole second of them, ten, the looks themselves ate the room in
which a flow had been given back."""
AHEAD_SECONDS = 0.15
"""What is so far ahead of its usual pace, or of the budget's, brings a tick forward. Blocks come by up to a tenth of a
second of records at once."""
EARLY_SHARE = 0.7
"""Of a wait: from then on a tick is welcome when the agent is awake anyway, so that it need not wake for it."""
PROBE_SECONDS = 0.05
CROWDED_FILL, CROWDED_TICK_SECONDS = 0.125, 0.005
"""An eighth of the ring has packets enough to judge by, however short the look; 17 Gbit/s fill the rest in 25 ms."""
PEEK_SECONDS, PEEK_RECORDS = 0.005, 64
"""Between looks into blocks, and how far into each while something changes."""
CLOSE_LOOKS = 4 * PEEK_RECORDS
"""Between two ticks, of that depth."""
CALM_LOOKS_PER_SECOND = 600
"""Else. A look at a record takes 4 µs beside a busy application: all 64 of 200 blocks a second were 5 % of a core. The
half second of them that is remembered tells the share of a flow to a few in a hundred."""


class State(Enum):
    """What the last tick left behind."""

    WHOLE = "everything is kept"
    SHEDDING = "something is shed"
    DOUBTING = "something would be shed, if the next looks agree"
    PROBING = "the filter is open for a moment"


class Pace:
    """Told of blocks, of the ring and of ticks."""

    def __init__(self, budgets: Budgets, budget_cores: float, now: float) -> None:
        self._budgets, self._budget_cores = budgets, budget_cores
        self.due_at = self.early_at = now
        self._state = State.WHOLE
        self._ticked_at = self._moved_at = -inf
        self._look_at = now
        self._close_looks = CLOSE_LOOKS
        self._is_hurried = False
        self._ring_fill = 0.0
        self._records = self._bytes = 0
        """Since the last tick."""
        self._usual_cores = 0.0
        """What the records of the tick before may have cost, per second."""

    def looks(self, now: float, blocks: int) -> int:
        """How many records of each of so many blocks are worth a look now; 0 for none."""
        if now < self._look_at:
            return 0
        since, self._look_at = now - self._look_at + PEEK_SECONDS, now + PEEK_SECONDS
        is_calm = self._state in (State.WHOLE, State.SHEDDING) and self._is_steady(now) and not self._is_hurried
        if self._close_looks > 0 and not is_calm:
            self._close_looks -= blocks * PEEK_RECORDS
            return PEEK_RECORDS
        return int(min(PEEK_RECORDS, CALM_LOOKS_PER_SECOND * since / blocks))

    def arrived(self, now: float, records: int, ring_bytes: int, model: CostModel) -> None:
        """The kernel retired blocks."""
        self._records += records
        self._bytes += ring_bytes
        if self._is_dear(now, model):
            self._hurry(LEAST_TICK_SECONDS)

    def ring_filled(self, fill: float) -> None:
        """The ring holds so much, as a fraction."""
        if fill > self._ring_fill + CROWDED_FILL:
            self._hurry(CROWDED_TICK_SECONDS)

    def _is_dear(self, now: float, model: CostModel) -> bool:
        """Whether more came in by now than usually, and than the budgets have for it."""
        if self._state is State.PROBING:
            return False
        since = now - self._ticked_at + AHEAD_SECONDS
        price = model.price(self._records, self._bytes)
        return price > since * max(self._usual_cores, self._budget_cores) or (
            self._state is not State.SHEDDING
            and (
                self._bytes > since * self._budgets.bytes_per_second
                or self._records > since * self._budgets.packets_per_second
            )
        )

    def _hurry(self, least_seconds: float) -> None:
        self.due_at = min(self.due_at, self._ticked_at + least_seconds)
        self.early_at = min(self.early_at, self.due_at)
        self._is_hurried = True

    def begin(self, now: float, ring_fill: float) -> None:
        """The first tick, that has nothing to compare with."""
        self._ticked_at, self._ring_fill = now, ring_fill
        self.due_at = self.early_at = now + TICK_SECONDS

    def ticked(self, now: float, ring_fill: float, state: State, model: CostModel, *, has_moved: bool) -> None:
        """A tick is over; whether it changed what is kept, but for the fraction of heavy flows."""
        if self._state is not State.PROBING:
            self._usual_cores = model.price(self._records, self._bytes) / (now - self._ticked_at)
        self._records = self._bytes = 0
        self._close_looks, self._is_hurried = CLOSE_LOOKS, False
        self._ticked_at, self._ring_fill, self._state = now, ring_fill, state
        if has_moved:
            self._moved_at = now
        wait_seconds = self._wait_seconds(now)
        is_exact = self._state in (State.DOUBTING, State.PROBING)
        self.due_at, self.early_at = now + wait_seconds, now + (1.0 if is_exact else EARLY_SHARE) * wait_seconds

    def _wait_seconds(self, now: float) -> float:
        match self._state:
            case State.DOUBTING:
                return LEAST_TICK_SECONDS
            case State.PROBING:
                return PROBE_SECONDS
        return STEADY_TICK_SECONDS if self._is_steady(now) else TICK_SECONDS

    def _is_steady(self, now: float) -> bool:
        return now - self._moved_at >= STEADY_AFTER_SECONDS
