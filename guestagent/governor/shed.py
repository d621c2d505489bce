"""The most faithful limits whose predicted cost fits: a walk down the ladder of rungs. Pure, and without memory.

Each rung is used as little as will do before the next one is touched:

| rung | how little |
|---|---|
| heavy | the fewest flows, largest first, cut to headers; all others whole |
| thin | the largest fraction of their packets, and the fewest flows for it |
| headers | of everything; then as large a fraction of the heavy flows as fits |
| sample | the largest fraction of whole flows |
| pause | |

A flow is heavy when its full copy takes a twenty-fifth of some bound. Other flows' packets are never picked at random.

Fractions lie on a geometric grid, 5 % apart. Neighbours on it are one step of severity apart, which makes severities
whole numbers that compare without noise.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from math import ceil, inf, log

from guestagent.governor.limits import Limits, Rung
from guestagent.governor.predict import Cost, CostModel
from guestagent.governor.rates import Demand, Rates

MOST_HEAVY = 16
"""Compares in the filter, a few ns each for every packet."""
HEAVY_SHARE = 0.04
"""Of a bound, that a flow must take to be heavy: sixteen such flows are most of it, and mice are far below."""
LEAST_HEAVY_FRACTION = 0.01
"""Never none: a flow of which nothing passes looks like one that ended."""
THIN_SHARE, THIN_TOLERANCE = 0.1, 1.2
"""Of a bound, what the fraction that is kept of heavy flows may take beside their rejection, and in units of that, when
they are thinned anew. Each packet of such a flow waits for what we do to the one before, so that its sample is taken
from its speed, however idle the other cores are; and a fifteenth of the headers tells what a third does."""
LEAST_SAMPLE = 0.02
GRID = 1.05


_FIELDS = {
    Rung.HEAVY: "heavy",
    Rung.THIN: "heavy_fraction",
    Rung.HEADERS: "slice",
    Rung.SAMPLE: "sample",
    Rung.PAUSE: "paused",
}
"""What each rung changes."""


def on_grid(fraction: float, least: float) -> float:
    """The largest fraction of the grid that is not above this one."""
    return max(least, GRID ** -ceil(log(1 / fraction) / log(GRID) - 1e-9)) if fraction < 1 else 1.0


def _steps(fraction: float) -> int:
    return round(-log(max(fraction, 1e-6)) / log(GRID))


def severity(limits: Limits, base: Limits, order: Sequence[Rung]) -> tuple[int, int]:
    """How far down the ladder, and how far on that rung; larger is less faithful."""
    thinned = _steps(limits.heavy_fraction) if limits.heavy else 0
    engaged = {
        Rung.HEAVY: len(limits.heavy),
        Rung.THIN: thinned,
        Rung.HEADERS: 1 + thinned if limits.slice != base.slice else 0,
        Rung.SAMPLE: _steps(limits.sample / base.sample),
        Rung.PAUSE: int(limits.paused),
    }
    return max(((at + 1, engaged[rung]) for at, rung in enumerate(order) if engaged[rung]), default=(0, 0))


def allowed(limits: Limits, base: Limits, order: Sequence[Rung]) -> Limits:
    """Without what rungs did that are not in this order."""
    forbidden = [field for rung, field in _FIELDS.items() if rung not in order]
    return limits._replace(**{field: getattr(base, field) for field in forbidden})


def combined(one: Limits, other: Limits) -> Limits:
    """What keeps no more than either of them; the heavy flows of `other` first."""
    return one._replace(
        slice=_shorter(one.slice, other.slice),
        heavy=tuple(dict.fromkeys(other.heavy + one.heavy))[:MOST_HEAVY],
        heavy_fraction=min(one.heavy_fraction, other.heavy_fraction),
        sample=min(one.sample, other.sample),
        paused=one.paused or other.paused,
    )


def _shorter(one: str | int, other: str | int) -> str | int:
    """Headers are the least: no slice in bytes is meant to cut them."""
    if "headers" in (one, other):
        return "headers"
    if isinstance(one, int) and isinstance(other, int):
        return min(one, other)
    return other if isinstance(one, str) else one


class Forecast:
    """One demand under a model: what any limits would cost. Sums that the ladder asks for again and again are kept."""

    def __init__(self, demand: Demand, model: CostModel, base: Limits) -> None:
        self._demand, self._model, self._base = demand, model, base
        self._rates, self._total = dict(demand.flows), demand.total
        self._unavoidable = model.idle.plus(model.cost(demand.unselected, 0.0, base.slice))
        self._whole_bytes: dict[str | int, float] = {}
        """Bytes that everything takes where it leaves, by slice."""
        self._costs: dict[Limits, Cost] = {}
        self._heavy: dict[Cost, tuple[int, ...]] = {}
        self._differences: dict[tuple[int, float, float, str | int], Cost] = {}

    def cost(self, limits: Limits) -> Cost:
        """Own time, the share of others, and what must leave."""
        if limits not in self._costs:
            self._costs[limits] = self._cost(limits)
        return self._costs[limits]

    def _cost(self, limits: Limits) -> Cost:
        if limits.paused:
            return self._model.idle
        keep = limits.sample / self._base.sample
        cost = self._unavoidable.plus(self._model.cost_of(self._total, keep, self._bytes_under(limits.slice)))
        for flow in limits.heavy:
            cost = cost.plus(self.difference(flow, limits))
        return cost

    def is_thin_enough(self, limits: Limits, bound: Cost) -> bool:
        """Does the fraction of heavy flows take no more than its share of a bound, or hardly more?"""
        if not limits.heavy or limits.heavy_fraction == 1:
            return True
        rejected = limits._replace(heavy_fraction=LEAST_HEAVY_FRACTION)
        return self.cost(limits).cpu - self.cost(rejected).cpu <= THIN_TOLERANCE * THIN_SHARE * bound.cpu

    def difference(self, flow: int, limits: Limits) -> Cost:
        """What it changes to name one flow heavy."""
        key = flow, limits.heavy_fraction, limits.sample, limits.slice
        if key not in self._differences:
            rates = self._rates.get(flow, Rates())
            ordinary = self._model.cost(rates, limits.sample / self._base.sample, limits.slice)
            self._differences[key] = self._model.cost(rates, limits.heavy_fraction, "headers").plus(ordinary, -1.0)
        return self._differences[key]

    def _bytes_under(self, slice_: str | int) -> float:
        if slice_ not in self._whole_bytes:
            parts = (self._demand.rest, *self._rates.values())
            self._whole_bytes[slice_] = sum(self._model.whole_bytes(slice_, rates) for rates in parts)
        return self._whole_bytes[slice_]

    def elephant_cores(self, budget_cores: float) -> float:
        """What the flows that are heavy against a budget cost at the least, nearly all of their packets rejected."""
        heavy = self.heavy(Cost(budget_cores, inf, inf, inf)) if budget_cores < inf else ()
        return sum(self._model.cost(self._rates[flow], LEAST_HEAVY_FRACTION, "headers").cpu for flow in heavy)

    def heavy(self, bound: Cost) -> tuple[int, ...]:
        """The flows that are heavy against a bound, heaviest first."""
        if bound not in self._heavy:
            ordinary = bound.times(HEAVY_SHARE)
            found = [(cost.worst(bound)[0], flow) for flow, cost in self._wholes if not cost.fits(ordinary)]
            self._heavy[bound] = tuple(flow for _, flow in sorted(found, reverse=True)[:MOST_HEAVY])
        return self._heavy[bound]

    @cached_property
    def _wholes(self) -> list[tuple[int, Cost]]:
        """What the full copy of each flow costs."""
        return [(flow, self._model.cost(rates, 1.0, self._base.slice)) for flow, rates in self._demand.flows]


def shed(forecast: Forecast, bound: Cost, base: Limits, order: Sequence[Rung], grant: Cost) -> Limits:
    """The most faithful limits within the bound; the last rung's least where none is.

    `grant` is the bound without what is owed at the moment: flows are weighed against this.
    """
    if forecast.cost(base).fits(bound):
        return base
    walk = _Walk(forecast, bound, base, forecast.heavy(grant))
    for rung in order:
        if walk.try_rung(rung):
            break
    return walk.limits


class _Walk:
    """The limits on the way down, and what each rung does to them."""

    def __init__(self, forecast: Forecast, bound: Cost, base: Limits, heavy: tuple[int, ...]) -> None:
        self._forecast, self._bound, self._base, self._heavy = forecast, bound, base, heavy
        self.limits = base

    def try_rung(self, rung: Rung) -> bool:
        """Go down one rung as little as fits; as far as it goes, and False, where nothing does."""
        match rung:
            case Rung.HEAVY:
                return self._cut()
            case Rung.THIN:
                return self._thin()
            case Rung.HEADERS:
                self.limits = self.limits._replace(slice="headers")
                is_thin = self.limits.heavy_fraction < 1
                return self._most("heavy_fraction", LEAST_HEAVY_FRACTION) if is_thin else self._fits(self.limits)
            case Rung.SAMPLE:
                return self._most("sample", LEAST_SAMPLE * self._base.sample)
            case Rung.PAUSE:
                self.limits = self.limits._replace(paused=True)
                return True

    def _fits(self, limits: Limits) -> bool:
        return self._forecast.cost(limits).fits(self._bound)

    def _by_count(self, fraction: float) -> list[Cost]:
        """The cost with the first, the first two... heavy flows named, at this fraction of them."""
        limits = self.limits._replace(heavy=(), heavy_fraction=fraction)
        changes = (self._forecast.difference(flow, limits) for flow in self._heavy)
        return list(accumulate(changes, Cost.plus, initial=self._forecast.cost(limits)))[1:]

    def _cut(self) -> bool:
        """Name as few heavy flows as suffice; all where none do."""
        costs = self._by_count(1.0)
        count = next((at for at, cost in enumerate(costs, 1) if cost.fits(self._bound)), None)
        self.limits = self.limits._replace(heavy=self._heavy[: count or len(costs)])
        return count is not None

    def _thin(self) -> bool:
        """Thin as few heavy flows as leave about the largest fraction of them."""
        lows, highs = self._by_count(LEAST_HEAVY_FRACTION), self._by_count(1.0)
        if not lows:
            return False
        fractions = [_largest(low, high, self._thin_bound(low)) for low, high in zip(lows, highs, strict=True)]
        count = next(at for at, one in enumerate(fractions, 1) if one >= max(fractions) / GRID)
        fraction = LEAST_HEAVY_FRACTION + fractions[count - 1] * (1 - LEAST_HEAVY_FRACTION)
        fits = lows[count - 1].fits(self._bound)
        self.limits = self.limits._replace(
            heavy=self._heavy if not fits else self._heavy[:count],
            heavy_fraction=on_grid(fraction, LEAST_HEAVY_FRACTION),
        )
        return fits

    def _thin_bound(self, low: Cost) -> Cost:
        return self._bound._replace(cpu=min(self._bound.cpu, low.cpu + THIN_SHARE * self._bound.cpu))

    def _most(self, name: str, least: float) -> bool:
        """The largest value of a fraction that fits: cost is linear in it."""
        at: Callable[..., Limits] = self.limits._replace
        top = getattr(self._base, name)
        low, high = self._forecast.cost(at(**{name: least})), self._forecast.cost(at(**{name: top}))
        bound = self._thin_bound(low) if name == "heavy_fraction" else self._bound
        fraction = least + _largest(low, high, bound) * (top - least)
        self.limits = at(**{name: on_grid(fraction / top, least / top) * top})
        return low.fits(self._bound)


def _largest(low: Cost, high: Cost, bound: Cost) -> float:
    """How far one can go from a low cost towards a high one, within the bound."""
    ways = ((limit - a) / (b - a) for a, b, limit in zip(low, high, bound, strict=True) if b > a and b > limit)
    return max(0.0, min(ways, default=1.0))
