"""`guestagent demo` shows a capture whose ledger closes, and leaves nothing else behind, however it ends."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import guestagent
from guestagent.collector.summary import Summary
from guestagent.demo.page import verdict
from guestagent.demo.stage import Outcome

PATHS = os.pathsep.join(str(Path(module.__file__ or "").parents[1]) for module in (guestagent, psutil))
"""For another user's interpreter, which does not see ours."""
DEMO = ("-m", "guestagent", "demo", "--seconds")
MOST_COLUMNS = 100
END_SECONDS = 60.0
SETTLE_SECONDS = 5.0
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
NO_NAMESPACES = (
    *("unshare", "--user", "--map-root-user", "sh", "-c"),
    'echo 1 > /proc/sys/user/max_user_namespaces && exec unshare --user --map-user=1000 "$0" "$@"',
)
"""A user namespace in which a plain user gets no other."""
INTERRUPT_IGNORED = ("sh", "-c", 'trap \'\' INT; exec "$0" "$@"')
"""How a shell starts what stands before `&`."""

Running = tuple["subprocess.Popen[str]", list[psutil.Process], set[str]]

pytestmark = pytest.mark.usefixtures("lab")


def start(cwd: Path | str, *argv: str, scratch: Path | None = None) -> "subprocess.Popen[str]":
    """A demo in a directory of its own, with its own place for temporary files."""
    scratch = scratch or Path(cwd, "tmp")
    scratch.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": PATHS, "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, output and errors."""
    with process:
        output, errors = process.communicate(timeout=END_SECONDS)
    return process.returncode, output, errors


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold soon."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that waits only for its new parent to notice does not."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def networks(pids: Iterable[int] | None = None) -> set[str]:
    """The network namespaces in which these processes live, or all."""
    found = set()
    for pid in psutil.pids() if pids is None else pids:
        with suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
    return found


def mounts_and_links() -> list[str]:
    """What else of a demo could show on the machine."""
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    return [links, Path("/proc/self/mounts").read_text()]


def packets_in(path: Path) -> tuple[int, int]:
    """How many packets capinfos and tshark find."""
    for tool in ("capinfos", "tshark"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    told = subprocess.run(["capinfos", "-M", "-c", str(path)], capture_output=True, text=True, check=True).stdout
    seen = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", "-e", "frame.number"], capture_output=True, text=True, check=True
    )
    assert "cut short" not in seen.stderr
    return int(told.split()[-1].replace(",", "")), len(seen.stdout.splitlines())


def shown_capture(output: str) -> Path:
    """The path in the command that the demo says."""
    found = re.search(r"tshark -r (\S+)$", output, re.MULTILINE)
    assert found, output
    return Path(found[1])


def captured(output: str) -> int:
    """The count in the sentence that says that the ledger closes."""
    found = re.search(r"The ledger closes to the record: ([\d,]+) captured = ", output)
    assert found, output
    return int(found[1].replace(",", ""))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A demo in the middle of its traffic, its processes, and the networks that they live in."""
    process = start(tmp_path, *INTERRUPT_IGNORED, sys.executable, *DEMO, "30")
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("traffic"):
        assert line, "the demo ended early"
    assert eventually(lambda: len(psutil.Process(process.pid).children()) >= 4)
    family = psutil.Process(process.pid).children(recursive=True)
    theirs = networks(one.pid for one in family) - networks([os.getpid()])
    assert len(theirs) == 2
    yield process, family, theirs
    process.kill()
    finish(process)


def test_the_demo_shows_a_capture_whose_ledger_closes(tmp_path: Path) -> None:
    """Exit 0; a page of the ledger, protocols and conversations; tshark and capinfos find what the ledger says."""
    before = mounts_and_links()
    code, output, errors = finish(start(tmp_path, sys.executable, *DEMO, "2"))

    assert code == 0, errors
    assert re.search(r"^Ledger", output, re.MULTILINE)
    for words in (r"TCP +HTTP", r"UDP +DNS", r"TCP +bulk stream", r"ICMP +ping", r"ICMPv6 +ping", "ARP"):
        assert re.search(rf"^  {words} ", output, re.MULTILINE), f"no {words} in:\n{output}"
    assert {"10.9.0.2", "fd00:9::2"} <= set(output.split())
    assert re.search(r"^Agent CPU +\d+\.\d % of one core", output, re.MULTILINE)
    assert max(map(len, output.splitlines())) <= MOST_COLUMNS
    assert packets_in(tmp_path / shown_capture(output)) == (captured(output),) * 2
    assert all(line and len(line) <= MOST_COLUMNS for line in errors.splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captures", "tmp"]
    assert not list((tmp_path / "tmp").iterdir())
    assert mounts_and_links() == before


def test_ctrl_c_leaves_nothing(tmp_path: Path, running: Running) -> None:
    """One sentence and exit 130; no process, network, directory or half a capture stays, also from behind a `&`."""
    process, family, theirs = running
    process.send_signal(signal.SIGINT)
    code, output, errors = finish(process)

    assert (code, output) == (130, "")
    assert errors.splitlines() == [
        "guestagent: the demo was interrupted; hosts, processes and its capture are gone",
    ]
    assert eventually(lambda: not any(map(is_alive, family)))
    assert eventually(lambda: not networks() & theirs)
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_kill_9_leaves_only_the_capture(tmp_path: Path, running: Running) -> None:
    """No process, network or temporary file stays; the capture of that moment does, as files do."""
    process, family, theirs = running
    process.kill()
    process.wait()

    assert eventually(lambda: not any(map(is_alive, family)))
    assert eventually(lambda: not networks() & theirs)
    assert not list((tmp_path / "tmp").iterdir())


def test_an_agent_that_dies_is_named(
    running: Running,
) -> None:
    """The demo does not wait for a dead agent: exit 1, and a sentence that names it and its log."""
    process, family, _ = running
    next(one for one in family if "run" in one.cmdline()).kill()
    code, output, errors = finish(process)

    assert (code, output) == (1, "")
    assert re.fullmatch(r"guestagent: the agent ended by itself \(/\S+agent\.log\): .+\n", errors)


def test_works_without_root() -> None:
    """A user without any privilege, in a directory of root's, sees the same; or one sentence and exit 3."""
    python = next(
        filter(usable_by_nobody, filter(None, (sys.executable, shutil.which("python3", path=os.defpath)))), ""
    )
    if not python:
        pytest.skip("cannot run a Python >= 3.11 as another user here")
    with tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o777)
        code, output, errors = finish(start("/", *NOBODY, python, *DEMO, "1", scratch=Path(scratch)))
        if code == 3:
            assert re.fullmatch(r"guestagent: .*run with sudo\n", errors)
            pytest.skip("this kernel gives users no namespaces")
        assert code == 0, errors
        assert packets_in(Path("/") / shown_capture(output)) == (captured(output),) * 2


def usable_by_nobody(python: str) -> bool:
    """Whether that user can run the interpreter, also from a process of its own, with our package."""
    probe = [*NOBODY, "sh", "-c", f"{python} -c 'import guestagent.agent'"]
    environment = {**os.environ, "PYTHONPATH": PATHS}
    return subprocess.run(probe, capture_output=True, check=False, cwd="/", env=environment).returncode == 0


def test_without_namespaces_it_says_so(tmp_path: Path) -> None:
    """Where the kernel refuses, one sentence and exit 3; no directory was made."""
    code, output, errors = finish(start(tmp_path, *NO_NAMESPACES, sys.executable, *DEMO, "1"))
    if "max_user_namespaces" in errors or errors.startswith("unshare:"):
        pytest.skip(f"this kernel does not let us forbid namespaces: {errors}")

    assert (code, output) == (3, "")
    assert re.fullmatch(r"guestagent: this kernel gives user 1000 no namespace .*: run with sudo\n", errors)
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "601"])
def test_seconds_are_bounded(tmp_path: Path, seconds: str) -> None:
    """A time that makes no sense is exit 2."""
    code, _, errors = finish(start(tmp_path, sys.executable, *DEMO[:-1], f"--seconds={seconds}"))
    assert code == 2
    assert errors.startswith("guestagent: --seconds: ")


LEDGER = {"captured": 12, "delivered": 10, "capped": 0, "dropped_by_ring": 2, "unsupported_gso": 0, "lost_on_link": 0}
CLOSED = Outcome(
    Path("x.pcapng"), 1.0, {}, {**LEDGER, "in_flight": 0}, {"written": 10, "gaps": 0}, 0.1, Summary(10, 999, (), ())
)


def test_the_verdict_names_what_was_dropped() -> None:
    """A counted drop does not open the ledger."""
    assert "closes to the record: 12 captured = 10 delivered + 2 dropped by ring;" in verdict(CLOSED)


@pytest.mark.parametrize(
    "broken, words",
    [
        (replace(CLOSED, agent={**CLOSED.agent, "in_flight": 3}), "3 captured and not accounted for"),
        (replace(CLOSED, collector={"written": 9, "gaps": 0}), "1 delivered and not written, -1 written"),
        (replace(CLOSED, summary=Summary(8, 999, (), ())), "2 written and not in the file"),
        (replace(CLOSED, collector={"written": 10, "gaps": 4}), "4 missing in the sequence"),
    ],
)
def test_a_ledger_that_does_not_close_says_where(broken: Outcome, words: str) -> None:
    """Each stage that loses something in silence is named with the number."""
    assert verdict(broken).startswith(f"The ledger does not close: {words}")
