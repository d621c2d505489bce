"""The agent's desk: what of our own the capture leaves out, and what collectors tell it."""

from collections.abc import Sequence

import pytest

from guestagent.capture.engine import Capture, Wish
from guestagent.capture.interfaces import ARPHRD_ETHER, Link
from guestagent.desk import Desk
from guestagent.model import Exclusion
from guestagent.tapstream.hello import CollectorHello
from tests.fakes import FakeSource
from tests.replicas import desk_of

LINK = Link(2, "eth0", ARPHRD_ETHER, "02:00:00:00:00:00", 1500, 0, "", True)
GRE = 47


def test_what_two_tunnels_share_is_left_out_until_both_are_gone() -> None:
    """Two keys to one GRE sensor are one protocol and address: the first that moves away readmits nothing."""
    source = FakeSource()
    desk = Desk(Capture([source], {0: ()}, {0: LINK}, Wish(), "ring", ""), "vm-1")
    told: list[tuple[Exclusion, ...]] = []

    def tell(own: Sequence[Exclusion]) -> None:
        told.append(tuple(own))

    desk.tell = tell
    nothing = desk.capture.program(0, ())
    shared = Exclusion(GRE, "10.0.0.8", 0, 0)
    for _ in range(2):
        desk.exclude(shared)
    left_out = source.programs[-1]
    assert left_out == desk.capture.program(0, (shared,))
    desk.readmit(shared)
    assert source.programs[-1] == left_out
    desk.readmit(shared)
    assert source.programs[-1] == nothing
    assert told == [(shared,), ()]


@pytest.mark.parametrize("again", [1, 5, 7])
def test_a_collector_that_forgot_the_run_counts_anew(again: int) -> None:
    """One that keeps no files knows nothing of a run after its restart: its counts go on from those of before."""
    source = FakeSource()
    desk = desk_of(source)
    for stale, sequence in ((5, 1), (again, 2)):
        desk.resumed(CollectorHello("collector-1", "", None, {}))
        source.retire([bytes(60)] * 3, stale=stale)
        assert desk.next_frame(0.0) is not None
        desk.acknowledged(sequence, "collector-1", {"unsupported_gso": {"0": stale}})
        desk.acknowledged(sequence, "collector-1", {"unsupported_gso": {"0": stale}})
    total = desk.tap.refresh()
    assert (6, 5 + again, 0, 0) == (total.delivered, total.unsupported_gso, total.dropped_by_ring, total.in_flight)
