"""How runs end in the books of a collector, also where their last words can't be written."""

import os
from pathlib import Path

import pytest

from guestagent.collector.registry import Registry
from guestagent.collector.run import Run
from guestagent.collector.sinks import pcapng
from guestagent.collector.sinks.directory import DirectorySink, Rotation
from tests.fakes import agent_hello, packets_frame, parsed
from tests.unit.test_sinks import OTHER_RUN, comments, packet


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
