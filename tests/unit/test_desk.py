"""The agent's desk: what of our own the capture leaves out."""

from collections.abc import Sequence

from guestagent.capture.engine import Capture, Wish
from guestagent.capture.interfaces import ARPHRD_ETHER, Link
from guestagent.desk import Desk
from guestagent.model import Exclusion
from tests.fakes import FakeSource

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
