"""How runs go on elsewhere, come back, and end: by connections, resets, and other agents of the same name."""

import time

import pytest

from guestagent.collector.registry import Registry
from guestagent.collector.run import TWIN_SECONDS
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from tests.captures import OTHER_RUN, packet
from tests.fakes import RUN_ID, agent_hello, packets_frame, parsed
from tests.registries import nowhere, registry, take

__all__ = ["registry"]


@pytest.mark.parametrize("ours", [0, 3, 10, 200])
@pytest.mark.parametrize("first", [1, 4, 5, 100])
def test_an_agent_that_went_on_elsewhere(registry: Registry, first: int, ours: int) -> None:
    """What an agent no longer holds was acknowledged: by another collector, or by us, who lost it: a gap.

    The answer names what we hold, whatever was skipped.
    """
    run, _ = registry.open(agent_hello())
    for sequence in (1, 2, 3):
        take(run, packets_frame(sequence, [packet(sequence)]))
    _, answer = registry.open(agent_hello(first_sequence=first, acknowledged={"other": 99, "collector-1": ours}))
    take(run, packets_frame(max(first, 4), [packet(9)]))
    gaps = max(0, min(ours, first - 1) - 3)

    assert answer.held_sequence == 3
    assert (gaps, max(0, first - 4) - gaps) == (run.place.gaps, run.place.elsewhere)


@pytest.mark.parametrize("taken", [0, 3])
def test_what_was_skipped_is_never_said_to_be_held(registry: Registry, taken: int) -> None:
    """An answer may get lost, and the agent greets again: each one names what we took, though the first skipped more.

    An agent that copies to several collectors counts what the answer names as delivered here.
    """
    run, _ = registry.open(agent_hello())
    for sequence in range(1, taken + 1):
        take(run, packets_frame(sequence, [packet(sequence)]))
    for first in (20, 20, 30):
        _, answer = registry.open(agent_hello(first_sequence=first))
        assert (taken or None) == answer.held_sequence
    assert 29 == run.acknowledged_sequence
    take(run, packets_frame(30, [packet(30)]))
    _, answer = registry.open(agent_hello(first_sequence=30))

    assert (30, 0) == (answer.held_sequence, run.place.gaps)


def test_a_run_that_begins_elsewhere_has_no_gap(registry: Registry) -> None:
    """The first hello says which frame comes first; what was before is no loss of this collector's."""
    run, answer = registry.open(agent_hello(first_sequence=50))
    take(run, packets_frame(50, [packet(50)]))

    assert (None, 0, 50) == (answer.held_sequence, run.place.gaps, run.place.held_sequence)


def test_a_dead_run_leaves_a_gap_with_two_times(registry: Registry) -> None:
    """When an agent's next run comes, its broken one has ended unclean, between its last frame and the new start."""
    run, _ = registry.open(agent_hello())
    take(run, packets_frame(1, [packet(1)]))
    last_ns = run.last_frame_ns
    registry.broke(run)
    registry.open(agent_hello(OTHER_RUN, started_ns=last_ns + 5 * 10**9))
    (end,) = registry.report()["agents"]["vm-1"]["unclean_ends"]

    assert (RUN_ID, last_ns, last_ns + 5 * 10**9) == (end["run_id"], end["last_held_ns"], end["until_ns"])
    assert run.ended


def test_a_run_that_comes_back_is_not_dead() -> None:
    """A broken run that says hello again goes on; when the collector stops it has not ended unclean."""
    with nowhere() as registry:
        run, _ = registry.open(agent_hello())
        registry.broke(run)
        again, _ = registry.open(agent_hello())
        assert run is again

    assert [] == registry.report()["agents"]["vm-1"]["unclean_ends"]


def test_two_live_runs_of_a_name_stay_apart(registry: Registry) -> None:
    """A second VM with the same name does not end the first one's run while that is connected."""
    first, _ = registry.open(agent_hello())
    second, _ = registry.open(agent_hello(OTHER_RUN))
    take(first, packets_frame(1, [packet(1)]))
    take(second, packets_frame(1, [packet(2)] * 2))

    assert not first.ended
    assert 3 == registry.report()["agents"]["vm-1"]["received"]
    registry.said_goodbye(first, "done")
    assert 3 == registry.report()["agents"]["vm-1"]["received"]


def test_the_run_of_a_machine_that_was_reset_ends_when_it_is_missed(registry: Registry) -> None:
    """Its next run begins before its old connection falls silent: then the old run is over, with a gap of two times."""
    old, _ = registry.open(agent_hello())
    old.frame(parsed(packets_frame(1, [packet(1)])), time.monotonic())
    new, _ = registry.open(agent_hello(OTHER_RUN, started_ns=old.last_frame_ns + 5 * 10**9))
    registry.broke(old)
    report = registry.report()["agents"]["vm-1"]

    assert (True, False, 1) == (old.ended, new.ended, report["streaming"])
    assert [(RUN_ID, new.hello.started_ns)] == [(end["run_id"], end["until_ns"]) for end in report["unclean_ends"]]


def test_two_agents_of_one_name_are_told(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """A run that speaks on beside the next one of its name is another agent's: said once, and it may come back."""
    first, _ = registry.open(agent_hello())
    second, _ = registry.open(agent_hello(OTHER_RUN))
    for sequence, seconds in ((1, 1.0), (2, TWIN_SECONDS + 1), (3, TWIN_SECONDS + 2), (4, TWIN_SECONDS + 3)):
        assert ("two agents" in caplog.text) is (sequence > 3)
        assert (sequence > 2) is bool(registry.report()["agents"]["vm-1"]["twins"])
        first.frame(parsed(frames.encode_json(Kind.REPORT, {}, sequence=sequence)), second.begun_at + seconds)
    assert 1 == caplog.text.count("two agents stream under the name vm-1: give each an agent_id of its own")
    registry.broke(first)

    assert not first.ended
    assert 0 == registry.report()["agents"]["vm-1"]["twins"]
