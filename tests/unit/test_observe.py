"""What people and scripts see: damped logs, the status socket, whole report files, numbers that read well."""

import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.errors import ConfigError, HostError, RunError
from guestagent.model import InterfaceLedger
from guestagent.observe import logs, reports, status
from guestagent.observe.clock import LEAST_STEP_NS, ClockWatch
from guestagent.observe.show import show_status
from guestagent.observe.status import Found, StatusSocket, ask, everything
from guestagent.observe.words import RateLine, ledger_sentence, scaled

log = logging.getLogger("guestagent.test")
SECOND_NS = 1_000_000_000


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


# -- status ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/run:/ignored")
    return tmp_path / "run"


def served(one: StatusSocket, askers: int = 1) -> threading.Thread:
    """Answer so many askers in a thread."""

    def serve() -> None:
        for _ in range(askers):
            while not select.select([one], [], [], 1.0)[0]:
                pass
            one.answer(0)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("size", [0, 1000, 300_000])
def test_a_snapshot_is_asked_for(runtime: Path, size: int) -> None:
    """Whoever connects gets the whole snapshot as one JSON object, whatever its size."""
    snapshot = {"role": "agent", "text": "x" * size}
    one = StatusSocket("agent", lambda: snapshot)
    thread = served(one)

    assert snapshot == ask(one.path)
    thread.join(5)
    assert (0o750, 0o660) == (runtime.stat().st_mode & 0o777, one.path.stat().st_mode & 0o777)
    one.close()
    assert not one.path.exists()


def test_an_asker_that_does_not_read_costs_no_time(runtime: Path) -> None:
    """answer never blocks: an asker that leaves or does not read loses its answer."""
    one = StatusSocket("agent", lambda: {"text": "x" * 3_000_000})
    for leaves in (True, False):
        asker = socket.socket(socket.AF_UNIX)
        asker.connect(str(one.path))
        if leaves:
            asker.close()
        one.answer(0)
        asker.close()
    one.answer(0)
    one.close()


def test_a_start_removes_what_killed_processes_left(runtime: Path) -> None:
    """Sockets that nobody listens on are gone after the next start, those of living processes and other files stay."""
    runtime.mkdir(parents=True, exist_ok=True)
    for name in ("agent-1.sock", "collector-1.worker", "agent-1.sock.new", "agent-2.sock.new"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(runtime / name))
    long_ago = time.time() - status.NAMELESS_SECONDS - 1
    os.utime(runtime / "agent-1.sock.new", (long_ago, long_ago))
    (runtime / "notes").write_text("of somebody else")
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(runtime / "collector-2.sock"))
        alive.listen()
        one = StatusSocket("agent", dict)

        left = {"collector-2.sock", "agent-2.sock.new", "notes"}
        assert {one.path.name, *left} == {path.name for path in runtime.iterdir()}, "agent-2 may be about to start"
        one.close()


def test_a_dead_socket_is_removed(runtime: Path) -> None:
    """A socket that a killed process left behind is no answer, and is cleaned away."""
    runtime.mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(runtime / "agent-1.sock"))
    left.close()
    (runtime / "agent-2.sock").write_text("no socket")

    assert ({}, []) == everything()
    assert not (runtime / "agent-1.sock").exists()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
def test_a_broken_answer_is_none(runtime: Path, data: bytes) -> None:
    """What is no JSON object is treated as no answer."""
    runtime.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(runtime / "agent-1.sock"))
    listener.listen()

    def serve() -> None:
        asker, _ = listener.accept()
        asker.sendall(data)
        asker.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ask(runtime / "agent-1.sock") is None
    thread.join(5)
    listener.close()


def test_who_does_not_answer_is_there_all_the_same(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stands still is silent, not absent: while it takes askers in, and once its queue is full."""
    monkeypatch.setattr(status, "ASK_SECONDS", 0.01)
    runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime / "agent-1.sock"))
        listener.listen(1)
        for _ in range(4):
            assert {} == ask(runtime / "agent-1.sock")
            assert ({}, ["agent-1"]) == everything()
    assert ({}, []) == everything()


def test_a_long_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that a UNIX socket can't have is refused with what to set; nobody is to try it again."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/{'x' * 100}")
    with pytest.raises(HostError, match=r"no status socket at .*: that may have 107 bytes, so set RUNTIME"):
        StatusSocket("agent", dict)


def test_a_runtime_directory_that_can_not_be_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its directory the status socket says where and why."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/file/run")
    with pytest.raises(RunError, match=r"no status socket at .*/file/run/agent-.*: Not a directory"):
        StatusSocket("agent", dict)


def test_whoever_asks_too_early_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between bind and listen a socket refuses; who asks then must not take its file for one that was left behind."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    real = status.socket.socket.listen

    class Early(socket.socket):
        def listen(self, backlog: int = 8) -> None:
            for path in tmp_path.iterdir():
                assert ask(tmp_path / path.name.removesuffix(".new")) is None
            real(self, backlog)

    with monkeypatch.context() as early:
        early.setattr(status.socket, "socket", Early)
        one = StatusSocket("agent", lambda: {"x": 1})
    one._socket.setblocking(True)
    server = threading.Thread(target=one.answer, args=(0,))
    server.start()
    assert {"x": 1} == ask(one.path)
    server.join()
    assert [one.path] == list(tmp_path.iterdir())
    one.close()


def test_where_sockets_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """/run/guestagent for root, below XDG_RUNTIME_DIR for others, what systemd names before both."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setattr(status.os, "geteuid", lambda: 0)
    assert Path("/run/guestagent") == status.directory()
    monkeypatch.setattr(status.os, "geteuid", lambda: 7)
    assert Path("/run/user/7/guestagent") == status.directory()
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/a:/run/b")
    assert Path("/run/a") == status.directory()


AGENT: dict[str, Any] = {
    "role": "agent",
    "agent_id": "vm-1",
    "engine": "ring",
    "engine_reason": "the kernel offers it",
    "link": {"text": "connected to collector c"},
    "interfaces": {"eth0": InterfaceLedger(captured=1234, delivered=1200, dropped_by_ring=30).as_dict()},
    "limits": {"slice": "full", "filter": "tcp", "keep": 1.0, "reduced": True, "reason": "why", "since_ns": 10**9},
    "ring_bytes": 64 << 20,
    "ring_held_fraction": 0.25,
    "cpu_seconds": 1.5,
}
END = {"gap_from": "2023-11-14T22:13:20.123Z", "gap_until": "2023-11-14T22:13:25.123Z"}
SHED = {"from_ns": 10**9, "until_ns": 3 * 10**9, "reason": "a full copy costs more"}
COLLECTOR: dict[str, Any] = {
    "role": "collector",
    "collector_id": "c",
    "connections": 1,
    "refused": 2,
    "workers": [
        {"pid": 7, "connections": 1, "handed_over": 1234, "cpu_seconds": 0.5, "restarts": 2},
        {"pid": 0, "connections": 0, "handed_over": 0, "cpu_seconds": 0, "restarts": 0},
    ],
    "agents": {
        "vm-1": {"received": 1000, "written": 990, "gaps": 0, "duplicates": 3, "unclean_ends": [END], "reduced": [SHED]}
    },
}


def test_status_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`status` tells ledger, link, limits and gaps in sentences; 0 where something runs, else 1."""
    monkeypatch.setattr(
        "guestagent.observe.show.everything", lambda: Found({"agent-1": AGENT, "collector-2": COLLECTOR}, [])
    )
    assert 0 == show_status(as_json=False)
    said = capsys.readouterr().out
    for text in (
        "eth0: captured 1,234, delivered 1,200, dropped by ring 30, in flight 4",
        "link: connected to collector c",
        "limits: reduced since 1970-01-01T00:00:01Z: why, filter 'tcp'",
        "vm-1: reduced from 1970-01-01T00:00:01Z until 1970-01-01T00:00:03Z: a full copy costs more",
        "ring: 64 MB, 25% waits for the collector",
        "vm-1: received 1,000, written 990, gaps 0, duplicates 3",
        "worker 0: process 7, 1 connected, 1,234 handed over, 0.5 s of CPU, started again 2 times",
        "worker 1: gone, it starts again, 0 handed over",
        "vm-1: nothing is held from 2023-11-14T22:13:20.123Z until 2023-11-14T22:13:25.123Z",
    ):
        assert text in said
    monkeypatch.setattr("guestagent.observe.show.everything", lambda: Found({"agent-1": {**AGENT, "link": None}}, []))
    assert 0 == show_status(as_json=False)
    monkeypatch.setattr("guestagent.observe.show.everything", lambda: Found({}, []))
    assert 1 == show_status(as_json=False)
    assert "nothing runs here" in capsys.readouterr().out
    monkeypatch.setattr("guestagent.observe.show.everything", lambda: Found({}, ["agent-1"]))
    assert 1 == show_status(as_json=False)
    assert "agent-1\n  runs, but did not answer within 2 s: stopped, or very busy\n" == capsys.readouterr().out


def test_status_for_scripts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`status --json` is one object with its schema, also where nothing runs."""
    monkeypatch.setattr("guestagent.observe.show.everything", lambda: Found({"agent-1": AGENT}, ["agent-2"]))
    assert 0 == show_status(as_json=True)
    told = {"schema": "guestagent.status/1", "running": {"agent-1": AGENT}, "silent": ["agent-2"]}
    assert told == json.loads(capsys.readouterr().out)


# -- reports and words -----------------------------------------------------------------------------------------------


def test_a_report_is_whole_or_absent(tmp_path: Path) -> None:
    """A report replaces the one before in one step; nothing else is left in its directory."""
    path = tmp_path / "report.json"
    for number in (1, 2):
        reports.check_writable(str(path))
        reports.write(str(path), {"number": number})
        assert {"number": number} == json.loads(path.read_text())
    assert [path] == list(tmp_path.iterdir())
    with pytest.raises(RunError, match="could not be written: No such file"):
        reports.write(str(tmp_path / "none" / "report.json"), {})


def test_a_report_that_can_not_be_is_refused_at_start(tmp_path: Path) -> None:
    """A directory that is missing, or stands where the file should, is told before the run and not after it."""
    reports.check_writable("")
    for path in (tmp_path / "none" / "report.json", tmp_path):
        with pytest.raises(ConfigError, match=r"^--report: .*(choose another path|name a file)$"):
            reports.check_writable(str(path))


SCALED = {
    0: "0 B",
    7: "7 B",
    999: "999 B",
    999.6: "1.00 kB",
    1000: "1.00 kB",
    12345: "12.3 kB",
    1234567: "1.23 MB",
    5e15: "5000 TB",
}


@pytest.mark.parametrize("value, text", SCALED.items())
def test_numbers_read_well(value: float, text: str) -> None:
    """Three digits and a prefix."""
    assert text == scaled(value, "B")


@given(st.floats(0, 9e14))
def test_three_digits_at_most(value: float) -> None:
    """Any number below a thousand tera takes four characters at most, apart from its unit."""
    assert len(scaled(value, "").split(" ")[0]) <= 4


def test_losses_are_named_only_where_there_are_some() -> None:
    """The ledger in one line begins with what went well."""
    assert "captured 5, delivered 5" == ledger_sentence(InterfaceLedger(captured=5, delivered=5).as_dict())
    lossy = InterfaceLedger(captured=10, delivered=1, capped=2, unsupported_gso=3, lost_on_link=4)
    assert "captured 10, delivered 1, capped 2, unsupported gso 3, lost on link 4" == ledger_sentence(lossy.as_dict())


def test_rates_are_those_since_the_last_look() -> None:
    """The live line divides by the time that passed, and never by nothing."""
    line = RateLine()
    line.line(10.0, InterfaceLedger(), 0.0, "link")
    text = line.line(12.0, InterfaceLedger(captured=2000, delivered_bytes=250_000, dropped_by_ring=7), 0.5, "link")
    assert text.startswith("1.00 kpackets/s  1.00 Mbit/s  lost 7  ring 50%  cpu ")
    assert line.line(12.0, InterfaceLedger(captured=2000), 0.5, "link").startswith("0 packets/s")


def test_a_clock_that_is_set_is_told_with_its_step() -> None:
    """A step either way is told once; time that passes, and slewing, are not."""
    watch = ClockWatch()
    looks = [(10, 5), (11, 6), (86_411, 7), (86_412, 8), (12, 9)]
    told = [watch.look(real * SECOND_NS, since * SECOND_NS) for real, since in looks]

    assert [bool(text) for text in told] == [False, False, True, False, True]
    assert "+86399.0 s" in told[2]
    assert "-86401.0 s" in told[4]
    assert not watch.look(13 * SECOND_NS + LEAST_STEP_NS - 1, 10 * SECOND_NS)
