"""How long a turn waits for company."""

from math import inf
from types import SimpleNamespace
from typing import cast

import pytest

from guestagent.links.owner import Link
from guestagent.loop import NO_REST
from guestagent.lull import PATIENCE_SECONDS, REST_SECONDS, UNCAPPED_SECONDS, Lull
from tests.fakes import FakeSource
from tests.replicas import desk_of


def lull_of(source: FakeSource, *, connected: bool = True, is_blocked: bool = False) -> Lull:
    """Beside this ring, with a link in such a state."""
    link = SimpleNamespace(state=SimpleNamespace(connected=connected), is_blocked=is_blocked)
    return Lull(cast(Link, link), desk_of(source))


def test_patience_is_for_where_nothing_presses() -> None:
    """Connected, uncapped, a ring nearly empty."""
    rest = lull_of(FakeSource()).rest(1.0)
    assert (rest.seconds, rest.patience_seconds) == (REST_SECONDS, PATIENCE_SECONDS)


@pytest.mark.parametrize("connected, is_blocked, is_short", [(False, False, True), (True, True, False)])
def test_a_link_that_is_away_or_full_allows_none(connected: bool, is_blocked: bool, is_short: bool) -> None:
    """A short rest where it is away, none at all where its socket is full: whenever that has room, more can leave."""
    rest = lull_of(FakeSource(), connected=connected, is_blocked=is_blocked).rest(1.0)
    assert rest.patience_seconds == 0.0
    assert (rest is not NO_REST) == is_short


def test_a_cap_that_decides_allows_none() -> None:
    """Its bucket saves 40 ms of it, so a longer rest would lose what could have left; for a second after the last."""
    lull = lull_of(FakeSource())
    lull._desk.gate_opens_at = 1.01
    assert lull.rest(1.0).patience_seconds == 0.0
    lull._desk.gate_opens_at = inf
    assert lull.rest(1.0 + UNCAPPED_SECONDS).patience_seconds == 0.0
    assert lull.rest(1.1 + UNCAPPED_SECONDS).patience_seconds == PATIENCE_SECONDS


@pytest.mark.parametrize("mbit, blocks", [(10, 1), (200, 3), (1000, 8)])
def test_a_turn_comes_before_the_bucket_runs_over(mbit: int, blocks: int) -> None:
    """At 200 Mbit/s 1 MB may leave at once, so what gathers is no more than that; of no cap as much as without."""
    source = FakeSource(block_count=256)
    lull = lull_of(source)
    lull._desk.gate.set_caps(0.0, mbit * 125_000, inf)
    asked: list[int] = []
    source.filling = lambda count: lambda: asked.append(count)  # type: ignore[method-assign, func-returns-value]
    assert not lull.rest(1.0).is_enough()
    assert asked == [blocks]


def test_a_ring_that_fills_allows_none() -> None:
    """From an eighth on."""
    source = FakeSource()
    lull = lull_of(source)
    for _ in range(source.block_count // 8 + 1):
        source.retire([bytes(60)])
        assert lull._desk.next_frame(0.0) is not None
    assert lull.rest(1.0).patience_seconds == 0.0
