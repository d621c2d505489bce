"""Demand: what crosses the interfaces, worked out from what the filter in force lets through."""

import pytest

from guestagent.governor.demand import DemandEstimator, Sample
from guestagent.governor.limits import Limits, Traffic

BASE = Limits()
SECOND_NS = 1_000_000_000


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
    estimator.applied(0.0, SECOND_NS, BASE._replace(heavy=(1,), heavy_fraction=0.1))
    for _ in range(2):
        estimator.block(1000, samples(2 * SECOND_NS, (1, 32, 64), (2, 32, 64)))
    demand = estimator.close(1.0, 2000, None)

    assert dict(demand.flows)[1].packets_out == pytest.approx(10_000)
    assert dict(demand.flows)[2].packets_out == pytest.approx(1000)


def test_records_are_weighed_by_the_filter_that_let_them_in() -> None:
    """A block from before the swap comes after it; its records stand for themselves, not for ten."""
    estimator = DemandEstimator(BASE)
    estimator.applied(0.0, 5 * SECOND_NS, BASE._replace(heavy=(1,), heavy_fraction=0.1))
    for _ in range(2):
        estimator.block(64, samples(4 * SECOND_NS, (1, 32, 64), (2, 32, 64)))
    demand = estimator.close(1.0, 11, None)

    assert dict(demand.flows)[1].packets_out == pytest.approx(dict(demand.flows)[2].packets_out)


def test_sampled_flows_count_once_and_the_rest_for_the_unseen() -> None:
    """At a quarter of all flows, a flow that is seen has the rate that is seen, and the total is four times that."""
    estimator = DemandEstimator(BASE)
    estimator.applied(0.0, 0, BASE._replace(sample=0.25))
    for _ in range(2):
        estimator.block(32, samples(SECOND_NS, (1, 16, 64), (2, 16, 64)))
    demand = estimator.close(1.0, 64, None)

    assert dict(demand.flows)[1].packets_out == pytest.approx(32)
    assert demand.total.packets == pytest.approx(256)


def test_a_small_fraction_of_a_small_wish_counts_for_the_whole_wish() -> None:
    """One flow in a hundred is wished, and a fiftieth of these is kept: a flow seen stands for fifty."""
    wish = BASE._replace(sample=0.01)
    estimator = DemandEstimator(wish, wish._replace(sample=0.0002))
    for _ in range(2):
        estimator.block(32, samples(SECOND_NS, (1, 16, 64), (2, 16, 64)))
    demand = estimator.close(1.0, 64, None)

    assert dict(demand.flows)[1].packets_out == pytest.approx(32)
    assert demand.total.packets == pytest.approx(50 * 64)


def test_a_clock_that_was_set_back_does_not_bring_back_an_old_filter() -> None:
    """A filter swapped after the step is in force for what comes after it, though the one before began later."""
    estimator = DemandEstimator(BASE)
    estimator.applied(0.0, 3600 * SECOND_NS, BASE._replace(sample=0.5))
    estimator.applied(1.0, 5 * SECOND_NS, BASE._replace(heavy=(1,), heavy_fraction=0.1))
    for _ in range(2):
        estimator.block(64, samples(6 * SECOND_NS, (1, 32, 64), (2, 32, 64)))
    demand = dict(estimator.close(1.0, 128, None).flows)

    assert demand[1].packets_out == pytest.approx(10 * demand[2].packets_out)


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
    estimator.applied(0.0, 0, BASE._replace(heavy=(1,), heavy_fraction=0.01))
    estimator.block(640, samples(1, (1, 64, 64)))
    demand = estimator.close(1.0, 640, Traffic(0, 10_000, 0, 640_000))

    assert demand.total.packets <= 10_500


def test_a_flood_that_passed_the_sampling_is_no_crowd() -> None:
    """One flow of a tenth of all that fills the interface stands for itself: nothing is left to stand for nine more."""
    estimator = DemandEstimator(BASE)
    estimator.applied(0.0, 0, BASE._replace(sample=0.1))
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
    estimator.applied(5.0, SECOND_NS, BASE._replace(paused=True))
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
