"""What may be spent, which rungs may be used, and how what is kept is said."""

from math import inf

import pytest

from guestagent.config import RunConfig
from guestagent.endpoint import Endpoint
from guestagent.governor.limits import DEFAULT_ORDER, FLOORS, Budgets, Limits, budgets_for, shedding_order
from guestagent.governor.reason import kept
from guestagent.steering import budgets_of

BASE = Limits()


def test_default_budgets_follow_the_link() -> None:
    """A tenth of a known link speed, else 200 Mbit/s; --full removes the defaults; what is explicit holds beside it."""
    assert budgets_for(10_000).bytes_per_second == 125e6
    assert budgets_for(0) == Budgets(5.0, 25e6, inf, yields=True)
    assert budgets_for(10_000, full=True) == Budgets(inf, inf, inf, yields=False, follows_collector=False)
    assert budgets_for(0, full=True, cpu_percent=10.0) == Budgets(10.0, inf, inf, False, follows_collector=False)


@pytest.mark.parametrize(
    "scheme, rate, full, bytes_per_second",
    [
        ("tcp", None, False, 1_400_000),
        ("tcp", 1e6, False, 1e6),
        ("vxlan", 1e9, True, 1_400_000),
        ("dir", None, False, inf),
    ],
)
def test_a_cap_on_packets_bounds_what_carries_them(
    scheme: str, rate: float | None, full: bool, bytes_per_second: float
) -> None:
    """A thousand packets/s on the wire have room for 1.4 MB/s, however few the records; a directory is no wire."""
    to = (Endpoint(scheme, "10.0.0.1", 4795, path="captures"),)
    budgets = budgets_of(RunConfig(to=to, packets=1000.0, rate=rate, full=full), 0)

    assert (budgets.packets_per_second, budgets.bytes_per_second) == (1000.0, bytes_per_second)


def test_equal_filters_need_no_swap() -> None:
    """Reason, caps and a fraction of no flows are no part of the filter; all else is."""
    assert BASE.selection == BASE._replace(reason="x", since=3.0, byte_cap=1.0, heavy_fraction=0.5).selection
    for change in ({"slice": 64}, {"heavy": (1,)}, {"sample": 0.5}, {"paused": True}):
        assert BASE.selection != BASE._replace(**change).selection


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
