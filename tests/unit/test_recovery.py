"""A collector killed at any byte of any write goes on without losing or repeating a packet."""

import os
import tempfile
from itertools import islice
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.sinks.directory import DirectorySink, Rotation
from guestagent.collector.sinks.shared import single_file
from guestagent.errors import ConfigError
from guestagent.tapstream.hello import MOST_TAG_CHARACTERS, MOST_TAGS
from tests.crashes import (
    A_MARK,
    OTHER_RUN,
    Agent,
    Killed,
    abandon,
    agents_of,
    bytes_of,
    check_whole,
    crash_and_resume,
    expected_packets,
    killed_after,
    script,
    serve,
    written_packets,
)
from tests.fakes import RUN_ID, agent_hello, packets_frame

STRIDE = 5
"""Every fifth byte: blocks are aligned to four, so each place within a word is met in a fifth of the time."""


@pytest.mark.parametrize("rotate_bytes", [0, 700])
def test_a_directory_after_a_kill(tmp_path: Path, rotate_bytes: int) -> None:
    """Killed after any number of bytes, with and without files changing: each packet is in the files exactly once."""
    rotation = Rotation(rotate_bytes=rotate_bytes)
    total = bytes_of(lambda: DirectorySink(tmp_path / "whole", rotation), 1)
    assert expected_packets(script()) == written_packets(tmp_path / "whole")
    for budget in range(0, total, STRIDE):
        root = tmp_path / str(budget)
        agents = agents_of(1)
        assert crash_and_resume(lambda root=root: DirectorySink(root, rotation), agents, budget)
        assert expected_packets(script()) == written_packets(root), f"killed after {budget} of {total} bytes"


@pytest.mark.parametrize("number", [1, 2])
def test_a_single_file_after_a_kill(tmp_path: Path, number: int) -> None:
    """A file of one or several runs, killed at any byte behind its section header, ends whole, each packet once."""
    total = bytes_of(lambda: single_file(tmp_path / "whole.pcapng"), number)
    section = next(reader.blocks((tmp_path / "whole.pcapng").read_bytes()))[2]
    wanted = expected_packets(*(script(at) for at in range(number)))
    for budget in range(section, total, STRIDE * number + number - 1):
        path = tmp_path / str(budget) / "all.pcapng"
        assert crash_and_resume(lambda path=path: single_file(path), agents_of(number), budget)
        assert wanted == written_packets(path.parent), f"killed after {budget} of {total} bytes"
        check_whole(path)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2500), min_size=1, max_size=5), st.sampled_from([0, 400, 900]))
def test_several_kills(budgets: list[int], rotate_bytes: int) -> None:
    """A collector that is killed again and again still ends with each packet once, and stale records counted once."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        agents = agents_of(2)
        for budget in budgets:
            sink = None
            try:
                with killed_after(budget):
                    sink = DirectorySink(root, Rotation(rotate_bytes=rotate_bytes))
                    serve(sink, agents)
            except Killed:
                pass
            assert sink is not None
            abandon(sink)
        registry = serve(DirectorySink(root, Rotation(rotate_bytes=rotate_bytes)), agents)
        stale = [registry.report()["agents"][agent.hello.agent_id]["unsupported_gso"] for agent in agents]
        registry.close()

        assert expected_packets(script(0), script(1)) == written_packets(root)
        assert [2, 2] == stale


def test_every_cut_is_whole_up_to_a_border(tmp_path: Path) -> None:
    """Of a file cut anywhere, both ways to recover agree: whole to a block's border, packets marked, sequence right."""
    path = tmp_path / "all.pcapng"
    registry = serve(single_file(path), agents_of(1))
    data = path.read_bytes()
    borders, marks, packets, last = {0}, {}, {}, 0
    for kind, start, stop in reader.blocks(data):
        borders.add(stop)
        if kind == pcapng.OURS and data[start + 8 : start + 12] == pcapng.MARK_MAGIC:
            last = int.from_bytes(data[start + 28 : start + 36], "little")
            marks[stop] = last
        packets[stop] = sum(1 for _ in reader.packets(data[:stop]))
    for cut in range(len(data) + 1):
        walked = reader.recover(data[:cut], from_last_mark=False)
        assert walked == reader.recover(data[:cut], from_last_mark=True), f"cut at {cut}"
        assert walked.whole_bytes in borders
        assert walked.whole_bytes <= cut
        held = max((sequence for stop, sequence in marks.items() if stop <= cut), default=None)
        assert held == (walked.runs[bytes.fromhex(RUN_ID)].sequence if walked.runs else None)
        marked = max((stop for stop in marks if stop <= walked.whole_bytes), default=0)
        assert packets.get(walked.whole_bytes, 0) == packets.get(marked, 0)
    registry.close()


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=5))
def test_damaged_files_are_read_without_surprise(junk: bytes, changes: list[tuple[int, int]]) -> None:
    """A file of ours with any bytes changed or appended is recovered up to somewhere; no error, nothing beyond it."""
    data = bytearray(WHOLE + junk)
    for at, value in changes:
        data[at % len(data)] = value
    for from_last_mark in (False, True):
        found = reader.recover(bytes(data), from_last_mark=from_last_mark)
        assert 0 <= found.whole_bytes <= len(data)
    list(reader.packets(bytes(data)))
    reader.is_ours(bytes(data))


def _whole_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all.pcapng"
        serve(single_file(path), agents_of(1)).close()
        return path.read_bytes()


WHOLE = _whole_file()


@pytest.mark.parametrize("copies", [1, 50])
def test_a_picture_of_a_mark_in_a_packet_is_no_mark(tmp_path: Path, copies: int) -> None:
    """Someone who transfers one of our files through the tap can't move the place where a capture is resumed."""
    sink = DirectorySink(tmp_path, Rotation())
    serve(sink, agents_of(1))
    (path,) = tmp_path.rglob("*.pcapng")
    data = path.read_bytes() + pcapng.block(pcapng.PACKET, bytes(20) + WHOLE + A_MARK * copies)
    abandon(sink)
    for cut in (len(data), len(data) - 5, len(data) - 100):
        found = reader.recover(data[:cut], from_last_mark=True)
        assert 9 == found.runs[bytes.fromhex(RUN_ID)].sequence
        assert path.stat().st_size == found.whole_bytes


def test_a_foreign_file_is_refused_and_untouched(tmp_path: Path) -> None:
    """A file that guestagent did not write is neither appended to nor cut, whether named or lying in the directory."""
    foreign = pcapng.section("", "dumpcap", "Linux") + pcapng.block(pcapng.PACKET, bytes(24))[:-3]
    for content in (foreign, b"text", bytes(64)):
        path = tmp_path / "vm-1" / "theirs.pcapng"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="exists and is no capture of guestagent"):
            single_file(path)
        sink = DirectorySink(tmp_path, Rotation())
        sink.close()
        assert content == path.read_bytes()


def test_files_of_one_moment_are_told_apart(tmp_path: Path) -> None:
    """Many files that changed within one tick of the clock are taken in the order of their numbers."""
    agents = [Agent(agent_hello(), [packets_frame(at, [at.to_bytes(2, "big") + bytes(40)]) for at in range(1, 40)])]
    sink = DirectorySink(tmp_path, Rotation(rotate_bytes=400))
    serve(sink, agents, last=30)
    abandon(sink)
    files = list(tmp_path.rglob("*.pcapng"))
    for path in files:
        os.utime(path, ns=(10**18, 10**18))
    assert len(files) > 10

    serve(DirectorySink(tmp_path, Rotation(rotate_bytes=400)), agents).close()

    assert expected_packets(agents[0].script[:3] + agents[0].script[4:]) == [
        one for one in written_packets(tmp_path) if one[1] != 4
    ]


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    """A file that was made and never written to is used as if it were new."""
    path = tmp_path / "all.pcapng"
    path.touch()
    serve(single_file(path), agents_of(1)).close()

    check_whole(path)
    assert expected_packets(script()) == written_packets(tmp_path)


def test_a_finished_run_is_not_resumed_into(tmp_path: Path) -> None:
    """Of several files of one agent the one of the run that comes back is continued, the others are left alone."""
    agents = agents_of(1)
    sink = DirectorySink(tmp_path, Rotation())
    serve(sink, agents, last=5)
    abandon(sink)
    other = Agent(agent_hello(OTHER_RUN, started_ns=agents[0].hello.started_ns + 10**9), script(9))
    sink = DirectorySink(tmp_path, Rotation())
    serve(sink, [other]).close()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.pcapng")}
    assert 2 == len(before)

    serve(DirectorySink(tmp_path, Rotation()), agents).close()

    changed = [path for path, data in before.items() if data != path.read_bytes()]
    assert 1 == len(changed)
    assert list(islice(tmp_path.rglob("*.pcapng"), 3))[2:] == []
    assert expected_packets(script(), script(9)) == written_packets(tmp_path)


def test_a_file_that_many_tags_head_is_ours(tmp_path: Path) -> None:
    """The most and longest tags that a config takes make a long section header; a run goes on behind that, too."""
    tags = {f"{number:064d}": "標" * MOST_TAG_CHARACTERS for number in range(MOST_TAGS)}
    agents = [Agent(agent_hello(tags=tags), script())]
    sink = DirectorySink(tmp_path, Rotation())
    serve(sink, agents, last=5)
    abandon(sink)

    serve(DirectorySink(tmp_path, Rotation()), agents).close()

    assert 1 == len(list(tmp_path.rglob("*.pcapng")))
    assert expected_packets(script()) == written_packets(tmp_path)


def test_a_file_that_can_not_be_opened_at_once_is_resumed_into_later(tmp_path: Path) -> None:
    """A collector that is out of files when a run comes back does not forget what it holds of it."""
    agents = agents_of(1)
    sink = DirectorySink(tmp_path, Rotation())
    serve(sink, agents, last=5)
    abandon(sink)
    sink = DirectorySink(tmp_path, Rotation())
    with (
        mock.patch("guestagent.collector.sinks.directory.open_file", side_effect=ConfigError("too many open files")),
        pytest.raises(ConfigError, match="too many open files"),
    ):
        sink.open_run(agents[0].hello_now)

    serve(sink, agents).close()

    assert 1 == len(list(tmp_path.rglob("*.pcapng")))
    assert expected_packets(script()) == written_packets(tmp_path)
