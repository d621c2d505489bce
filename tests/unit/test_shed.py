"""The ladder: the most faithful limits that fit, or its floor."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.governor.limits import DEFAULT_ORDER, FLOORS, Limits, Rung, shedding_order
from guestagent.governor.predict import Cost, CostModel
from guestagent.governor.rates import Demand, Rates
from guestagent.governor.shed import LEAST_HEAVY_FRACTION, LEAST_SAMPLE, Forecast, combined, on_grid, severity, shed

BASE = Limits()


FLOW = st.builds(
    lambda packets, size, out: Rates(packets * (1 - out), packets * out, packets * size, packets * size),
    st.floats(0, 3e5),
    st.floats(60, 65_000),
    st.floats(0, 1),
)
DEMAND = st.builds(
    lambda flows, rest, unselected: Demand(tuple(enumerate(flows, 1)), rest, unselected),
    st.lists(FLOW, max_size=24),
    FLOW,
    FLOW,
)
BOUND = st.builds(
    Cost, st.floats(0.005, 1), st.just(0.7), st.floats(1e4, 1e9) | st.just(inf), st.floats(10, 1e6) | st.just(inf)
)
ORDERS = st.sampled_from([shedding_order(floors=[floor]) for floor in FLOORS]) | st.permutations(DEFAULT_ORDER)


@given(DEMAND, BOUND, ORDERS)
def test_limits_fit_or_lie_at_the_floor(demand: Demand, bound: Cost, order: list[Rung]) -> None:
    """What the ladder answers costs no more than the bound, unless each of its rungs is used as far as it helps."""
    forecast = Forecast(demand, CostModel(), BASE)
    limits = shed(forecast, bound, BASE, order, bound)
    cost = forecast.cost(limits)
    fits = all(part <= limit * 1.001 + 1e-9 for part, limit in zip(cost, bound, strict=True))
    deepest = limits._replace(
        slice="headers" if Rung.HEADERS in order else limits.slice,
        sample=LEAST_SAMPLE if Rung.SAMPLE in order else limits.sample,
        heavy_fraction=LEAST_HEAVY_FRACTION if Rung.THIN in order else limits.heavy_fraction,
        paused=Rung.PAUSE in order,
    )

    assert fits or cost.worst(bound)[0] <= forecast.cost(deepest).worst(bound)[0] * 1.001


@given(DEMAND, st.floats(0, 1), st.floats(0, 1), st.sampled_from(["full", "headers", 200]))
def test_the_whole_costs_what_its_parts_cost(demand: Demand, keep: float, thin: float, slice_: str | int) -> None:
    """The sums that a forecast keeps are those of the model, flow by flow."""
    model = CostModel()
    heavy = tuple(flow for flow, _ in demand.flows[:5])
    forecast = Forecast(demand, model, BASE)
    cost = forecast.cost(Limits(slice=slice_, sample=keep, heavy=heavy, heavy_fraction=thin))
    parts = [model.idle, model.cost(demand.unselected, 0.0, "full"), model.cost(demand.rest, keep, slice_)]
    for flow, rates in demand.flows:
        parts.append(model.cost(rates, thin, "headers") if flow in heavy else model.cost(rates, keep, slice_))

    for found, column, whole in zip(cost, zip(*parts, strict=True), forecast.cost(BASE), strict=True):
        # What is subtracted again leaves as much as a float can't tell of it.
        assert found == pytest.approx(sum(column), rel=1e-6, abs=1e-12 * whole + 1e-9)


@given(DEMAND, BOUND)
def test_a_wider_bound_is_never_less_faithful(demand: Demand, bound: Cost) -> None:
    """With twice the room the ladder stops no further down."""
    forecast = Forecast(demand, CostModel(), BASE)
    twice = bound.times(2)
    narrow = shed(forecast, bound, BASE, DEFAULT_ORDER, bound)
    wide = shed(forecast, twice, BASE, DEFAULT_ORDER, twice)

    assert severity(wide, BASE, DEFAULT_ORDER)[0] <= severity(narrow, BASE, DEFAULT_ORDER)[0]


@given(DEMAND, BOUND, ORDERS)
def test_a_sample_of_heavy_flows_is_cheap(demand: Demand, bound: Cost, order: list[Rung]) -> None:
    """Where only a fraction of them is kept, that takes a tenth of the bound at most, whatever room there is."""
    forecast = Forecast(demand, CostModel(), BASE)
    limits = shed(forecast, bound, BASE, order, bound)
    if not limits.heavy or limits.heavy_fraction in (1, LEAST_HEAVY_FRACTION):
        return
    rejected = forecast.cost(limits._replace(heavy_fraction=LEAST_HEAVY_FRACTION))

    assert forecast.cost(limits).cpu - rejected.cpu <= 0.1 * bound.cpu * 1.001


def test_the_fewest_heavy_flows_suffer() -> None:
    """Beside a flood, a download that is heavy, too, is left whole; so are mice."""
    flood, download = Rates(0.0, 160_000.0, 1e7, 1e7), Rates(3000.0, 0.0, 4.5e6, 4.5e6)
    demand = Demand(((7, flood), (8, download)), Rates(1000.0, 1000.0, 8e5, 8e5))
    bound = Cost(0.12, 0.7, inf, inf)
    limits = shed(Forecast(demand, CostModel(), BASE), bound, BASE, DEFAULT_ORDER, bound)

    assert limits.heavy == (7,)
    assert LEAST_HEAVY_FRACTION <= limits.heavy_fraction < 1
    assert (limits.slice, limits.sample, limits.paused) == ("full", 1.0, False)


def test_bulk_is_cut_before_it_is_thinned() -> None:
    """Headers of each super-packet of a bulk transfer are cheap enough to keep all of them."""
    demand = Demand(((7, Rates(0.0, 23_000.0, 1.5e9, 1.5e9)),), Rates(1000.0, 1000.0, 8e5, 8e5))
    bound = Cost(0.1, 0.7, inf, inf)
    limits = shed(Forecast(demand, CostModel(), BASE), bound, BASE, DEFAULT_ORDER, bound)

    assert (limits.heavy, limits.heavy_fraction, limits.slice) == ((7,), 1.0, "full")


@given(st.floats(1e-6, 2), st.floats(1e-4, 0.5))
def test_the_grid_never_rounds_up(fraction: float, least: float) -> None:
    """A fraction on the grid is at most the one asked for, within 15 %, and never below the least."""
    found = on_grid(fraction, least)

    assert least <= found <= max(least, min(1.0, fraction)) * 1.0001
    assert found >= min(1.0, fraction) / 1.151


def test_combined_limits_keep_no_more_than_either() -> None:
    """The stricter of each part; heavy flows of both, the newer first."""
    one = Limits(slice=128, heavy=(1, 2), heavy_fraction=0.5, sample=0.3)
    other = Limits(slice="full", heavy=(3, 2), heavy_fraction=0.7, paused=True)
    both = combined(one, other)

    assert (both.slice, both.heavy, both.heavy_fraction, both.sample, both.paused) == (128, (3, 2, 1), 0.5, 0.3, True)
    assert combined(one, Limits(slice="headers")).slice == "headers"
    assert combined(Limits(), Limits(slice=96)).slice == 96
