"""A directory of captures: each run has files of its own, they change in time, old ones make room."""

from pathlib import Path
from unittest import mock

import pytest

from guestagent.collector.registry import Registry
from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.sinks.directory import DirectorySink, Rotation, Share
from guestagent.errors import ConfigError
from tests.captures import OTHER_RUN, by_number, comments, numbers, open_run, packet, small_disk
from tests.fakes import RUN_ID, agent_hello, packets_frame, parsed


def test_file_names_and_modes(tmp_path: Path) -> None:
    """AGENT/START-N.pcapng has its final name from the first byte, and nobody else may read it."""
    sink = DirectorySink(tmp_path / "captures", Rotation())
    registry, run = open_run(sink)
    run.flush(0.0)
    path = tmp_path / "captures" / "vm-1" / "20231114T221320.123Z-0.pcapng"

    assert [path] == list(tmp_path.rglob("*.pcapng"))
    assert reader.is_ours(path.read_bytes())
    assert (0o640, 0o750) == (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777 | 0o750)
    assert [f"agent vm-1 on host-1, run {RUN_ID}"] == comments(path, pcapng.SECTION, 16)
    registry.close()


@pytest.mark.parametrize(
    "rotation, step_seconds", [(Rotation(rotate_bytes=1500), 0.0), (Rotation(rotate_bytes=0, rotate_seconds=10), 4.0)]
)
def test_files_change_by_size_and_by_age(tmp_path: Path, rotation: Rotation, step_seconds: float) -> None:
    """A file that is big or old enough ends with its statistics; the next goes on with the next packet."""
    registry, run = open_run(DirectorySink(tmp_path, rotation))
    for sequence in range(1, 31):
        run.frame(parsed(packets_frame(sequence, [packet(sequence)])), 0.0)
        assert run.flush(sequence * step_seconds)
    registry.said_goodbye(run, "the agent ended: test")
    registry.close()
    files = by_number(tmp_path / "vm-1")

    assert len(files) > 3
    assert list(range(1, 31)) == [number for path in files for number in numbers(path)]
    assert all(len(numbers(path)) >= 1 for path in files)
    assert [["goes on in the next file"]] * (len(files) - 1) == [
        comments(path, pcapng.STATISTICS, 12) for path in files[:-1]
    ]
    assert ["the agent ended: test"] == comments(files[-1], pcapng.STATISTICS, 12)
    for path in files:
        data = path.read_bytes()
        assert len(data) == reader.recover(data, from_last_mark=False).whole_bytes == list(reader.blocks(data))[-1][2]


def test_old_files_make_room(tmp_path: Path) -> None:
    """With retain_bytes the oldest files go first, and the one being written never."""
    registry, run = open_run(DirectorySink(tmp_path, Rotation(rotate_bytes=1500, retain_bytes=4000)))
    for sequence in range(1, 101):
        run.frame(parsed(packets_frame(sequence, [packet(sequence)])), 0.0)
        run.flush(0.0)
    files = by_number(tmp_path / "vm-1")
    kept = [number for path in files for number in numbers(path)]
    registry.close()

    assert list(range(kept[0], 101)) == kept
    assert sum(path.stat().st_size for path in files[:-1]) <= 4000
    assert len(files) >= 2


def test_runs_that_end_before_their_file_is_full_make_room_too(tmp_path: Path) -> None:
    """An agent that starts again and again never changes a file; its oldest ones go all the same."""
    rotation = Rotation(rotate_bytes=1_000_000, retain_bytes=4000)
    for number in range(20):
        registry, run = open_run(DirectorySink(tmp_path, rotation), run_id=f"{number:032x}")
        run.frame(parsed(packets_frame(1, [packet(number, 1000)])), 0.0)
        assert run.flush(0.0)
        registry.said_goodbye(run, "the end")
        registry.close()
    kept = sorted(number for path in (tmp_path / "vm-1").glob("*.pcapng") for number in numbers(path))

    assert kept == list(range(20 - len(kept), 20))
    assert 2 <= len(kept) <= 5


def test_less_to_keep_makes_room_at_once(tmp_path: Path) -> None:
    """On a full disk no file is changed; so a smaller bound, read again, deletes without waiting for that."""
    sink = DirectorySink(tmp_path, Rotation(rotate_bytes=1500))
    registry, run = open_run(sink)
    for sequence in range(1, 41):
        run.frame(parsed(packets_frame(sequence, [packet(sequence)])), 0.0)
        assert run.flush(0.0)
    assert len(by_number(tmp_path / "vm-1")) > 2
    with small_disk(0):
        sink.renew(Rotation(rotate_bytes=1500, retain_bytes=1))
        assert len(by_number(tmp_path / "vm-1")) == 1
    registry.close()


def test_the_file_being_written_is_never_deleted(tmp_path: Path) -> None:
    """However little is to be kept, the current file stays."""
    registry, run = open_run(DirectorySink(tmp_path, Rotation(rotate_bytes=1500, retain_bytes=1)))
    for sequence in range(1, 41):
        run.frame(parsed(packets_frame(sequence, [packet(sequence)])), 0.0)
        assert run.flush(0.0)
        assert 1 == len(by_number(tmp_path / "vm-1"))
    registry.close()


def test_old_files_of_one_machine_make_no_room_of_what_its_twin_writes(tmp_path: Path) -> None:
    """Two machines with one name share a folder: whichever has too much there, neither loses the file being written."""
    registry, run = open_run(DirectorySink(tmp_path, Rotation(rotate_bytes=1500, retain_bytes=1)))
    twin, _ = registry.open(agent_hello(OTHER_RUN))
    twin.frame(parsed(packets_frame(1, [packet(1001)])), 0.0)
    assert twin.flush(0.0)
    for sequence in range(1, 41):
        run.frame(parsed(packets_frame(sequence, [packet(sequence)])), 0.0)
        assert run.flush(0.0)
        assert 2 == len(by_number(tmp_path / "vm-1"))
    twin.frame(parsed(packets_frame(2, [packet(1002)])), 0.0)
    registry.close()

    assert [1001, 1002] in [numbers(path) for path in by_number(tmp_path / "vm-1")]


def test_a_next_file_that_can_not_be_opened_lets_the_current_one_grow(tmp_path: Path) -> None:
    """Where the next file can't be made, the capture goes on in the one at hand, and no closed descriptor is used."""
    registry, run = open_run(DirectorySink(tmp_path, Rotation(rotate_bytes=1000)))
    (path,) = (tmp_path / "vm-1").glob("*.pcapng")
    refusal = ConfigError("no more files")
    with mock.patch("guestagent.collector.sinks.directory.open_file", side_effect=refusal):
        for sequence in range(1, 21):
            run.frame(parsed(packets_frame(sequence, [packet(sequence)])), 0.0)
            assert run.flush(0.0)
    assert list(range(1, 21)) == numbers(path)
    run.frame(parsed(packets_frame(21, [packet(21)])), 0.0)
    run.flush(0.0)
    registry.close()

    assert [list(range(1, 22)), []] == [numbers(one) for one in by_number(tmp_path / "vm-1")]


def test_two_collectors_can_not_share(tmp_path: Path) -> None:
    """A second collector on the same directory is refused with a sentence; after the first closed it may come."""
    first = DirectorySink(tmp_path, Rotation())
    with pytest.raises(ConfigError, match="another collector writes to"):
        DirectorySink(tmp_path, Rotation())
    first.close()
    DirectorySink(tmp_path, Rotation()).close()


def test_agents_and_runs_have_files_of_their_own(tmp_path: Path) -> None:
    """Two agents, and two runs of one, never write into the same file of a directory."""
    registry = Registry(DirectorySink(tmp_path, Rotation()), "collector-1", "0.1")
    hellos = [agent_hello(), agent_hello(OTHER_RUN), agent_hello("a" * 32, agent_id="vm-2")]
    runs = [registry.open(hello)[0] for hello in hellos]
    for number, run in enumerate(runs):
        run.frame(parsed(packets_frame(1, [packet(number)])), 0.0)
        run.flush(0.0)
    registry.close()

    assert [[0], [1], [2]] == sorted(numbers(path) for path in tmp_path.rglob("*.pcapng"))


def test_a_worker_mends_no_file_of_another(tmp_path: Path) -> None:
    """What looks torn may be a frame that another worker is writing at this moment: only its own folders are mended."""
    registry = Registry(DirectorySink(tmp_path, Rotation()), "collector-1", "0.1")
    for name in ("ours", "theirs"):
        run, _ = registry.open(agent_hello(agent_id=name))
        run.frame(parsed(packets_frame(1, [packet(1)])), 0.0)
        assert run.flush(0.0)
    registry.close()
    torn = {}
    for name in ("ours", "theirs"):
        (path,) = (tmp_path / name).iterdir()
        torn[name] = path.read_bytes() + bytes([6, 0, 0, 0, 99])
        path.write_bytes(torn[name])
    DirectorySink(tmp_path, Rotation(), share=Share(lambda name: name == "ours")).close()
    now = {name: next((tmp_path / name).iterdir()).read_bytes() for name in torn}

    assert now["theirs"] == torn["theirs"]
    assert len(now["ours"]) < len(torn["ours"])
