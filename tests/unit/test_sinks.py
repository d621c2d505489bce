"""Where packets go: full disks and slow readers lose nothing, files change in time, old ones make room."""

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.collector.registry import Registry
from guestagent.collector.run import Run
from guestagent.collector.sinks import output, pcapng, reader
from guestagent.collector.sinks.directory import DirectorySink, Rotation, Share
from guestagent.collector.sinks.output import Output, open_file
from guestagent.collector.sinks.shared import open_sink, single_file, standard_output
from guestagent.collector.sinks.track import Track
from guestagent.errors import ConfigError, RunError
from tests.fakes import EPOCH_NS, RUN_ID, agent_hello, interface, packets_frame, parsed

OTHER_RUN = "fedcba9876543210" * 2


@contextmanager
def small_disk(room: int) -> Iterator[list[int]]:
    """A disk with so much room; the test may change it."""
    real, left = os.writev, [room]

    def writev(descriptor: int, batch: Sequence[bytes]) -> int:
        whole = b"".join(batch)[: left[0]]
        if not whole and any(batch):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(whole)
        return real(descriptor, [whole])

    with mock.patch.object(output.os, "writev", writev):
        yield left


@given(
    st.lists(st.binary(max_size=40), max_size=40),
    st.lists(st.integers(0, 60), max_size=20),
)
def test_a_full_disk_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: list[bytes], rooms: list[int]
) -> None:
    """However little room comes at a time, in the end the file holds all bytes in order, and size told it before."""
    path = tmp_path_factory.mktemp("disk") / "x"
    one = open_file(path, exclusive=True)
    with small_disk(0) as left:
        for piece in data:
            one.write(piece)
        for room in rooms:
            left[0] = room
            done = one.flush()
            assert done == (one.blocked_by == "")
            assert done == (path.stat().st_size == one.size)
            assert done or one.blocked_by == "No space left on device"
        left[0] = 1 << 20
        assert one.flush()
    assert one.close()
    assert b"".join(data) == path.read_bytes()
    assert "" == one.blocked_by


def test_more_pieces_than_one_call_takes() -> None:
    """Thousands of pieces, empty ones among them, go out whole although writev takes 1,024 at most."""
    read_end, write_end = os.pipe()
    one = Output(write_end, size=0, is_file=True)
    pieces = [bytes([at & 0xFF]) * (at % 7) for at in range(3000)]
    for piece in pieces:
        one.write(piece)

    assert one.close()
    with os.fdopen(read_end, "rb") as pipe:
        assert b"".join(pieces) == pipe.read()


def test_a_slow_reader_is_waited_for() -> None:
    """A pipe that is full blocks the output by name; every byte arrives once the reader goes on."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    one = Output(write_end, size=0, is_file=False)
    data = os.urandom(300_000)
    one.write(data)
    got = b""

    assert not one.flush()
    assert "Resource temporarily unavailable" == one.blocked_by
    while not one.flush():
        got += os.read(read_end, 1 << 16)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert data == got + pipe.read()


def test_dev_full_is_a_full_disk() -> None:
    """The kernel's own full device gives the same answer as the test's."""
    one = Output(os.open("/dev/full", os.O_WRONLY), size=0, is_file=True)
    one.write(b"x")

    assert not one.flush()
    assert "No space left on device" == one.blocked_by
    assert not one.close()


def test_a_reader_that_left_ends_the_capture() -> None:
    """A pipe whose reader is gone can't be waited for: one sentence, exit code 1."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    one = Output(write_end, size=0, is_file=True)
    one.write(b"x")
    with pytest.raises(RunError, match=r"^the capture can't be written: Broken pipe; it ends here$"):
        one.flush()
    one.close()


def test_fdatasync_comes_before_the_acknowledgement(tmp_path: Path) -> None:
    """With fsync, flush has called fdatasync behind its last write; where that fails it does not answer True."""
    with mock.patch.object(output.os, "fdatasync") as sync:
        one = open_file(tmp_path / "x", exclusive=True, fsync=True)
        one.write(b"x")
        assert one.flush()
        assert 1 == sync.call_count
        one.write(b"y")
        sync.side_effect = OSError(errno.EIO, os.strerror(errno.EIO))
        with pytest.raises(RunError, match="can't be written: Input/output error"):
            one.flush()
        sync.side_effect = None
        one.close()


def test_a_file_size_limit_ends_with_a_sentence(tmp_path: Path) -> None:
    """A process limited by RLIMIT_FSIZE gets EFBIG, which no waiting cures: the error says so, the file stays whole."""
    child = os.fork()
    if child == 0:
        import resource

        code = 1
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        one = open_file(tmp_path / "x", exclusive=True)
        one.write(b"0123456789abcdef")
        with suppress(BaseException):
            try:
                one.flush()
            except RunError as error:
                code = 0 if "File too large" in str(error) else 2
        os._exit(code)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert b"0123456789" == (tmp_path / "x").read_bytes()


# -- runs into a directory ------------------------------------------------------------------------------------------


def open_run(sink: DirectorySink, **changes: object) -> tuple[Registry, Run]:
    """A registry over the sink and a first run."""
    registry = Registry(sink, "collector-1", "0.1")
    run, _ = registry.open(agent_hello(**changes))  # type: ignore[arg-type]
    return registry, run


def packet(number: int, size: int = 60) -> bytes:
    """A frame that tells its number."""
    return number.to_bytes(4, "big") + bytes(size)


def numbers(path: Path) -> list[int]:
    """The numbers of the packets of one file."""
    return [int.from_bytes(row[-1][:4], "big") for row in reader.packets(path.read_bytes())]


def by_number(folder: Path) -> list[Path]:
    """The files of one run in the order in which they were begun."""
    return sorted(folder.glob("*.pcapng"), key=lambda path: int(path.stem.rpartition("-")[2]))


def comments(path: Path, kind: int, head: int) -> list[str]:
    """The comments of all blocks of one kind."""
    data = path.read_bytes()
    return [
        value.decode()
        for one, start, stop in reader.blocks(data)
        if one == kind
        for code, value in reader.options(data, start + 8 + head, stop - 4)
        if code == pcapng.OPTION_COMMENT
    ]


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


def test_the_file_being_written_is_never_deleted(tmp_path: Path) -> None:
    """However little is to be kept, the current file stays."""
    registry, run = open_run(DirectorySink(tmp_path, Rotation(rotate_bytes=1500, retain_bytes=1)))
    for sequence in range(1, 41):
        run.frame(parsed(packets_frame(sequence, [packet(sequence)])), 0.0)
        assert run.flush(0.0)
        assert 1 == len(by_number(tmp_path / "vm-1"))
    registry.close()


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


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write to the directory can't make the collector write elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    path = tmp_path / "x.pcapng"
    path.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="can't be written"):
        open_file(path, exclusive=False)
    assert not elsewhere.exists()


@pytest.mark.parametrize("write", ["{}/file/captures", "{}/file/all.pcapng"])
def test_a_place_that_can_not_be_is_one_sentence(tmp_path: Path, write: str) -> None:
    """A path below a file is refused at start, with what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"choose another --write$"):
        open_sink(write.format(tmp_path), Rotation(), fsync=False, wire_size=False, stdout=lambda: 1)


def test_standard_output_is_one_stream() -> None:
    """Several runs go into one pcapng stream that a reader understands while it grows."""
    read_end, write_end = os.pipe()
    registry = Registry(standard_output(write_end), "collector-1", "0.1")
    hellos = [agent_hello(), agent_hello(OTHER_RUN, agent_id="vm-2", interfaces=(interface(5, "ens5"),))]
    runs = [registry.open(hello)[0] for hello in hellos]
    for at in (0, 1, 0):
        run = runs[at]
        data = packets_frame(run.place.held_sequence + 1, [packet(at)], interface_id=run.hello.interfaces[0].id)
        run.frame(parsed(data), 0.0)
        assert run.flush(0.0)
    registry.close()
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()

    assert [(0, 0), (1, 1), (0, 0)] == [(row[0], int.from_bytes(row[-1][:4], "big")) for row in reader.packets(data)]


def test_statistics_come_from_the_last_report(tmp_path: Path) -> None:
    """The statistics block holds the agent's counters of its last REPORT; what is no sound number is left out."""
    counts = {"captured": 100, "dropped_by_ring": 7, "unsupported_gso": -1}
    for value, expected in (
        ({"interfaces": {"0": counts}}, {4: 100, 6: 100, 7: 7, 8: 1}),
        ({"interfaces": {"0": {"captured": 2**70, "dropped_by_ring": True}}}, {4: 1, 6: 1, 7: 0, 8: 1}),
        ({"interfaces": {"0": 5}}, {4: 1, 6: 1, 7: 0, 8: 1}),
        ({"interfaces": [1]}, {4: 1, 6: 1, 7: 0, 8: 1}),
        ({"interfaces": None}, {4: 1, 6: 1, 7: 0, 8: 1}),
        ({}, {4: 1, 6: 1, 7: 0, 8: 1}),
    ):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pcapng"
        sink = single_file(path)
        track, _ = sink.open_run(agent_hello())
        _write_one(track)
        track.report(value)  # type: ignore[arg-type]
        track.end("the end")
        sink.close()
        data = path.read_bytes()
        found = [
            {
                code: int.from_bytes(field, "little")
                for code, field in reader.options(data, start + 20, stop - 4)
                if code > 1
            }
            for kind, start, stop in reader.blocks(data)
            if kind == pcapng.STATISTICS
        ]
        assert [expected] == found


def _write_one(track: Track) -> None:
    frame = parsed(packets_frame(1, [packet(1)]))
    track.records(0, frame.payload[8:], 1)


@pytest.mark.parametrize("seconds, text", [(EPOCH_NS, "2023-11-14T22:13:20.123Z"), (0, "1970-01-01T00:00:00.000Z")])
def test_gaps_are_told_in_utc(seconds: int, text: str) -> None:
    """Times of gaps are ISO 8601 in UTC, to the millisecond."""
    from guestagent.collector.run import utc

    assert text == utc(seconds)


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
