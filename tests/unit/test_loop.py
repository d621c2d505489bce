"""The loop: what is out of files waits a little instead of turning it round and round."""

import errno
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from guestagent.loop import EDGE, READABLE, Loop, Rest


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


Wires = tuple[socket.socket, socket.socket, list[str]]
"""Who writes to a patient one, who to another, and the names of those that were called."""


@pytest.fixture
def patient_and_other(loop: Loop) -> Iterator[Wires]:
    """A patient one and another, watched."""
    (ours, theirs), (other, far) = socket.socketpair(), socket.socketpair()
    called: list[str] = []
    with ours, theirs, other, far:
        loop.watch(ours, READABLE | EDGE, lambda _events: called.append("patient"), is_patient=True)
        loop.watch(other, READABLE | EDGE, lambda _events: called.append("other"))
        yield theirs, far, called


def waited_seconds(loop: Loop, timeout_seconds: float, rest: Rest) -> float:
    """How long the turn took."""
    start = time.monotonic()
    loop.run_once(timeout_seconds, rest)
    return time.monotonic() - start


@pytest.mark.parametrize(
    "patience, timeout, waited", [(0.05, 1.0, 0.05), (1.0, 0.05, 0.05), (0.0, 1.0, 0.02), (0.0, 0.01, 0.02)]
)
def test_a_patient_one_waits_for_company(
    loop: Loop, patient_and_other: Wires, patience: float, timeout: float, waited: float
) -> None:
    """Alone it is called when its patience since the last turn or the timeout ends, never before the rest."""
    theirs, _, called = patient_and_other
    theirs.send(b"x")
    loop.run_once(1.0)
    theirs.send(b"x")
    assert waited - 0.005 <= waited_seconds(loop, timeout, Rest(0.02, patience, lambda: False)) < waited + 0.04
    assert called == ["patient"] * 2


def test_nobody_else_waits_with_a_patient_one(loop: Loop, patient_and_other: Wires) -> None:
    """Whoever comes in the midst of patience ends it, where the rest is over."""
    theirs, far, called = patient_and_other
    theirs.send(b"x")
    loop.run_once(1.0)
    theirs.send(b"x")
    later = threading.Timer(0.05, far.send, [b"y"])
    later.start()
    assert waited_seconds(loop, 1.0, Rest(0.02, 0.9, lambda: False)) < 0.2
    later.join()
    assert sorted(called[1:]) == ["other", "patient"]


def test_enough_ends_patience(loop: Loop, patient_and_other: Wires) -> None:
    """A ring that fills is not kept waiting."""
    theirs, _, called = patient_and_other
    theirs.send(b"x")
    loop.run_once(1.0)
    theirs.send(b"x")
    assert waited_seconds(loop, 1.0, Rest(0.5, 0.9, lambda: True)) < 0.1
    assert called == ["patient"] * 2


def test_a_rest_wakes_for_nothing_and_misses_nobody(loop: Loop, patient_and_other: Wires) -> None:
    """Who is ready is called after the rest, with whoever came meanwhile; a rest in which nobody comes is one sleep."""
    theirs, far, called = patient_and_other
    asked = 0

    def is_enough() -> bool:
        nonlocal asked
        asked += 1
        return False

    loop.run_once(0.0)
    theirs.send(b"x")
    loop.run_once(1.0, Rest(0.05, 0.0, is_enough))
    assert (called, asked) == (["patient"], 2)
    theirs.send(b"x")
    later = threading.Timer(0.02, far.send, [b"y"])
    later.start()
    loop.run_once(1.0, Rest(0.05, 0.0, is_enough))
    later.join()
    assert sorted(called[1:]) == ["other", "patient"]


@pytest.mark.parametrize("gap_seconds, is_crowd", [(0.02, False), (0.0005, True)])
def test_only_a_crowd_is_waited_for_in_steps(
    loop: Loop, patient_and_other: Wires, monkeypatch: pytest.MonkeyPatch, gap_seconds: float, is_crowd: bool
) -> None:
    """Who comes alone wakes the loop once; those that come one right after the other wake it every second time."""
    theirs, _, called = patient_and_other
    slept: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr("guestagent.loop.time.sleep", lambda seconds: (slept.append(seconds), sleep(seconds)))

    def write() -> None:
        for _ in range(4):
            threading.Event().wait(gap_seconds)
            theirs.send(b"x")

    loop.run_once(0.0)
    writer = threading.Thread(target=write)
    writer.start()
    loop.run_once(1.0, Rest(0.02, 0.15, lambda: False))
    writer.join()
    assert called == ["patient"]
    assert bool(slept) == is_crowd


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
