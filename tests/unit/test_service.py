"""What a service needs: sd_notify, JSON logs, files that nobody else may write, units that give little away."""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestagent.config import load_collect, load_run
from guestagent.errors import ConfigError
from guestagent.observe import logs
from guestagent.observe.notify import Notifier
from guestagent.trust import refuse_writable
from tests.units import UNITS, unit

EXPOSURE = {"guestagent": 2.0, "guestagent-collector": 2.0, "guestagent-tap-collector": 2.5}
"""The most that `systemd-analyze security` may say of each."""

# -- sd_notify -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and what it puts into NOTIFY_SOCKET."""
    given = str(tmp_path / "notify") if request.param == "path" else f"@guestagent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(given.replace("@", "\0", 1) if request.param == "abstract" else given)
        one.settimeout(2)
        yield one, given


def test_the_manager_hears_each_step(manager: tuple[socket.socket, str]) -> None:
    """Ready, status (when it changes) with the watchdog, reload with its time, ready again, stopping."""
    heard, given = manager
    one = Notifier({"NOTIFY_SOCKET": given, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())})
    before = time.monotonic_ns() // 1000
    one.ready()
    one.beat("connected")
    one.beat("connected")
    one.reloading()
    one.ready()
    one.stopping()
    one.close()
    said = [heard.recv(1000).decode() for _ in range(6)]
    match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", said[3])

    assert ["READY=1", "STATUS=connected\nWATCHDOG=1", "WATCHDOG=1"] == said[:3]
    assert match
    assert before <= int(match[1]) <= time.monotonic_ns() // 1000
    assert ["READY=1", "STOPPING=1"] == said[4:]


@pytest.mark.parametrize("watchdog", [{}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}], ids=["none", "of-another"])
def test_without_a_watchdog_only_status_is_said(manager: tuple[socket.socket, str], watchdog: dict[str, str]) -> None:
    """No WATCHDOG=1 where the unit has none, or where it is meant for another process."""
    heard, given = manager
    one = Notifier({"NOTIFY_SOCKET": given, **watchdog})
    for status in ("a", "a", "b"):
        one.beat(status)
    one.close()

    assert ["STATUS=a", "STATUS=b"] == [heard.recv(1000).decode() for _ in range(2)]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}], ids=["unset", "gone"])
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    """Started by hand, or with a manager that is gone, every call is harmless."""
    one = Notifier(environment)
    one.ready()
    one.beat("x")
    one.reloading()
    one.stopping()
    one.close()
    one.close()


# -- logs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_journal", [False, True])
def test_json_lines(in_journal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line is one JSON object with time, level, logger and message, damped as text is; journald's prefix stays."""
    root = logging.getLogger("guestagent")
    before = root.handlers[:], root.level, root.propagate
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if in_journal:
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    logs.start(as_json=True)
    try:
        for _ in range(3):
            logging.getLogger("guestagent.test").warning("disk %r\nfull \x1b[31m ü", "/var")
    finally:
        root.handlers[:], root.propagate = before[0], before[2]
        root.setLevel(before[1])
    (line,) = capsys.readouterr().err.splitlines()
    prefix, found = line[: line.index("{")], json.loads(line[line.index("{") :])

    assert ("<4>" if in_journal else "") == prefix
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert {"level": "warning", "logger": "guestagent.test", "message": "disk '/var'\nfull \x1b[31m ü"} == found


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o660, 0o606, 0o666, 0o622])
def test_a_config_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever can write the config decides where copies go: the sentence says how to take that away."""
    path = tmp_path / "agent.toml"
    path.write_text("keep = 0.5\n")
    path.chmod(mode)
    for load in (load_run, load_collect):
        with pytest.raises(ConfigError, match=rf"^{path} can be written by others .*: chmod go-w {path}$"):
            load(str(path), {})
    path.chmod(0o644)

    assert 0.5 == load_run(str(path), {}).keep


@pytest.mark.root
def test_a_config_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a plain user can't steer a root process, but that of the user who called sudo may."""
    path = tmp_path / "agent.toml"
    path.write_text("keep = 0.5\n")
    os.chown(path, 4711, 0)
    monkeypatch.delenv("SUDO_UID", raising=False)
    with pytest.raises(ConfigError, match="belongs to user 4711"):
        load_run(str(path), {})
    with pytest.raises(ConfigError, match="belongs to user 4711"):
        refuse_writable(str(path))
    monkeypatch.setenv("SUDO_UID", "4711")

    assert 0.5 == load_run(str(path), {}).keep


def test_a_pipe_is_the_callers_own() -> None:
    """`-c <(...)` works: a pipe has no one else at its end."""
    read, write = os.pipe()
    os.write(write, b"keep = 0.25\n")
    os.close(write)

    assert 0.25 == load_run(f"/dev/fd/{read}", {}).keep
    os.close(read)


# -- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, most", EXPOSURE.items())
def test_exposure(name: str, most: float) -> None:
    """systemd's own rating of the unit stays below what we promise."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / f"{name}.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)

    assert found, done.stdout + done.stderr
    assert float(found[1]) <= most
    assert not re.findall(r"Unknown|Failed to parse|ignoring", done.stderr)


def test_the_agent_has_one_capability_and_backstops() -> None:
    """CAP_NET_RAW alone, a user of its own, and the bounds that hold when the agent's own budgets would fail."""
    agent = unit("guestagent")

    assert agent["CapabilityBoundingSet"] == agent["AmbientCapabilities"] == ["CAP_NET_RAW"]
    assert [["guestagent"], ["100%"], ["96M"], ["10"]] == [
        agent[key] for key in ("User", "CPUQuota", "MemoryMax", "Nice")
    ]
    assert agent["CPUWeight"] == [str(round(100 * 110 / 1024))]  # nice 10 in sched_prio_to_weight; never "idle"
    assert unit("guestagent-collector")["CapabilityBoundingSet"] == [""]


@pytest.mark.parametrize("name", EXPOSURE)
def test_units_start_verbs_that_exist(name: str) -> None:
    """The command line of each unit is one that our parser takes."""
    from guestagent.cli import build_parser

    (command,) = unit(name)["ExecStart"]
    flags = vars(build_parser().parse_args(command.split()[1:]))

    assert flags["verb"] in ("run", "collect")
    assert flags["config"].startswith("/etc/guestagent/")
