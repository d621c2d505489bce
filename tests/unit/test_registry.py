"""How runs end in the books of a collector, also where their last words can't be written."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from guestagent.collector.fidelity import MOST_INTERVALS
from guestagent.collector.registry import FORGET_NS, FORGOTTEN, MOST_AGENTS, Registry
from guestagent.collector.run import Run
from guestagent.collector.sinks import pcapng
from guestagent.collector.sinks.directory import DirectorySink, Rotation
from guestagent.errors import ConfigError
from guestagent.tapstream.hello import AgentHello
from tests.captures import OTHER_RUN, comments, packet
from tests.fakes import EPOCH_NS, agent_hello, packets_frame, parsed


def break_disk(run: Run) -> None:
    """Let every further write of this run fail for good."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    os.dup2(write_end, run.track.output._descriptor)
    os.close(write_end)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Over a directory."""
    return Registry(DirectorySink(tmp_path, Rotation()), "collector-1", "0.1")


def opened(registry: Registry, agent_id: str, **changes: object) -> Run:
    """A run that has one packet in its file."""
    run, _ = registry.open(agent_hello(agent_id=agent_id, **changes))
    run.frame(parsed(packets_frame(1, [packet(1)])), 0.0)
    assert run.flush(0.0)
    return run


def test_a_broken_file_costs_the_others_nothing_at_the_end(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """Where one file's last words fail, all runs are ended and folded, all files closed, and the log says which."""
    broken, sound = opened(registry, "vm-1"), opened(registry, "vm-2", run_id=OTHER_RUN)
    break_disk(broken)
    registry.close()

    (path,) = (tmp_path / "vm-2").iterdir()
    assert ["the collector stopped; the run may go on elsewhere"] == comments(path, pcapng.STATISTICS, 12)
    assert broken.ended
    assert sound.ended
    for run in (broken, sound):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(run.track.output._descriptor)
    agents = registry.report()["agents"]
    assert [(1, 0), (1, 0)] == [(agents[name]["written"], agents[name]["streaming"]) for name in ("vm-1", "vm-2")]
    assert "agent vm-1: the capture can't be written: Broken pipe; it ends here" in caplog.text


def test_a_broken_file_of_a_dead_run_does_not_keep_the_next_one_out(registry: Registry) -> None:
    """An agent that comes back with a new run is served at once, whatever became of the file of the old one."""
    dead = opened(registry, "vm-1")
    break_disk(dead)
    registry.broke(dead)
    opened(registry, "vm-1", run_id=OTHER_RUN)
    report = registry.report()["agents"]["vm-1"]
    assert (2, 1, 1) == (report["written"], report["streaming"], report["unclean_end_count"])
    registry.close()


def test_a_goodbye_ends_a_run_whose_file_is_broken(registry: Registry) -> None:
    """The goodbye of an agent frees its file and its place in the books all the same."""
    run = opened(registry, "vm-1")
    break_disk(run)
    registry.said_goodbye(run, "the agent ended: test")
    assert 0 == registry.report()["agents"]["vm-1"]["streaming"]
    registry.close()


# -- names ------------------------------------------------------------------------------------------------------------


class NoSink:
    """A disk on which nothing can be made."""

    def open_run(self, hello: AgentHello) -> Any:
        """Nothing can be opened."""
        raise ConfigError("no room")

    def blocked_by(self) -> str:
        """Nothing."""
        return ""

    def close(self) -> None:
        """Nothing."""


def test_names_are_bounded() -> None:
    """Strangers who invent agents fill neither memory nor disk: one too many is refused."""
    registry = Registry(NoSink(), "collector-1", "0.1")
    for number in range(MOST_AGENTS):
        with pytest.raises(ConfigError):
            registry.open(agent_hello(agent_id=f"vm-{number}"))
    with pytest.raises(ValueError, match=f"already serves {MOST_AGENTS} agents"):
        registry.open(agent_hello(agent_id="one-more"))


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Iterator[mock.Mock]:
    """The wall clock of the registry; the test sets what it answers."""
    with mock.patch("guestagent.collector.registry.time.time_ns", return_value=EPOCH_NS) as clock:
        yield clock


def test_agents_that_are_long_gone_make_room(
    registry: Registry, wall: mock.Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fleet that comes and goes there is room for the next VM; what the gone ones sent stays in the sums."""
    monkeypatch.setattr("guestagent.collector.registry.MOST_AGENTS", 3)
    said_goodbye = opened(registry, "vm-0", run_id=f"{0:032x}")
    registry.said_goodbye(said_goodbye, "the agent ended: test")
    wall.return_value += 1
    killed = opened(registry, "vm-1", run_id=f"{1:032x}")
    registry.broke(killed)
    opened(registry, "vm-2", run_id=f"{2:032x}")
    with pytest.raises(ValueError, match="already serves 3 agents"):
        registry.open(agent_hello(agent_id="vm-3", run_id=f"{3:032x}"))
    wall.return_value += FORGET_NS
    opened(registry, "vm-3", run_id=f"{3:032x}")
    opened(registry, "vm-4", run_id=f"{4:032x}")
    with pytest.raises(ValueError, match="already serves 3 agents"):
        registry.open(agent_hello(agent_id="vm-5", run_id=f"{5:032x}"))

    agents = registry.report()["agents"]
    assert {FORGOTTEN, "vm-2", "vm-3", "vm-4"} == set(agents)
    assert (2, 0, 1) == tuple(agents[FORGOTTEN][key] for key in ("written", "streaming", "unclean_end_count"))
    assert killed.ended
    registry.close()


def test_intervals_of_reduced_fidelity_are_shown_or_counted(registry: Registry) -> None:
    """Three runs of an agent that was reduced again and again: the latest are shown, and no other is forgotten."""
    for number in range(3):
        run = opened(registry, "vm-1", run_id=f"{number:032x}")
        for at in range(MOST_INTERVALS * 3 // 4):
            run.fidelity.reported({"limits": {"reduced": True, "since_ns": EPOCH_NS + number * 1000 + at}}, EPOCH_NS)
            run.fidelity.reported({"limits": {}}, EPOCH_NS + 1_000_000)
        registry.said_goodbye(run, "the end")
    books = registry.report()["agents"]["vm-1"]

    assert len(books["reduced"]) == MOST_INTERVALS
    assert books["reduced"][-1]["from_ns"] == EPOCH_NS + 2000 + MOST_INTERVALS * 3 // 4 - 1
    assert len(books["reduced"]) + books["reduced_dropped"] == 3 * (MOST_INTERVALS * 3 // 4)
