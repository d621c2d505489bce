"""Logs: repeats are damped, journald reads priorities."""

import logging
from collections.abc import Iterator

import pytest

from guestagent.observe import logs

log = logging.getLogger("guestagent.test")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The damper's clock, and the logs of a daemon; afterwards they are as before."""
    root = logging.getLogger("guestagent")
    before = root.handlers[:], root.level, root.propagate
    now = [1000.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    yield now
    root.handlers[:], root.propagate = before[0], before[2]
    root.setLevel(before[1])


def test_repeats_are_damped(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """The same sentence is said once in thirty seconds; the next one tells how often it was held back."""
    logs.start()
    for _ in range(100):
        log.warning("disk %s", "full")
        log.warning("another")
    clock[0] += 31
    log.warning("disk %s", "full")
    said = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]

    assert ["WARNING disk full", "WARNING another", "WARNING disk full (99 times more in 31 s)"] == said


def test_many_sentences_are_forgotten(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A peer that makes each sentence new costs bounded memory."""
    logs.start()
    for number in range(2000):
        log.info("peer %d", number)
    damper = logging.getLogger("guestagent").handlers[0].filters[0]

    assert len(damper._said) <= 256  # type: ignore[union-attr]
    assert 2000 == len(capsys.readouterr().err.splitlines())


def test_journald_reads_priorities(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under systemd each line begins with its syslog priority, and none is ever broken in two."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    logs.start(logging.DEBUG)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "line\nbreak %d", level)

    assert ["<7>", "<6>", "<4>", "<3>", "<2>"] == [line[:3] for line in capsys.readouterr().err.splitlines()]
