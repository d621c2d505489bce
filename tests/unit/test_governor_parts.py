"""The governor's parts alone: demand, cost model, ladder, pressure, back-pressure, words, meter."""

import os
import time
from dataclasses import replace
from math import inf, isclose
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.governor.bounds import Account, Overheads
from guestagent.governor.demand import Demand, DemandEstimator, Rates, Sample
from guestagent.governor.limits import (
    DEFAULT_ORDER,
    FLOORS,
    Budgets,
    Counters,
    Limits,
    Rung,
    Traffic,
    Usage,
    budgets_for,
    shedding_order,
)
from guestagent.governor.meter import Meter, interface_traffic
from guestagent.governor.predict import OWN_IDLE_CORES, OWN_SECONDS_PER_BYTE, OWN_SECONDS_PER_PACKET, Cost, CostModel
from guestagent.governor.pressure import BackPressure, Yielding
from guestagent.governor.reason import kept
from guestagent.governor.shed import LEAST_HEAVY_FRACTION, LEAST_SAMPLE, Forecast, combined, on_grid, severity, shed

BASE = Limits()
SECOND_NS = 1_000_000_000

# -- words ------------------------------------------------------------------------------------------------------------


def test_default_budgets_follow_the_link() -> None:
    """A tenth of a known link speed, else 200 Mbit/s; --full removes the defaults; what is explicit holds beside it."""
    assert budgets_for(10_000).bytes_per_second == 125e6
    assert budgets_for(0) == Budgets(5.0, 25e6, inf, yields=True)
    assert budgets_for(10_000, full=True) == Budgets(inf, inf, inf, yields=False, follows_collector=False)
    assert budgets_for(0, full=True, cpu_percent=10.0) == Budgets(10.0, inf, inf, False, follows_collector=False)


def test_equal_filters_need_no_swap() -> None:
    """Reason, caps and a fraction of no flows are no part of the filter; all else is."""
    assert BASE.selection == replace(BASE, reason="x", since=3.0, byte_cap=1.0, heavy_fraction=0.5).selection
    for change in ({"slice": 64}, {"heavy": (1,)}, {"sample": 0.5}, {"paused": True}):
        assert BASE.selection != replace(BASE, **change).selection


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_leave_the_order(floor: str) -> None:
    """A floor takes rungs out and keeps the rest in order."""
    order = shedding_order(floors=[floor])

    assert set(order) == set(DEFAULT_ORDER) - FLOORS[floor]
    assert list(order) == [rung for rung in DEFAULT_ORDER if rung in order]


@pytest.mark.parametrize(
    "limits, text",
    [
        (Limits(paused=True), "the capture is paused but for a look each second"),
        (Limits(heavy=(1,)), "1 heavy flow cut to headers"),
        (Limits(heavy=(1, 2), heavy_fraction=0.07), "7.0% of the packets of 2 heavy flows cut to headers"),
        (Limits(slice="headers", sample=0.25), "all packets cut to headers, 25.0% of all flows kept"),
    ],
)
def test_what_is_kept_is_said(limits: Limits, text: str) -> None:
    """A piece of a sentence for each kind of reduction."""
    assert kept(limits) == text


# -- demand -----------------------------------------------------------------------------------------------------------


def samples(at_ns: int, *flows: tuple[int, int, int]) -> list[Sample]:
    """(flow, count, size) -> records, all going out."""
    return [(at_ns, flow, min(66, size), size, True) for flow, count, size in flows for _ in range(count)]


def test_peeks_are_weighed_to_their_blocks() -> None:
    """64 of 6,400 records stand for all of them, and for a block before that nobody looked into."""
    estimator = DemandEstimator(BASE)
    estimator.block(3200)
    estimator.block(1600, samples(0, (1, 48, 100), (2, 16, 1000)))
    estimator.block(1600, samples(0, (1, 48, 100), (2, 16, 1000)))
    demand = estimator.close(1.0, 6400, None)

    assert dict(demand.flows)[1].packets_out == pytest.approx(4800)
    assert dict(demand.flows)[2].original_bytes == pytest.approx(1_600_000)
    assert dict(demand.flows)[2].captured_bytes == pytest.approx(1600 * 66)
    assert demand.total.packets == pytest.approx(6400)


def test_thinned_flows_count_for_all_their_packets() -> None:
    """Under a filter that keeps one in ten of flow 1, its demand is ten times what is seen; that of flow 2 is not."""
    estimator = DemandEstimator(BASE)
    estimator.applied(0.0, SECOND_NS, replace(BASE, heavy=(1,), heavy_fraction=0.1))
    for _ in range(2):
        estimator.block(1000, samples(2 * SECOND_NS, (1, 32, 64), (2, 32, 64)))
    demand = estimator.close(1.0, 2000, None)

    assert dict(demand.flows)[1].packets_out == pytest.approx(10_000)
    assert dict(demand.flows)[2].packets_out == pytest.approx(1000)


def test_records_are_weighed_by_the_filter_that_let_them_in() -> None:
    """A block from before the swap comes after it; its records stand for themselves, not for ten."""
    estimator = DemandEstimator(BASE)
    estimator.applied(0.0, 5 * SECOND_NS, replace(BASE, heavy=(1,), heavy_fraction=0.1))
    for _ in range(2):
        estimator.block(64, samples(4 * SECOND_NS, (1, 32, 64), (2, 32, 64)))
    demand = estimator.close(1.0, 11, None)

    assert dict(demand.flows)[1].packets_out == pytest.approx(dict(demand.flows)[2].packets_out)


def test_sampled_flows_count_once_and_the_rest_for_the_unseen() -> None:
    """At a quarter of all flows, a flow that is seen has the rate that is seen, and the total is four times that."""
    estimator = DemandEstimator(BASE)
    estimator.applied(0.0, 0, replace(BASE, sample=0.25))
    for _ in range(2):
        estimator.block(32, samples(SECOND_NS, (1, 16, 64), (2, 16, 64)))
    demand = estimator.close(1.0, 64, None)

    assert dict(demand.flows)[1].packets_out == pytest.approx(32)
    assert demand.total.packets == pytest.approx(256)


def test_a_flow_seen_once_is_one_of_the_rest() -> None:
    """A record that stands for a thousand makes no heavy flow."""
    estimator = DemandEstimator(BASE)
    estimator.block(64_000, [(0, flow, 64, 64, False) for flow in range(64)])
    demand = estimator.close(1.0, 64_000, None)

    assert demand.flows == ()
    assert demand.rest.packets_in == pytest.approx(64_000)


def test_a_train_of_packets_in_one_block_is_no_heavy_flow() -> None:
    """What fills one look may be gone before a filter could name it; who is met in two blocks is there to be named."""
    estimator = DemandEstimator(BASE)
    estimator.block(6400, samples(0, (1, 32, 64), (2, 32, 64)))
    estimator.block(6400, samples(0, (1, 32, 64), (3, 32, 64)))
    demand = estimator.close(1.0, 12_800, None)

    assert [1] == [flow for flow, _ in demand.flows]
    assert demand.total.packets == pytest.approx(12_800)


def test_demand_is_no_more_than_the_interface_counted() -> None:
    """A misjudged fraction can't invent packets."""
    estimator = DemandEstimator(BASE)
    estimator.applied(0.0, 0, replace(BASE, heavy=(1,), heavy_fraction=0.01))
    estimator.block(640, samples(1, (1, 64, 64)))
    demand = estimator.close(1.0, 640, Traffic(0, 10_000, 0, 640_000))

    assert demand.total.packets <= 10_500


def test_a_flood_that_passed_the_sampling_is_no_crowd() -> None:
    """One flow of a tenth of all that fills the interface stands for itself: nothing is left to stand for nine more."""
    estimator = DemandEstimator(BASE)
    estimator.applied(0.0, 0, replace(BASE, sample=0.1))
    for _ in range(2):
        estimator.block(5000, samples(SECOND_NS, (1, 62, 128), (2, 1, 500), (3, 1, 500)))
    demand = estimator.close(1.0, 10_000, Traffic(0, 10_300, 0, 1_400_000))

    assert dict(demand.flows)[1].packets_out == pytest.approx(10_000, rel=0.05)
    assert demand.total.packets <= 1.05 * 10_300 + 1


def test_a_pause_is_judged_by_the_interface() -> None:
    """Paused, demand is what the interface counts times the selected part; while it counts nothing, what it was."""
    estimator = DemandEstimator(BASE)
    for _ in range(50):
        estimator.block(500, samples(0, (1, 32, 64), (2, 32, 64)))
        estimator.close(0.1, 500, Traffic(0, 1000, 0, 64_000))
    estimator.applied(5.0, SECOND_NS, replace(BASE, paused=True))
    for _ in range(100):
        demand = estimator.close(0.1, 0, Traffic(0, 3000, 0, 192_000))

    assert demand.total.packets == pytest.approx(15_000, rel=0.05)
    assert demand.unselected.packets == pytest.approx(30_000 * (1 - 1.1 / 2), rel=0.05)
    assert estimator.close(0.1, 0, None).total.packets == pytest.approx(15_000, rel=0.05)


def test_what_the_filter_leaves_out_is_known_but_our_own_stream_is_not_charged() -> None:
    """Half of the interface's packets and bytes are not selected; our stream's are not counted among them."""
    estimator = DemandEstimator(BASE)
    for _ in range(50):
        estimator.block(500, samples(0, (1, 64, 1448)))
        demand = estimator.close(0.1, 500, Traffic(0, 1500, 0, 1500 * 1448), sent_bytes=500 * 1448)

    assert demand.unselected.packets == pytest.approx(15_000 * (1 - 1.1 * 2 / 3), rel=0.1)


@pytest.mark.parametrize("traffic", [None, Traffic(), Traffic(10, 0, 0, 0)])
@pytest.mark.parametrize("captured", [0, 1000])
def test_no_peek_at_all_is_survived(captured: int, traffic: Traffic | None) -> None:
    """Without a block, demand is what was captured, of unknown flows."""
    demand = DemandEstimator(BASE).close(0.1, captured, traffic)

    assert demand.flows == ()
    assert demand.total.packets <= captured * 10 + 1


# -- cost model -------------------------------------------------------------------------------------------------------

WHOLE_GB = Rates(0.0, 15_000.0, 1e9, 1e9)


def test_costs_are_linear_in_what_is_kept() -> None:
    """Half of the packets cost the mean of none and all: the ladder's arithmetic relies on it."""
    model = CostModel()
    none, half, whole = (model.cost(WHOLE_GB, keep, "full") for keep in (0.0, 0.5, 1.0))

    assert all(isclose(a + c, 2 * b) for a, b, c in zip(none, half, whole, strict=True))
    assert model.cost(WHOLE_GB, 1.0, "headers").cpu < whole.cpu
    assert model.cost(Rates(), 1.0, "full") == Cost()


def test_learning_finds_this_machine() -> None:
    """Within 30 s of mixed load, idle, packets and bytes are each known to a tenth."""
    model, truth = CostModel(), (1.5, 0.7, 1.8)
    for turn in range(300):
        packets, size = [(1e4, 1e6), (0.0, 0.0), (500.0, 5e7)][turn // 5 % 3]
        terms = (OWN_IDLE_CORES * 0.1, OWN_SECONDS_PER_PACKET * packets, OWN_SECONDS_PER_BYTE * size)
        model.learn(0.1, packets, size, sum(a * b for a, b in zip(truth, terms, strict=True)))

    assert all(abs(found - true) <= 0.1 * true for found, true in zip(model.weights, truth, strict=True))


@given(st.lists(st.tuples(st.floats(0.001, 10), st.floats(0, 1e6), st.floats(0, 1e9), st.floats(0, 1e3)), max_size=50))
def test_no_reading_throws_the_model_far(readings: list[tuple[float, float, float, float]]) -> None:
    """Whatever is measured, weights stay within their bounds."""
    model = CostModel()
    for reading in readings:
        model.learn(*reading)

    assert all(0.3 <= weight <= 4.0 for weight in model.weights)


def test_one_outlier_moves_little() -> None:
    """A second of CPU in a half second of light load moves no weight by more than a fifth."""
    model = CostModel()
    model.learn(0.5, 1000, 1e6, 1.0)

    assert all(0.8 <= weight <= 1.2 for weight in model.weights)


# -- the ladder -------------------------------------------------------------------------------------------------------

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
    limits = shed(forecast, bound, BASE, order)
    cost = forecast.cost(limits)
    fits = all(part <= limit * 1.001 + 1e-9 for part, limit in zip(cost, bound, strict=True))
    deepest = replace(
        limits,
        slice="headers" if Rung.HEADERS in order else limits.slice,
        sample=LEAST_SAMPLE if Rung.SAMPLE in order else limits.sample,
        heavy_fraction=LEAST_HEAVY_FRACTION if Rung.THIN in order else limits.heavy_fraction,
        paused=Rung.PAUSE in order,
    )

    assert fits or cost.worst(bound)[0] <= forecast.cost(deepest).worst(bound)[0] * 1.001


@given(DEMAND, BOUND)
def test_a_wider_bound_is_never_less_faithful(demand: Demand, bound: Cost) -> None:
    """With twice the room the ladder stops no further down."""
    forecast = Forecast(demand, CostModel(), BASE)
    narrow = shed(forecast, bound, BASE, DEFAULT_ORDER)
    wide = shed(forecast, Cost(*(part * 2 for part in bound)), BASE, DEFAULT_ORDER)

    assert severity(wide, BASE, DEFAULT_ORDER)[0] <= severity(narrow, BASE, DEFAULT_ORDER)[0]


def test_the_fewest_heavy_flows_suffer() -> None:
    """Beside a flood, a download that is heavy, too, is left whole; so are mice."""
    flood, download = Rates(0.0, 160_000.0, 1e7, 1e7), Rates(3000.0, 0.0, 4.5e6, 4.5e6)
    demand = Demand(((7, flood), (8, download)), Rates(1000.0, 1000.0, 8e5, 8e5))
    limits = shed(Forecast(demand, CostModel(), BASE), Cost(0.12, 0.7, inf, inf), BASE, DEFAULT_ORDER)

    assert limits.heavy == (7,)
    assert LEAST_HEAVY_FRACTION <= limits.heavy_fraction < 1
    assert (limits.slice, limits.sample, limits.paused) == ("full", 1.0, False)


def test_bulk_is_cut_before_it_is_thinned() -> None:
    """Headers of each super-packet of a bulk transfer are cheap enough to keep all of them."""
    demand = Demand(((7, Rates(0.0, 23_000.0, 1.5e9, 1.5e9)),), Rates(1000.0, 1000.0, 8e5, 8e5))
    limits = shed(Forecast(demand, CostModel(), BASE), Cost(0.1, 0.7, inf, inf), BASE, DEFAULT_ORDER)

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


# -- account, pressure, back-pressure ---------------------------------------------------------------------------------


def test_a_debt_is_bounded_and_paid_back() -> None:
    """After a minute of ten times the budget a tenth of it is allowed, and after a few seconds at that, all."""
    account = Account(0.1)
    for _ in range(600):
        account.spend(0.1, 1.0)
    assert account.bound((), Overheads(500.0, 0.01, 0.0)).aim.cpu == pytest.approx(0.01)
    for _ in range(25):
        account.spend(0.1, 0.01)
    assert account.bound((), Overheads(500.0, 0.01, 0.0)).aim.cpu == pytest.approx(0.09, abs=0.005)


def test_a_suspended_vm_owes_little() -> None:
    """An hour in one step is booked as a second."""
    account = Account(0.1)
    account.spend(3600.0, 0.2)

    assert account.balance_seconds >= -0.1


SIGNS = {
    "tasks wait": lambda now: Usage(2, stalled_seconds=0.9 * now),
    "hypervisor": lambda now: Usage(2, stolen_seconds=0.5 * now),
    "more tasks": lambda now: Usage(2, running=9),
    "sent again": lambda now: Usage(2, retransmitted=int(100 * now)),
}


@pytest.mark.parametrize("sign", SIGNS)
def test_each_sign_is_believed_within_a_second(sign: str) -> None:
    """From each of the four signs alone; and let go within four seconds of its end."""
    yielding, read = Yielding(), SIGNS[sign]
    seen = {tick: yielding.step(tick / 10, read(tick / 10)) for tick in range(30)}
    assert sign in seen[9]
    end = replace(read(2.9), running=None if read(2.9).running is None else 0)
    after = [yielding.step(2.9 + tick / 10, end) for tick in range(1, 41)]
    assert not after[-1]


def test_a_busy_vm_is_under_no_pressure() -> None:
    """Both cores busy, a task on each and now and then one waiting, is what a VM is for; so is a moment's stall."""
    yielding = Yielding()
    for tick in range(100):
        now = tick / 10
        assert not yielding.step(now, Usage(2, now, 0.2 * now, 0.02 * now, tick % 3, tick // 10))
    assert not yielding.step(10.0, Usage(2, 10.0, 0.2 * 9.9 + 0.1, 0.2, 2, 10))


def test_hosts_without_readings_show_no_pressure() -> None:
    """Where nothing is known, nothing is claimed."""
    assert not any(Yielding().step(tick / 10, Usage()) for tick in range(100))


def counters(acked: float, fill: float, lag: float = 0.0) -> Counters:
    """With a ring of 64 MB."""
    return Counters(0, None, int(acked), 64 << 20, fill, lag)


def test_a_full_ring_asks_for_nine_tenths_of_the_acknowledged_rate() -> None:
    """From half full until a quarter full, the cap is 0.9 of the last second's rate."""
    pressure = BackPressure()
    caps = [pressure.step(tick / 10, counters(2e6 * tick, min(0.9, tick / 20))) for tick in range(40)]

    assert caps[:10] == [inf] * 10
    assert caps[-1] == pytest.approx(18e6)
    assert pressure.step(4.0, counters(80e6, 0.3)) < inf
    assert pressure.step(4.1, counters(82e6, 0.2)) == inf


def test_idle_seconds_are_no_part_of_the_pace() -> None:
    """A backlog that begins after a minute of nothing is judged by the seconds since."""
    pressure = BackPressure()
    for tick in range(600):
        assert pressure.step(tick / 10, counters(0, 0.0)) == inf
    pressure.step(60.0, counters(0, 0.1))
    cap = pressure.step(60.1, counters(10e6, 0.6))

    assert cap == pytest.approx(0.9 * 10e6 / 0.2, rel=0.1) or cap == pytest.approx(0.9 * 10e6 / 0.1, rel=0.1)


def test_a_growing_lag_is_back_pressure_before_the_ring_fills() -> None:
    """Frames that wait ever longer for their acknowledgement ask for less; a long steady path doesn't."""
    growing, steady = BackPressure(), BackPressure()
    caps = [growing.step(tick / 10, counters(1e6 * tick, 0.1, tick / 10)) for tick in range(20)]

    assert caps[-1] == pytest.approx(9e6)
    assert all(steady.step(tick / 10, counters(1e6 * tick, 0.1, 0.4)) == inf for tick in range(50))


def test_without_a_collector_the_ring_is_spent_slowly() -> None:
    """Nothing acknowledged: a tenth of the room that is left, each second, so that it never quite fills."""
    pressure = BackPressure()
    caps = [pressure.step(tick / 10, counters(0, 0.75, 10 + tick / 10)) for tick in range(20)]

    assert caps[-1] == pytest.approx((16 << 20) / 10)


# -- meter ------------------------------------------------------------------------------------------------------------


def proc(root: Path, pressure: str | None, loadavg: str | None) -> str:
    """A /proc with these files or without."""
    (root / "pressure").mkdir()
    for name, text in (("pressure/cpu", pressure), ("loadavg", loadavg)):
        if text is not None:
            (root / name).write_text(text, encoding="ascii")
    return str(root)


def test_the_meter_reads_what_there_is(tmp_path: Path) -> None:
    """Stall time in seconds and running tasks without ours; the link's count is passed on; own time grows."""
    stalls = "some avg10=8.21 avg60=30.81 avg300=22.13 total=396986905\nfull avg10=0.00 avg60=0.00 total=0\n"
    meter = Meter(proc(tmp_path, stalls, "0.20 0.18 0.12 3/345 11206\n"))
    first, second = meter.read(7), meter.read()
    meter.close()
    meter.close()

    assert (first.stalled_seconds, first.running, first.retransmitted) == (396.986905, 2, 7)
    assert first.cores == psutil.cpu_count()
    assert first.own_seconds is not None
    assert second.own_seconds is not None
    assert second.own_seconds >= first.own_seconds > 0


@pytest.mark.parametrize(
    "pressure, loadavg",
    [(None, None), ("", ""), ("nonsense", "nonsense"), ("some total=x\n", "1 2 3 x/y 4\n"), ("full total=5\n", "0.2")],
)
def test_the_meter_survives_what_is_missing(tmp_path: Path, pressure: str | None, loadavg: str | None) -> None:
    """A kernel without pressure information, or files in another form, leave None."""
    meter = Meter(proc(tmp_path, pressure, loadavg))
    usage = meter.read()
    meter.close()

    assert usage.stalled_seconds is usage.running is None
    assert not Yielding().step(0.0, usage)


def test_a_reading_costs_less_than_a_millisecond() -> None:
    """Of this process's own CPU time, median of 50."""
    meter, costs = Meter(), []
    for _ in range(50):
        before = time.process_time()
        meter.read()
        interface_traffic(["lo"])
        costs.append(time.process_time() - before)
    meter.close()

    assert sorted(costs)[25] < 0.001


def test_interfaces_are_counted_by_direction() -> None:
    """lo exists and receives what it sends; of an unknown name nothing is known."""
    traffic = interface_traffic(["lo", "no-such-device"])

    assert traffic is not None
    assert traffic.packets_in == traffic.packets_out
    assert interface_traffic(["no-such-device"]) is None


def test_the_meter_leaks_no_descriptor() -> None:
    """Close gives back what was opened."""
    before = len(os.listdir("/proc/self/fd"))
    Meter().close()

    assert len(os.listdir("/proc/self/fd")) == before
