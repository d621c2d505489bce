"""The agent stands back for the application, on the scheduler's terms."""

import os
import re
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_send
from guestagent.standback import SLICE_NS
from tests.lab.rig import PORT, Rig, assert_ledger_closes, wait_for

SECONDS = 2.0
BURST_GAP_SECONDS = 0.01


@pytest.mark.parametrize("given, kept", [(0, 10), (5, 10), (15, 15)])
def test_the_application_goes_first(pair: tuple[Host, Host], tmp_path: Path, given: int, kept: int) -> None:
    """The agent is at nice 10, SCHED_BATCH, its slice is 10 ms; a higher niceness that it was started with stays."""
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")}
    agent = [sys.executable, "-m", "guestagent", "run", "-i", "eth0", "--to", "dir:captures"]
    command = ["nice", "-n", str(given), *agent]
    process = pair[0].popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("captures/*/*.pcapng")), "the capture file")
    found = os.getpriority(os.PRIO_PROCESS, process.pid), os.sched_getscheduler(process.pid)
    assert found == (kept, os.SCHED_BATCH)
    slices = re.findall(r"se\.slice +: +(\d+)", Path(f"/proc/{process.pid}/sched").read_text())
    assert slices in ([str(SLICE_NS)], [])  # kernels before 6.12 have none to choose
    process.terminate()
    assert process.wait(5) == 0


def test_where_nothing_presses_turns_are_few(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Beside 50 blocks a second the agent sends some seven times a second, all that gathered at once."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm)
    sender = vm.start(udp_send, "10.9.0.1", 9000, 200_000, 20_000, 512)
    wait_for(lambda: agent.status()["captured"] > 20_000, "the load to be known")
    delivered = agent.status()["delivered"]
    times = peer.call(stream_times, "eth0", SECONDS)
    copied = agent.status()["delivered"] - delivered
    sender.kill()
    assert_ledger_closes(agent.stop(), collector.stop())

    assert copied > 15_000 * SECONDS
    assert 1 + sum(after - before > BURST_GAP_SECONDS for before, after in pairwise(times)) <= 10 * SECONDS


def stream_times(ifname: str, seconds: float) -> list[float]:
    """When segments with data came in for the collector."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as tap:
        tap.bind((ifname, 0x0800))
        tap.settimeout(0.05)
        found, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                frame = tap.recv(256)
            except TimeoutError:
                continue
            if frame[23] == socket.IPPROTO_TCP and int.from_bytes(frame[36:38], "big") == PORT and len(frame) > 200:
                found.append(time.monotonic())
        return found
