"""Where bytes go: full disks and slow readers lose nothing, and what no waiting cures is one sentence."""

import errno
import os
import signal
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.collector.sinks import output
from guestagent.collector.sinks.output import Output, open_file
from guestagent.errors import ConfigError, RunError
from tests.captures import small_disk


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
        with pytest.raises(RunError, match="Input/output error"):
            one.flush()  # the kernel tells it once, and what it lost may be what is asked for now
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


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write to the directory can't make the collector write elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    path = tmp_path / "x.pcapng"
    path.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="can't be written"):
        open_file(path, exclusive=False)
    assert not elsewhere.exists()
