"""The law: budgets, demand and pressure in; the most faithful limits that fit out. Pure; time is an argument.

    blocks, peeks ────► demand ──► forecast ──► shed at once when the limits in force don't fit
    counters, usage ──► account, bounds ──┘     give back when better ones have fitted for a while

**Predict, do not grope.** A controller that knows only its own consumption must try the full copy to learn whether it
fits, and falls into a cycle: give back, overrun, take away. Records carry their original length and the filter's
fractions are known, so demand is known under any limits (demand.py) and their cost is computed (predict.py).

**The account.** Its balance, in CPU seconds, grows with the budget and shrinks with what was spent: our own measured
time and the computed share of others. With the budget b and the balance c (bounds.py):

    shed when     cost(limits in force) > 0.9 b + max(0, c) / 0.1 s     c <= 0.25 s x b: a burst passes; a load beyond b
                                                                        drains c, and is shed the later the less it is
    shed down to  0.9 b - debt / 2 s, at least 0.1 b                    what was overrun is paid back; a twentieth more
                                                                        is borne, or each tick would swap the filter
    give back     what fits 0.95 of that all through the hold

In T seconds the cost is at most b (T + 0.25 s) and the overruns of that time. An overrun is what a surge costs before
it is seen. A tick is due when what came in is 0.15 s ahead of the budget (pace.py), so the steeper a surge, the shorter
it lasts; then its cost e makes the bound 0.9 b - e / 2 s, and is gone within a window of 5 s.

What is heavy is told by the budget, not by what a debt leaves of it: in deep debt each small flow would be, and a debt
must not grow by swaps of the filter for who is first among equals.

**An elephant's rejection is not paid by others.** On egress the kernel clones a packet before it asks the filter, so a
flow at full speed costs some of the budget when nothing of it is kept, and only a pause would save that. Shedding
others for it would blind the tap and save nothing; so beside the rejection of heavy flows there is always a fifth
of the budget for the rest, until the whole is three budgets. The elephant gets nothing of that: how far it is thinned
is decided without it. Many small flows are no elephant: these are sampled. And a sample of an elephant is bought from
it, packet by packet on the one core that carries it, whatever idles beside: it gets a tenth of the budget (shed.py).

**A surge is doubted** where it would take something from ordinary flows: a block shows its first records first, and in
the first moment of a flood these are older than the flood. Two more looks 20 ms apart tell who it is; heavy flows are
cut without doubt, and a sample is made smaller so unless the load just rose: looks cost, and a debt would grow by them.

**No cycle.** Between giving back (0.86 b) and shedding (b) nothing moves. What is given back is the *least* of all
better limits computed during the hold, in one step. A full copy is given back at 0.95 b, or a load that fits could be
stuck below it, but at 0.86 b, too, where the last one had to be taken again. What had to be taken again within ten
seconds doubles the hold, to 4 s at most; half a minute without shedding resets it. So a load that comes and goes
within 4 s is held as if it stayed. Demand is forgotten within 2 s of its end, pressure within 3 s, and the hold ends
4 s later: full fidelity within ten. One cycle is left on purpose. What a slow collector could take is not known until
it is tried; a try begins with an empty ring, ends when that is half full, and they come no closer than the hold.

**Stability.** Demand does not depend on the limits, so prediction closes no loop. Two loops remain. The account:
dc/dt = b - cost, and cost <= 0.9 b + c / 2 s in debt: a first-order lag of 2 s, four times the delay of a steady tick.
The learning of our own cost: a third of the error each half second on bounded weights (predict.py). Where the model
errs for good, the debt tightens the bound until the spending fits, and learning takes over.

**Caps** on bytes and packets are kept by token buckets (bucket.py); here they bound what may be captured. They delay
before they limit: what a cap lets out in a second may wait in the ring. Half of that should, so that the cap is used.

**Yield** asks for a fifth of the budget and never for less than headers: who burns the VM's CPU must not blind the tap.

**Probes.** Under sampling and pause most flows are invisible. Each second the filter is opened for 50 ms to the headers
of all flows, or of as many as a twelfth of a second's budget allows.
"""

from collections.abc import Iterable, Sequence
from math import inf

from guestagent.governor.bounds import CAPS, Bound, Bounds, Overheads
from guestagent.governor.demand import DemandEstimator, Sample
from guestagent.governor.limits import DEFAULT_ORDER, Budgets, Counters, Limits, Rung, Usage
from guestagent.governor.pace import PROBE_SECONDS, Pace, State
from guestagent.governor.predict import CostModel
from guestagent.governor.rates import Demand, Rates
from guestagent.governor.reason import sentence
from guestagent.governor.shed import Forecast, allowed, combined, severity, shed

CONFIRM_SECONDS = 0.035
"""Two more looks at what a surge consists of."""
HOLD_SECONDS, MOST_HOLD_SECONDS = 1.0, 4.0
CAP_HOLD_SECONDS = 0.3
"""For a little more under a cap, which the bucket keeps whatever we think: holding on longer would leave it unused."""
RELAPSE_SECONDS, STEADY_SECONDS = 10.0, 30.0
PROBE_EVERY_SECONDS = 1.0
PROBE_SHARE = 0.08
"""Of a second's budget."""
LEAST_PROBE_SAMPLE = 0.001

WHOLE = Limits()


class Governor:
    """Told of blocks and filter swaps as they happen; at `due_at` it wants a tick, and answers with limits."""

    def __init__(
        self,
        budgets: Budgets,
        cores: int,
        now: float,
        *,
        base: Limits = WHOLE,
        order: Sequence[Rung] = DEFAULT_ORDER,
        model: CostModel | None = None,
        start: Limits | None = None,
    ) -> None:
        """`start` holds until the first decisions: the limits of the governor before, at other budgets."""
        self._budgets, self._order, self._cores = budgets, tuple(order), cores
        self._base = base._replace(byte_cap=budgets.bytes_per_second, packet_cap=budgets.packets_per_second)
        self.limits = self._steady = self._base if start is None else self._begun(start)
        self.model = model or CostModel()
        self.demand = Demand()
        self.spent_cores = 0.0
        """Own and charged, in the last tick."""
        self._estimator = DemandEstimator(self._base, self.limits)
        self._bounds = Bounds(budgets, cores, self._order)
        self._pace = Pace(budgets, self._bounds.account.budget_cores, now)
        self._last: tuple[float, Counters, Usage] | None = None
        self._probe_at = now
        self._taken_records = self._taken_bytes = 0
        self._better: tuple[float, Limits] | None = None
        """Since when something better would fit, and the least of that."""
        self._hold_seconds = HOLD_SECONDS
        self._shed_at = self._given_back_at = -inf
        self._doubted_at = inf
        self._is_capped = False
        """The last shedding was for a cap."""

    def _begun(self, start: Limits) -> Limits:
        kept = combined(self._base, allowed(start, self._base, self._order))
        is_less = kept.selection != self._base.selection
        return kept._replace(reason=start.reason, since=start.since) if is_less else self._base

    @property
    def steady(self) -> Limits:
        """The limits in force, or those that a probe interrupts."""
        return self._steady

    # -- between ticks --------------------------------------------------------------------------------------------

    @property
    def due_at(self) -> float:
        """When the next tick is wanted."""
        return self._pace.due_at

    @property
    def early_at(self) -> float:
        """From when on it is welcome."""
        return self._pace.early_at

    def arrived(self, now: float, records: int, ring_bytes: int, blocks: int) -> int:
        """The kernel retired blocks, taken or not. How many records of each of so many are worth a look; 0 for none."""
        self._pace.arrived(now, records, ring_bytes, self.model)
        return self._pace.looks(now, blocks)

    def seen(self, records: int, samples: Iterable[Sample] = ()) -> None:
        """So many of these records were in one block; with samples of them, where looks were wanted."""
        self._estimator.block(records, samples)

    def taken(self, records: int, ring_bytes: int) -> None:
        """A block went to the link; this is what our own time is spent on."""
        self._taken_records += records
        self._taken_bytes += ring_bytes

    def ring_filled(self, fill: float) -> None:
        """The ring holds so much, as a fraction; worth telling whenever it is known."""
        self._pace.ring_filled(fill)

    def applied(self, now: float, wall_ns: int) -> None:
        """The filter of the last limits is in force, since `wall_ns` on the clock of the records."""
        self._estimator.applied(now, wall_ns, self.limits)

    # -- a tick ---------------------------------------------------------------------------------------------------

    def tick(self, now: float, counters: Counters, usage: Usage) -> Limits:
        """What was read since the last tick becomes the limits until the next."""
        if self._last is None or now <= self._last[0]:
            self._last = self._last or (now, counters, usage)
            self._pace.begin(now, counters.ring_fill)
            return self.limits
        then, before, used = self._last
        self._last = (now, counters, usage)
        seconds, captured = now - then, max(0, counters.captured - before.captured)
        traffic = counters.traffic.since(before.traffic) if counters.traffic and before.traffic else None
        self.model.record_bytes = counters.record_bytes
        self.demand = self._estimator.close(seconds, captured, traffic, self._taken_bytes)
        total = self.demand.total
        self._book(seconds, captured, total, used, usage)
        record_bytes = counters.record_bytes + (total.original_bytes / total.packets if total.packets else 0.0)
        forecast = Forecast(self.demand, self.model, self._base)
        elephant_cores = forecast.elephant_cores(self._bounds.account.budget_cores)
        bounds = self._bounds.at(now, counters, usage, Overheads(record_bytes, self.model.idle.own, elephant_cores))
        selection = self._steady.selection
        self._decide(now, forecast, bounds)
        self.limits = self._probe(now, forecast) or self._steady
        has_moved = self._steady.selection._replace(heavy_fraction=selection.heavy_fraction) != selection
        self._pace.ticked(now, counters.ring_fill, self._state(), self.model, has_moved=has_moved)
        return self.limits

    def _state(self) -> State:
        if self._doubted_at < inf:
            return State.DOUBTING
        if self.limits.is_probe:
            return State.PROBING
        return State.WHOLE if self._is_whole(self._steady) else State.SHEDDING

    def _book(self, seconds: float, captured: int, total: Rates, used: Usage, usage: Usage) -> None:
        """Charge what the last seconds cost to the account, and learn from it."""
        own = self.model.own_cores(self._taken_records, self._taken_bytes) + self.model.idle.own * seconds
        if used.own_seconds is not None and usage.own_seconds is not None:
            own = max(0.0, usage.own_seconds - used.own_seconds)
            self.model.learn(seconds, self._taken_records, self._taken_bytes, own)
        part = min(1.0, captured / seconds / total.packets) if total.packets else 0.0
        if self.limits.paused:
            share = self.model.share(total.scaled(part), 1.0, self._taken_bytes / seconds)
        else:
            share = self.model.share(total, part, self._taken_bytes / seconds)
            share += self.model.share(self.demand.unselected, 0.0, 0.0)
        self._taken_records = self._taken_bytes = 0
        self.spent_cores = own / seconds + share
        self._bounds.account.spend(seconds, self.spent_cores)

    # -- the decision ---------------------------------------------------------------------------------------------

    def _decide(self, now: float, forecast: Forecast, bounds: list[Bound]) -> None:
        wanted, cause = self._steady, ""
        for one in bounds:
            if not (forecast.cost(wanted).fits(one.tolerated) and forecast.is_thin_enough(wanted, one.aim)):
                wanted = combined(wanted, shed(forecast, one.aim, self._base, one.order, one.grant))
                cause = one.cause
        wanted = self._confirmed(now, wanted)
        if wanted.selection != self._steady.selection:
            self._is_capped = cause in CAPS
            if now - self._given_back_at < RELAPSE_SECONDS and not self._is_capped:
                self._hold_seconds = min(MOST_HOLD_SECONDS, 2 * self._hold_seconds)
                self._given_back_at = -inf
            self._shed_at, self._better = now, None
        elif not self._is_whole(wanted):
            wanted = self._give_back(now, forecast, bounds)
        if now - self._shed_at > STEADY_SECONDS:
            self._hold_seconds = HOLD_SECONDS
        self._steady = self._explained(now, wanted, forecast, bounds)

    def _confirmed(self, now: float, wanted: Limits) -> Limits:
        """What is taken from ordinary flows is taken when it is still wanted after a moment of closer looks."""
        steady = self._steady
        is_new = (wanted.slice, wanted.paused) != (steady.slice, steady.paused)
        is_deeper = self._samples(steady) and not self._estimator.is_surging
        if not is_new and (wanted.sample == steady.sample or is_deeper):
            self._doubted_at = inf
            return wanted
        self._doubted_at = min(now, self._doubted_at)
        if now - self._doubted_at < CONFIRM_SECONDS:
            return steady
        self._doubted_at = inf
        return wanted

    def _give_back(self, now: float, forecast: Forecast, bounds: list[Bound]) -> Limits:
        """The least of the better limits of a whole hold, once it is over; else what is in force."""
        better, full = self._base, forecast.cost(self._base)
        is_trusted = self._hold_seconds == HOLD_SECONDS
        if not (is_trusted and all(full.fits(one.whole) for one in bounds)):
            for one in bounds:
                better = combined(better, shed(forecast, one.better, self._base, one.order, one.grant))
        if self._severity(better) >= self._severity(self._steady):
            self._better = None
            return self._steady
        since, least = self._better or (now, better)
        self._better = (since, max(least, better, key=self._severity))
        is_soft = self._is_capped and not self._is_whole(self._better[1])
        if now - since < (CAP_HOLD_SECONDS if is_soft else self._hold_seconds):
            return self._steady
        given, self._better, self._given_back_at = self._better[1], None, now
        return given

    def _severity(self, limits: Limits) -> tuple[int, int]:
        return severity(limits, self._base, self._order)

    def _samples(self, limits: Limits) -> bool:
        return limits.sample < self._base.sample

    def _is_whole(self, limits: Limits) -> bool:
        return limits.selection == self._base.selection

    def _explained(self, now: float, limits: Limits, forecast: Forecast, bounds: list[Bound]) -> Limits:
        """The limits with the reason and since when; the old reason where nothing binds and only the hold goes on."""
        if self._is_whole(limits):
            return self._base
        since, reason = (self._steady.since, self._steady.reason) if self._steady.reason else (now, "")
        full = forecast.cost(self._base)
        worst = max(((full.worst(one.aim), one.cause) for one in bounds), default=None)
        if worst and (worst[0][0] > 1 or not reason):
            (_, part), cause = worst
            reason = sentence(limits, cause, part, full, budgets=self._budgets, cores=self._cores)
        return limits._replace(reason=reason, since=since)

    def _probe(self, now: float, forecast: Forecast) -> Limits | None:
        """Open the filter for a moment, once a second, where most is hidden."""
        steady = self._steady
        is_blind = steady.paused or self._samples(steady)
        if not is_blind or self.limits.is_probe or now < self._probe_at:
            return None
        self._probe_at = now + PROBE_EVERY_SECONDS
        slice_ = "headers" if Rung.HEADERS in self._order else self._base.slice
        probe = steady._replace(slice=slice_, sample=self._base.sample, paused=False, is_probe=True)
        price = forecast.cost(probe).cpu * PROBE_SECONDS
        part = min(1.0, PROBE_SHARE * self._bounds.account.budget_cores / price) if price > 0 else 1.0
        return probe._replace(sample=self._base.sample * max(LEAST_PROBE_SAMPLE, part))
