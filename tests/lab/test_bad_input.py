"""Bad input and bad places: one sentence each, the right exit code, no traceback, other agents unaffected."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guestagent.capture.block import BlockWriter
from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_send, udp_sink
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from tests.lab.rig import Rig, assert_ledger_closes, assert_one_sentence, udp_indexes, wait_for

NOBODY = 65534

# arguments, exit code, words of the sentence
WRONG = {
    "unknown interface": (["run", "-i", "eth7"], 2, ["eth7", "eth0"]),
    "glob of nothing": (["run", "-i", "wlan*"], 2, ["wlan*"]),
    "bad filter": (["run", "-i", "eth0", "--filter", "port eighty and"], 2, ["port eighty and", "unknown port"]),
    "bad scheme": (["run", "-i", "eth0", "--to", "http://10.9.0.1"], 2, ["http://10.9.0.1", "tcp://HOST"]),
    "bad port": (["run", "-i", "eth0", "--to", "tcp://10.9.0.1:99999"], 2, ["99999"]),
    "no host": (["run", "-i", "eth0", "--to", "tcp://"], 2, ["tcp://"]),
    "bad slice": (["run", "-i", "eth0", "--slice", "7"], 2, ["--slice", "14"]),
    "ring too big": (["run", "-i", "eth0", "--ring", "900GB"], 2, ["free memory", "--ring"]),
    "ring too small": (["run", "-i", "eth0", "--ring", "100kB"], 2, ["too small"]),
    "bad engine": (["run", "-i", "eth0", "--engine", "warp"], 2, ["warp", "portable"]),
    "unwritable captures": (["run", "-i", "eth0", "--to", "dir:/proc/nowhere"], 2, ["/proc/nowhere"]),
    "unwritable report": (["run", "-i", "eth0", "--report", "/proc/nowhere/x.json"], 2, ["--report"]),
    "unknown flag": (["run", "--turbo"], 2, ["--turbo"]),
    "unknown verb": (["fly"], 2, ["fly"]),
    "no verb": ([], 2, ["VERB"]),
    "missing config": (["run", "-c", "/nowhere.toml"], 2, ["/nowhere.toml"]),
    "no listener": (["collect", "--write", "x"], 2, ["--listen"]),
    "not our address": (["collect", "--listen", "tcp://192.0.2.1:4795"], 2, ["192.0.2.1"]),
    "foreign file": (["collect", "--listen", "tcp://127.0.0.1:0", "--write", "foreign.pcapng"], 2, ["foreign.pcapng"]),
    "unwritable directory": (["collect", "--listen", "tcp://127.0.0.1:0", "--write", "/proc/x"], 2, ["/proc/x"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_word_gets_one_sentence(pair: tuple[Host, Host], tmp_path: Path, case: str) -> None:
    """A wrong flag, name or path: exit 2 and one sentence that names it and says what to do."""
    arguments, code, words = WRONG[case]
    (tmp_path / "foreign.pcapng").write_bytes(b"not ours at all, and not empty")
    done = pair[0].run([sys.executable, "-m", "guestagent", *arguments], check=False, cwd=tmp_path)
    assert_one_sentence(done, code, words)
    assert (tmp_path / "foreign.pcapng").read_bytes() == b"not ours at all, and not empty"


def test_check_exits_with_the_code_of_run(pair: tuple[Host, Host], tmp_path: Path) -> None:
    """`check` says each step and exits 0 for what would run, with run's code for what would not."""
    command = [sys.executable, "-m", "guestagent", "check", "-i"]
    good = pair[0].run([*command, "eth0", "--to", "tcp://10.9.0.1"], check=False, cwd=tmp_path)
    bad = pair[0].run([*command, "eth9"], check=False, cwd=tmp_path)
    assert (0, 2) == (good.returncode, bad.returncode), good.stdout + bad.stdout
    assert "FAIL" not in good.stdout
    assert "run would wait for it" in good.stdout
    assert "FAIL capture: no interface 'eth9'" in bad.stdout


@pytest.mark.root
@pytest.mark.parametrize("verb", ["run", "check"])
def test_without_privilege_one_sentence_names_the_capability(pair: tuple[Host, Host], verb: str) -> None:
    """Without CAP_NET_RAW: exit 3 and the capability's name."""
    drop = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    done = pair[0].run(
        [*drop, sys.executable, "-m", "guestagent", verb, "-i", "eth0", "--to", "tcp://10.9.0.1"],
        check=False,
        cwd="/",
    )
    assert done.returncode == 3, done.stderr + done.stdout
    assert "CAP_NET_RAW" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A second collector on the same port: exit 2, the port and the reason."""
    collector = rig.collect(pair[1])
    second = ["collect", "--listen", "tcp://10.9.0.1:4795", "--write", str(rig.directory / "other")]
    done = pair[1].run([sys.executable, "-m", "guestagent", *second], check=False)
    collector.stop()
    assert_one_sentence(done, 2, ["4795", "in use"])


def test_two_collectors_do_not_share_a_directory(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A second collector for the same directory is refused before it harms the first one's files."""
    collector = rig.collect(pair[1])
    second = ["collect", "--listen", "tcp://10.9.0.1:4796", "--write", str(rig.captures)]
    done = pair[1].run([sys.executable, "-m", "guestagent", *second], check=False)
    collector.stop()
    assert_one_sentence(done, 2, ["another collector writes"])


@pytest.mark.root
def test_a_full_disk_loses_nothing(rig: Rig, pair: tuple[Host, Host]) -> None:
    """While the collector's disk is full nothing is acknowledged and the agent says why; then everything is written."""
    vm, peer = pair
    disk = _disk(rig, peer, 3)
    collector, agent = rig.collect(peer, write=str(disk)), rig.agent(vm)
    sink = peer.start(udp_sink, 9000)
    peer.wait_for_port(9000)
    vm.call(udp_send, "10.9.0.1", 9000, 8000, 5000, 1000)
    assert sink.result().distinct == 8000
    wait_for(lambda: "No space left" in agent.log_text(), "the agent to hear of the full disk")
    assert agent.status()["delivered"] < 8000
    peer.run(["mount", "-o", "remount,size=64m", str(disk)])
    wait_for(lambda: agent.status()["in_flight"] == 0, "the rest to be written")
    ledger, report = agent.stop(), collector.stop()
    rig.captures = disk
    assert_ledger_closes(ledger, report)
    assert sorted(peer.call(lambda: udp_indexes(rig.frames(), 9000, 1000))) == list(range(8000))


@pytest.mark.root
def test_a_full_disk_that_breaks_ends_the_run_with_its_ledger(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A disk below `dir:` that is full and then gives an error ends the run: one sentence, exit code 1, a ledger."""
    vm, _ = pair
    disk = _disk(rig, vm, 1)
    agent = rig.agent(vm, to=f"dir:{disk}")
    vm.call(udp_send, "10.9.0.1", 9000, 100, 10_000, 900)
    wait_for(lambda: agent.status()["delivered"], "the first ones to be safe")  # all at once would be refused at once
    vm.call(udp_send, "10.9.0.1", 9000, 1500, 10_000, 900)
    wait_for(lambda: "No space left" in agent.log_text(), "the disk to be full")
    resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    ledger = agent.ended(code=1)
    assert "guestagent: the capture can't be written: File too large; it ends here" in agent.log_text()
    assert 0 < ledger["delivered"] < ledger["captured"]
    assert ledger["lost_on_link"] > 0


def _disk(rig: Rig, host: Host, megabytes: int) -> Path:
    """A small one, in the host's own mount namespace."""
    disk = rig.directory / "disk"
    disk.mkdir()
    host.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(disk)])
    return disk


def _hello(agent_id: str = "stranger") -> dict[str, object]:
    interface = {"id": 0, "name": "eth0", "mac": "02:00:00:00:00:09", "mtu": 1500, "link_type": 1, "speed_mbit": 0}
    return {
        "agent_id": agent_id,
        "run_id": f"{random.getrandbits(128):032x}",
        "host": "host",
        "version": "0",
        "layout": "tpacket3+virtio",
        "ring_bytes": 1 << 20,
        "started_ns": time.time_ns(),
        "first_sequence": 1,
        "interfaces": [interface],
        "cloud": "",
    }


def _greeting(**changes: object) -> bytes:
    return frames.PREFACE + frames.encode_json(Kind.HELLO, {**_hello(), **changes})


def _hostile_block() -> bytes:
    """A run that claims a frame far outside of itself."""
    block = BlockWriter(memory := bytearray(4096), 24)
    block.add(bytes(100), 1)
    memory[block.start + 12 : block.start + 16] = (1 << 30).to_bytes(4, "little")
    records = bytes(memory[block.start : block.end])
    return frames.encode(Kind.BLOCK, frames.BLOCK_PREFIX.pack(1) + records, sequence=1)


HOSTILE = {
    "random bytes": [random.Random(1).randbytes(100_000)],
    "http": [b"GET / HTTP/1.1\r\nHost: collector\r\n\r\n"],
    "wrong version": [b"tapstrm\x09"],
    "huge hello": [frames.PREFACE + frames.HEADER.pack(Kind.HELLO, 0, 0, 0xFFFFFFFF, 0)],
    "huge block": [_greeting() + frames.HEADER.pack(Kind.BLOCK, 0, 0, 0xFFFFFFFF, 1)],
    "block before hello": [frames.PREFACE + _hostile_block()],
    "unknown type": [_greeting() + frames.HEADER.pack(99, 0, 0, 0, 1)],
    "hostile block": [_greeting(), _hostile_block()],
    "climbing name": [_greeting(agent_id="../../etc")],
    "control characters": [_greeting(agent_id="vm\x1b[2J\n")],
    "deep JSON": [frames.PREFACE + frames.encode(Kind.HELLO, b"[" * 60_000)],
    "slow bytes": [bytes([byte]) for byte in _greeting()[:40]],
    "half a hello": [_greeting()[:-7]],
}


def test_nothing_that_strangers_send_reaches_others(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Garbage, huge lengths, slow bytes, hostile blocks and names: refused, while an agent's copy stays complete."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm)
    sender = vm.start(udp_send, "10.9.0.1", 9000, 20_000, 5000, 300)
    strangers = peer.start(_attack, list(HOSTILE.values()))
    strangers.result(60)
    sender.result(30)
    assert collector.memory_bytes() < 80_000_000
    ledger, report = agent.stop(), collector.stop(10.0)

    assert_ledger_closes(ledger, report)
    assert sorted(udp_indexes(rig.frames(), 9000, 300)) == list(range(20_000))
    assert report["refused"] >= len(HOSTILE) - 3
    assert (1, 0) == (report["agents"]["stranger"]["malformed"], report["agents"]["stranger"]["written"])
    assert {path.name for path in rig.captures.iterdir() if path.is_dir()} == {"vm", "stranger"}
    assert "\x1b" not in collector.log_text()


def _attack(pieces_of_all: list[list[bytes]]) -> None:
    """Every hostile conversation at once; none is closed from this side before the collector had its time."""
    connections = [(socket.create_connection(("10.9.0.1", 4795)), list(pieces)) for pieces in pieces_of_all]
    while any(pieces for _, pieces in connections):
        for connection, pieces in connections:
            if pieces:
                try:
                    connection.sendall(pieces.pop(0))
                except OSError:
                    pieces.clear()
        time.sleep(0.05)
    time.sleep(6)
    for connection, _ in connections:
        connection.close()


def test_the_embedded_collector_records_until_ctrl_c(pair: tuple[Host, Host], tmp_path: Path) -> None:
    """`guestagent run` alone taps the default route's interface into ./captures; Ctrl-C ends it whole."""
    vm, _ = pair
    vm.run(["ip", "route", "add", "default", "via", "10.9.0.1"])
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")}
    command = [sys.executable, "-m", "guestagent", "run", "--agent-id", "me", "--report", "ledger.json"]
    process = vm.popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("captures/me/*.pcapng")), "the capture file")
    vm.call(udp_send, "10.9.0.1", 9000, 1000, 2000, 200)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0
    (path,) = tmp_path.glob("captures/me/*.pcapng")
    from tests.lab.rig import frames_of

    assert udp_indexes(frames_of(path), 9000, 200) == list(range(1000))


def test_a_route_through_a_tunnel_is_refused(pair: tuple[Host, Host], lab: Lab) -> None:
    """A collector behind a VXLAN over the tapped interface: exit 2 before a packet is copied."""
    vm, _ = pair
    vm.run(
        ["ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "remote", "10.9.0.1", "dstport", "4789", "dev", "eth0"]
    )
    vm.run(["ip", "address", "add", "10.7.0.2/24", "dev", "vx0"])
    vm.run(["ip", "link", "set", "vx0", "up"])
    command = [sys.executable, "-m", "guestagent", "run", "-i", "eth0", "--to", "tcp://10.7.0.1"]
    assert_one_sentence(vm.run(command, check=False), 2, ["vx0", "eth0", "tunnel"])


@pytest.mark.root
def test_a_feedback_loop_is_stopped(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Copies whose address is rewritten on the way come back into the capture: the agent stops within seconds."""
    vm, peer = pair
    vm.run(["ip", "route", "add", "10.66.0.0/16", "via", "10.9.0.1"])
    rules = "table ip t {\nchain c {\ntype nat hook output priority -100; ip daddr 10.66.0.1 dnat to 10.9.0.1;\n}\n}"
    vm.run(["nft", rules])
    collector = rig.collect(peer)
    agent = rig.agent(vm, to="tcp://10.66.0.1")
    vm.call(udp_send, "10.9.0.1", 9000, 2000, 1000, 500)
    start = time.monotonic()
    agent.ended(15, code=1)
    assert time.monotonic() - start < 10
    assert "come back into the capture" in agent.log_text()
    collector.stop()
