"""Budgets, floors and filters that are read again while something is shed."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import pytest

from guestagent.capture.bpf import Instruction
from guestagent.capture.engine import Capture, Wish
from guestagent.config import RunConfig
from guestagent.desk import Desk
from guestagent.errors import ConfigError
from guestagent.governor.law import Governor
from guestagent.governor.limits import FLOORS, Budgets, Counters, Limits, Rung, Usage, shedding_order
from guestagent.governor.shed import allowed
from guestagent.model import Exclusion
from guestagent.reload import reload
from guestagent.steering import Steering
from tests.fakes import FakeSource
from tests.unit.test_follow import ETH0

SHED = Limits(slice="headers", heavy=(7,), heavy_fraction=0.05, sample=0.05, paused=True, reason="much", since=1.0)
"""Every rung at once."""
FLOORED = {"never below headers": ("heavy_fraction", "sample", "paused"), "never sample": ("sample",)}
FLOORED["never slice"] = ("heavy", "heavy_fraction", "slice")


class Site:
    """A desk and what steers it, over one device."""

    def __init__(self) -> None:
        self.config, self.source = RunConfig(seed=1), FakeSource()
        self.desk = Desk(Capture([self.source], {0: ()}, {0: ETH0}, Wish(), "ring", ""), "vm-1")
        self.steering = Steering(self.config, self.desk, 0.0)

    def refuse(self, most_instructions: int) -> None:
        """The kernel takes no longer filter from now on."""

        def attach(program: Sequence[Instruction]) -> None:
            if len(program) > most_instructions:
                raise ConfigError("refused")
            self.source.programs.append(program)

        self.source.attach = attach  # type: ignore[method-assign]

    def shed(self, limits: Limits) -> None:
        """Now this is in force."""
        self.steering._follow(self.config, 0.0, start=limits)
        self.steering._apply(0.0)

    def reload(self, **changes: object) -> None:
        """SIGHUP, with these lines changed."""
        new = replace(self.config, **changes)  # type: ignore[arg-type]
        self.config = reload(self.config, lambda: new, self.desk, self.steering, 1.0)


@pytest.fixture
def site() -> Iterator[Site]:
    """One that keeps all."""
    made = Site()
    with closing(made.steering):
        yield made


@pytest.mark.parametrize("floor", FLOORS)
def test_a_new_floor_ends_what_it_forbids(floor: str) -> None:
    """What it allows stays shed; without a load that goes, too, within seconds."""
    governor = Governor(Budgets(), 2, 0.0, order=shedding_order(floors=[floor]), start=SHED)

    assert governor.limits == SHED._replace(
        **{name: getattr(Limits(), name) for name in FLOORED[floor]},
        byte_cap=governor.limits.byte_cap,
        packet_cap=governor.limits.packet_cap,
    )
    for tick in range(60):
        governor.tick(tick * 0.2, Counters(captured=tick), Usage())
    assert governor.limits.selection == Limits().selection
    assert not governor.limits.reason


def test_a_floor_that_forbids_all_that_was_shed_leaves_no_reason() -> None:
    """Full copy at once."""
    governor = Governor(Budgets(), 2, 0.0, order=(Rung.HEAVY,), start=Limits(sample=0.5, reason="much"))

    assert governor.limits.selection == Limits().selection
    assert not governor.limits.reason


def test_a_rung_of_the_order_stays_as_it_is() -> None:
    """With all rungs allowed nothing is taken from the limits."""
    assert allowed(SHED, Limits(), shedding_order()) == SHED


def test_what_was_shed_stays_shed_and_is_weighed_as_such(site: Site) -> None:
    """Another budget: the thinned flow stays thinned, and a record of it counts for twenty until a filter says else."""
    site.shed(Limits(heavy=(7,), heavy_fraction=0.05))
    site.reload(rate=5e6)

    assert site.desk.selection == Limits(heavy=(7,), heavy_fraction=0.05).selection
    assert site.steering.governor._estimator._regimes[-1].limits.selection == site.desk.selection


def test_a_probe_is_not_taken_for_what_was_shed(site: Site) -> None:
    """SIGHUP while all flows are looked at for a moment: afterwards few are kept, as before it."""
    site.shed(Limits(sample=0.05))
    probe = site.steering.governor.limits._replace(sample=1.0, slice="headers", is_probe=True)
    site.steering.governor.limits = probe
    site.steering._apply(0.5)
    site.reload(rate=5e6)

    assert site.desk.selection == Limits(sample=0.05).selection
    assert site.steering.governor._estimator._regimes[-1].limits.selection == site.desk.selection


def test_a_filter_that_is_refused_under_load_ends_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The one before stays in force, it is said once, and what fits is taken again."""
    site.refuse(100)
    for sample in (0.5, 0.4, 0.3):
        site.shed(Limits(sample=sample))
        assert site.desk.selection == Limits().selection
    assert caplog.text.count("less can't be kept than now") == 1
    site.refuse(4096)
    site.shed(Limits(sample=0.2))
    assert site.desk.selection.sample == 0.2


def test_what_is_left_out_for_others_makes_room_for_what_is_shed(site: Site) -> None:
    """First the compares of a lease go, then those of other agents' connections; our own stay."""
    own, other = (Exclusion(6, f"10.0.0.{at}", 4795, 40_000) for at in (1, 2))
    site.desk.exclude(own)
    site.desk.leave_out((other,))
    site.desk._dedupe = "site"
    site.desk._leave_to(("10.0.0.9",))
    lengths = [len(program) for program in site.source.programs]
    assert lengths == sorted(set(lengths))

    for most, peers, others in [(lengths[2], 1, 1), (lengths[2] - 1, 0, 1), (lengths[1] - 1, 0, 0)]:
        site.refuse(most)
        site.desk.select(site.desk.selection)
        assert (len(site.desk.selection.peers), len(site.desk._others)) == (peers, others)
    site.refuse(lengths[0] - 1)
    with pytest.raises(ConfigError, match="refused"):
        site.desk.select(site.desk.selection)
