"""Status sockets: who asks gets an answer, and what killed processes left is removed."""

import os
import select
import socket
import threading
import time
from pathlib import Path

import pytest

from guestagent.errors import HostError, RunError
from guestagent.observe import status
from guestagent.observe.status import StatusSocket, ask, everything

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


@pytest.mark.parametrize("size", [0, 1000, 300_000, 5_000_000])
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
def test_a_broken_answer_is_silence(runtime: Path, data: bytes) -> None:
    """Who says no JSON object, or half of one, is there all the same."""
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
    assert everything() == ({}, ["agent-1"])
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
