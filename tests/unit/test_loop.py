"""The loop: what is out of files waits a little instead of turning it round and round."""

import errno
import socket
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from guestagent.loop import READABLE, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop of its own."""
    made = Loop()
    yield made
    made.close()


def turns(loop: Loop, seconds: float) -> None:
    """Let it turn for so long."""
    end = time.monotonic() + seconds
    while (rest := end - time.monotonic()) > 0:
        loop.run_once(rest)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_callback_without_a_file_is_called_again_later(loop: Loop, number: int) -> None:
    """A listener whose accept finds no descriptor is looked at ten times a second; the others at once."""
    ours, theirs = socket.socketpair()
    other, far = socket.socketpair()
    called, heard = [], []

    def accept(_events: int) -> None:
        called.append(time.monotonic())
        if len(called) < 4:
            raise OSError(number, "too many")
        ours.recv(1)

    with ours, theirs, other, far:
        loop.watch(ours, READABLE, accept)
        loop.watch(other, READABLE, lambda _events: heard.append(other.recv(1)))
        theirs.send(b"x")
        loop.run_once(0.1)
        far.send(b"y")
        loop.run_once(0.05)
        assert heard == [b"y"]
        while len(called) < 4:
            loop.run_once(1.0)

    assert min(later - sooner for sooner, later in pairwise(called)) > 0.09


def test_what_is_paused_may_be_forgotten_and_changed(loop: Loop) -> None:
    """A paused descriptor that is closed is no trouble, its number may be watched anew."""

    def refuse(_events: int) -> None:
        raise OSError(errno.EMFILE, "too many")

    ours, theirs = socket.socketpair()
    loop.watch(ours, READABLE, refuse)
    theirs.send(b"x")
    loop.run_once(0.1)
    loop.forget(ours)
    ours.close()
    theirs.close()
    turns(loop, 0.15)


def test_other_errors_are_raised(loop: Loop) -> None:
    """Only a lack of files is waited for."""

    def fail(_events: int) -> None:
        raise OSError(errno.EIO, "broken")

    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.watch(ours, READABLE, fail)
        theirs.send(b"x")
        with pytest.raises(OSError, match="broken"):
            loop.run_once(0.1)
