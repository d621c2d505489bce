"""From exec to the first captured packet, and what stays resident: our agent beside tcpdump.

A tap captures from the moment that its packet socket is bound, which /proc/net/packet shows; under the load that runs
meanwhile the first packet follows within 0.1 ms.
"""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from guestagent.lab.hosts import Lab
from tests.bench.clocks import is_tapped, memory_bytes
from tests.bench.scene import COLLECTOR, VM, Scene, bulk, send_datagrams, small
from tests.bench.sink import discard
from tests.bench.taps import QUIET, STREAM_PORT, Running, agent

PER_SECOND = 10_000
POLL_SECONDS = 0.001
TIMEOUT_SECONDS = 10.0
_LONGEST_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Start:
    """What one program needs before it works, and to work."""

    name: str
    milliseconds: list[float]
    resident_bytes: int
    """After bulk and small packets; rings not counted."""
    ring_bytes: int


def measure(starts: int, say: Callable[[str], None]) -> list[Start]:
    """Our agent and tcpdump, taking turns."""
    with Lab() as lab:
        scene = Scene(lab, offloads=True)
        scene.collector.start(discard, COLLECTOR, STREAM_PORT)
        scene.collector.wait_for_port(STREAM_PORT)
        load = scene.peer.start(send_datagrams, VM, PER_SECOND * _LONGEST_SECONDS, PER_SECOND)
        programs: dict[str, Callable[[Scene], AbstractContextManager[Running]]] = {
            "guestagent run": lambda scene: agent(scene.vm, connected=False),
            "tcpdump": _tcpdump,
        }
        times: dict[str, list[float]] = {name: [] for name in programs}
        for program in programs.values():
            _milliseconds(scene, program)  # files come into the page cache, byte code is written
        for number in range(starts):
            say(f"start {number + 1} of {starts}")
            for name, program in programs.items():
                times[name].append(_milliseconds(scene, program))
        load.kill()
        return [Start(name, times[name], *_memory(scene, program)) for name, program in programs.items()]


def _milliseconds(scene: Scene, program: Callable[[Scene], AbstractContextManager[Running]]) -> float:
    start = time.monotonic()
    with program(scene) as running:
        while not is_tapped(running.pids[0], scene.interface_index):
            if time.monotonic() > start + TIMEOUT_SECONDS:
                raise TimeoutError("a tap did not begin to capture")
            time.sleep(POLL_SECONDS)
        return (time.monotonic() - start) * 1000


def _memory(scene: Scene, program: Callable[[Scene], AbstractContextManager[Running]]) -> tuple[int, int]:
    with program(scene) as running:
        time.sleep(1.0)  # connected, or it would have nobody to send to
        small(scene, True, 1.0)
        bulk(scene, False, 1.0)
        return memory_bytes(running.pids[0])


@contextmanager
def _tcpdump(scene: Scene) -> Iterator[Running]:
    argv = ["tcpdump", "-i", "eth0", "-w", "/dev/null", f"not tcp port {STREAM_PORT}"]
    process = scene.vm.popen(argv, **QUIET)
    try:
        yield Running((process.pid,))
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
