"""A host short of memory, files or file size: refused or done with less, in one sentence, with the right code."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_send
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.hello import encode_agent_hello
from tests.fakes import agent_hello
from tests.lab.rig import COLLECTOR, PORT, Rig, assert_ledger_closes, frames_of, udp_indexes, wait_for

MB = 1 << 20
NOBODY = 65534
GUESTAGENT = [sys.executable, "-m", "guestagent"]
VERBS = {
    "run": ["run", "-i", "eth0", "--to", "dir:captures", "--duration", "0.1"],
    "collect": ["collect", "--listen", "tcp://127.0.0.1:0", "--write", "captures", "--duration", "0.1"],
    "check": ["check", "-i", "eth0", "--to", "dir:captures"],
}

# options of prlimit, words of the sentence; at 6 files and 18 MB it is an import that fails, else the start is refused
REFUSED = {
    "6 files": (["--nofile=6"], ["LimitNOFILE"]),
    "8 files": (["--nofile=8"], ["8 files", "LimitNOFILE"]),
    "16 files": (["--nofile=16"], ["16 files", "LimitNOFILE"]),
    "18 MB": ([f"--as={18 * MB}"], ["LimitAS"]),
    "40 MB": ([f"--as={40 * MB}"], ["LimitAS"]),
    "no file": (["--fsize=0"], ["files of 0 kB", "LimitFSIZE"]),
    "1 MB files": ([f"--fsize={MB}"], ["files of 1049 kB", "LimitFSIZE"]),
}
ENOUGH = {
    "soft limit of 8 files": ["--nofile=8:256"],
    "32 files": ["--nofile=32"],
    "72 MB": [f"--as={72 * MB}"],
    "16 MB files": [f"--fsize={16 * MB}"],
    "no locked memory": ["--memlock=0"],
}
NO_PROC = ("unshare", "--mount", "sh", "-c", 'umount --lazy /proc && exec "$@"', "sh")


def limited(host: Host, limits: list[str], arguments: list[str], where: Path) -> "subprocess.CompletedProcess[str]":
    """Run a verb to its end under limits of prlimit(1)."""
    return began_with(host, ["prlimit", *limits], arguments, where)


def began_with(
    host: Host, prefix: Sequence[str], arguments: list[str], where: Path
) -> "subprocess.CompletedProcess[str]":
    """Run a verb to its end below another command."""
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(where / "run")}
    return host.run([*prefix, *GUESTAGENT, *arguments], check=False, cwd=where, env=environment)


@pytest.mark.parametrize("limit", REFUSED)
def test_too_little_is_refused(pair: tuple[Host, Host], tmp_path: Path, limit: str) -> None:
    """Too few files, too little memory, too small files: every verb says the limit's name once and exits with 3."""
    options, words = REFUSED[limit]
    for verb, arguments in VERBS.items():
        done = limited(pair[0], options, arguments, tmp_path)
        text = done.stderr + done.stdout
        said = [line for line in text.splitlines() if line.startswith(("guestagent: ", "FAIL limits: "))]
        assert (done.returncode, len(said)) == (3, 1), f"{verb}: {text}"
        assert "Traceback" not in text
        for word in words:
            assert word in said[0]


@pytest.mark.parametrize("limit", ENOUGH)
def test_the_least_is_enough(pair: tuple[Host, Host], tmp_path: Path, limit: str) -> None:
    """Where a verb begins under a small limit it also ends well, ring engine included."""
    for verb, arguments in VERBS.items():
        done = limited(pair[0], ENOUGH[limit], arguments, tmp_path)
        text = done.stderr + done.stdout
        assert done.returncode == 0, f"{verb}: {text}"
        assert "portable" not in text
        assert "FAIL" not in text


@pytest.mark.parametrize("verb", ["run", "check"])
def test_without_proc_there_is_one_sentence(pair: tuple[Host, Host], tmp_path: Path, verb: str) -> None:
    """Where /proc is not mounted the agent says what it can't know and what to do, and exits with 3."""
    done = began_with(pair[0], NO_PROC, VERBS[verb], tmp_path)
    text = done.stderr + done.stdout
    said = [line for line in text.splitlines() if line.startswith(("guestagent: ", "FAIL"))]
    assert (done.returncode, len(said)) == (3, 1), text
    assert "(/proc/meminfo: No such file or directory), so no ring can be sized: mount /proc" in said[0]


@pytest.mark.parametrize("more", [[], ["--workers", "2"]])
def test_a_collector_needs_no_proc(pair: tuple[Host, Host], tmp_path: Path, more: list[str]) -> None:
    """Alone or with workers it begins and ends without /proc."""
    done = began_with(pair[0], NO_PROC, [*VERBS["collect"], *more], tmp_path)
    assert (0, False) == (done.returncode, "ERROR" in done.stderr), done.stderr


# free memory in kB, arguments, exit code, words
MEMORY = {
    "next to nothing free": (1000, [], 3, ["free memory", "no room"]),
    "less than the least ring": (30_000, [], 3, ["free memory", "no room"]),
    "less than asked for": (100_000, ["--ring", "8MB"], 2, ["free memory", "at most 5.1 MB", "--ring"]),
    "a small ring": (100_000, [], 0, []),
}


@pytest.mark.root
@pytest.mark.parametrize("case", MEMORY)
def test_the_ring_takes_a_twentieth_of_what_is_free(pair: tuple[Host, Host], tmp_path: Path, case: str) -> None:
    """The default ring is at most 5 % of MemAvailable; no room for the least: exit 3; more asked for: exit 2."""
    free_kb, more, code, words = MEMORY[case]
    vm, _ = pair
    lines = Path("/proc/meminfo").read_text().splitlines()
    told = [f"MemAvailable: {free_kb} kB" if line.startswith("MemAvailable:") else line for line in lines]
    (tmp_path / "meminfo").write_text("\n".join(told) + "\n")
    vm.run(["mount", "--bind", str(tmp_path / "meminfo"), "/proc/meminfo"])  # in the host's own mount namespace
    for verb in ("run", "check"):
        report = ["--report", "ledger.json"] if verb == "run" else []
        done = limited(vm, [], [*VERBS[verb], *more, *report], tmp_path)
        assert done.returncode == code, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        for word in words:
            assert word in done.stderr + done.stdout
    if code == 0:
        assert 0 < json.loads((tmp_path / "ledger.json").read_text())["ring_bytes"] <= free_kb * 1024 // 20


@pytest.mark.root
def test_a_small_control_group_is_told(pair: tuple[Host, Host], tmp_path: Path) -> None:
    """A group with less CPU than the budget and less memory than needed: `run` begins and says both, as `check`."""
    (tmp_path / "cpu.max").write_text("1000 100000\n")
    (tmp_path / "memory.max").write_text(f"{16 * MB}\n")
    pair[0].run(["mount", "--bind", str(tmp_path), "/sys/fs/cgroup"])  # in the host's own mount namespace
    for verb in ("run", "check"):
        done = limited(pair[0], [], VERBS[verb], tmp_path)
        assert done.returncode == 0, done.stderr
        assert "raise CPUQuota or lower --cpu" in done.stderr + done.stdout
        assert "the control group gives 17 MB" in done.stderr + done.stdout


def test_a_ring_fits_the_address_space(pair: tuple[Host, Host], tmp_path: Path) -> None:
    """Under RLIMIT_AS a ring that was asked for and can't be mapped is refused as what it is: exit 2 and the most."""
    done = limited(pair[0], [f"--as={80 * MB}"], [*VERBS["run"], "--ring", "64MB"], tmp_path)
    assert done.returncode == 2, done.stderr
    assert "RLIMIT_AS" in done.stderr
    assert "at most" in done.stderr


def test_files_change_below_the_limit_of_their_size(pair: tuple[Host, Host], tmp_path: Path) -> None:
    """Under RLIMIT_FSIZE captures go on in the next file: no record is missing, no file beyond the limit."""
    vm, _ = pair
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")}
    arguments = ["run", "-i", "eth0", "--to", "dir:captures", "--full", "--agent-id", "me"]
    command = ["prlimit", f"--fsize={16 * MB}", *GUESTAGENT, *arguments]
    process = vm.popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("captures/me/*.pcapng")), "the capture file")
    vm.call(udp_send, "10.9.0.1", 9000, 20_000, 10_000, 1200)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0
    files = sorted(tmp_path.glob("captures/me/*.pcapng"))
    assert len(files) > 2
    assert all(path.stat().st_size < 16 * MB for path in files)
    indexes = [index for path in files for index in udp_indexes(frames_of(path), 9000, 1200)]
    assert sorted(indexes) == list(range(20_000))


def test_a_capture_that_breaks_ends_the_run_with_its_ledger(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A file below `dir:` that can't grow any more: one sentence, exit code 1, and a ledger that closes."""
    vm, _ = pair
    agent = rig.agent(vm, to=f"dir:{rig.captures}")
    vm.call(udp_send, "10.9.0.1", 9000, 1000, 5000, 300)
    wait_for(lambda: sum(path.stat().st_size for path in rig.files()) > 200_000, "a file of some size")
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    vm.call(udp_send, "10.9.0.1", 9000, 1000, 5000, 300)
    ledger = agent.ended(code=1)
    assert "guestagent: the capture can't be written: File too large; it ends here" in agent.log_text()
    assert 0 < ledger["delivered"] < ledger["captured"]
    assert ledger["lost_on_link"] > 0


def crowd(count: int, hold_seconds: float, announced_bytes: int) -> int:
    """Greet the collector so often, each with a frame that never comes; how many connections stood to the end."""
    strangers = []
    for at in range(count):
        hello = agent_hello(agent_id=f"stranger-{at}", run_id=f"{at + 1:032x}")
        stranger = socket.create_connection((COLLECTOR, PORT))
        words = frames.PREFACE + frames.encode_json(Kind.HELLO, encode_agent_hello(hello))
        with suppress(OSError):
            stranger.sendall(words + frames.HEADER.pack(Kind.BLOCK, 0, 0, announced_bytes, 1))
        strangers.append(stranger)
    time.sleep(0.2)
    for stranger in strangers:
        with suppress(OSError):
            stranger.send(b"x")  # room for the frame is made for its first byte
    time.sleep(hold_seconds)
    return sum(stands(stranger) for stranger in strangers)


def stands(connection: socket.socket) -> bool:
    """Was it left open after its answers?"""
    try:
        while connection.recv(1 << 16, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return True
    except ConnectionResetError:
        pass
    return False


def test_a_collector_without_memory_cuts_off_and_lives(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Peers that want more than RLIMIT_AS leaves are cut off one by one; the copy of a good agent stays whole."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm)
    resource.prlimit(collector.pid, resource.RLIMIT_AS, (64 * MB, 64 * MB))
    sender = vm.start(udp_send, "10.9.0.1", 9000, 6000, 3000, 300)
    strangers = peer.start(crowd, 80, 1.0, 1 * MB)
    strangers.result(30)
    sender.result(30)
    ledger, report = agent.stop(), collector.stop()
    assert "out of memory" in collector.log_text()
    assert_ledger_closes(ledger, report)
    assert sorted(udp_indexes(rig.frames(), 9000, 300)) == list(range(6000))


def test_a_name_without_a_thread_to_ask_for_it(tmp_path: Path) -> None:
    """Where RLIMIT_NPROC allows no thread the resolver answers with that reason instead of ending the agent."""
    code = (
        "import select; from guestagent.links.resolve import Resolver; one = Resolver('localhost', 1); one.start();"
        "assert select.select([one], [], [], 5)[0]; one.collect(); print(one.addresses, one.error)"
    )
    drop = ["setpriv", "--reuid", str(NOBODY), "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(
        ["prlimit", "--nproc=0", *drop, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] can't start new thread\n"


def test_a_collector_with_few_files_takes_fewer_agents(rig: Rig, pair: tuple[Host, Host]) -> None:
    """With 40 files the collector takes four agents, refuses more, does not spin, and still writes for the four."""
    vm, peer = pair
    command = ["prlimit", "--nofile=40", *GUESTAGENT, "collect", "--listen", f"tcp://{COLLECTOR}:{PORT}"]
    report = rig.directory / "collector.json"
    process = peer.popen(
        [*command, "--write", str(rig.captures), "--report", str(report)],
        env=rig.environment,
        stderr=subprocess.DEVNULL,
    )
    peer.wait_for_port(PORT)
    agent = rig.agent(vm)
    before = time.monotonic(), cpu_seconds(process.pid)
    strangers = peer.start(crowd, 30, 1.5, 60)
    vm.call(udp_send, "10.9.0.1", 9000, 1000, 1000, 300)
    assert strangers.result(20) == 3
    spent = (cpu_seconds(process.pid) - before[1]) / (time.monotonic() - before[0])
    assert spent < 0.5
    ledger = agent.stop()
    process.terminate()
    assert process.wait(5) == 0
    assert_ledger_closes(ledger, json.loads(report.read_text()))
    assert sorted(udp_indexes(rig.frames(), 9000, 300)) == list(range(1000))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat behind the name, from its third field on (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
