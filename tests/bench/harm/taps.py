"""What is compared: no tap, guestagent with and without its budget, and what people use instead.

Each runs on the VM's eth0 with its sensor on the collector host. How much arrived is counted there.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from guestagent.errors import HostError
from guestagent.lab.hosts import Host
from tests.bench import taps
from tests.bench.clocks import is_tapped
from tests.bench.harm.sensors import Tally, count_pcap, count_stream
from tests.bench.scene import COLLECTOR, Scene
from tests.bench.taps import NC_PORT, QUIET, STREAM_PORT
from tests.lab.rig import wait_for

OFF = "off"
OFF_AGAIN = "off again"
"""Pairs of nothing with nothing: the noise that every other ratio has, too."""
BUDGET = "guestagent run --cpu 5"
ROOMY = "guestagent run --cpu 5, VM of two cores"
STOPPED = "guestagent run --cpu 5, stopped"
_ETHERNET_BYTES = 14
_DROPPED = re.compile(r"(\d+) packets? dropped by kernel")


@dataclass(frozen=True, slots=True)
class Running:
    """A tap at work."""

    pids: tuple[int, ...] = ()
    """The processes that it adds to the VM."""
    cores: int = 1
    """Of the VM, the application's included."""
    arrived: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """(packets, bytes of frames) at the sensor so far."""
    ring_drops: Callable[[], int | None] = lambda: None
    """The kernel tells them to the ring's owner alone, so this is what the tap passes on; None where it has no ring."""


Tap = Callable[[Scene], AbstractContextManager[Running]]


@contextmanager
def off(_scene: Scene) -> Iterator[Running]:
    """The application alone."""
    yield Running()


@contextmanager
def guestagent(scene: Scene, *flags: str) -> Iterator[Running]:
    """`guestagent run`, as a user starts it."""
    to = f"tcp://{COLLECTOR}:{STREAM_PORT}"
    argv = ["run", "-i", "eth0", "--to", to, "--agent-id", "vm", *flags]
    with _sensor(scene.collector, count_stream, STREAM_PORT) as tally, taps.guestagent(scene.vm, *argv) as (vm, status):
        wait_for(lambda: status()["link"]["connected"], "the agent to be connected")
        yield Running((vm.pid,), arrived=tally.read, ring_drops=lambda: int(status()["dropped_by_ring"]))


@contextmanager
def budget(scene: Scene) -> Iterator[Running]:
    """The default CPU budget; it yields to nobody, for /proc tells of pressure in the whole machine, world included."""
    with guestagent(scene, "--cpu", "5", "--yield", "off") as running:
        yield running


@contextmanager
def roomy(scene: Scene) -> Iterator[Running]:
    """The same where the VM has a second core and the application keeps to the first.

    An agent stays on a second core that idles. This one does not, the world works on it: it drives the agent back to
    the application's some twenty times a second. So the agent is set there, and gets what the world leaves of it.
    """
    if not scene.cores:
        raise HostError("a second core is lent by a scene that gives the VM one")
    with ExitStack() as stack:
        with scene.cores.second(scene.vm) as cores:
            running = stack.enter_context(budget(scene))
        for pid in running.pids:
            os.sched_setaffinity(pid, cores - scene.cores.vm)
        yield replace(running, cores=len(cores))


@contextmanager
def stopped(scene: Scene) -> Iterator[Running]:
    """Its capture alone: the process is stopped, and the kernel filters and copies into the ring until that is full."""
    with budget(scene) as running:
        os.kill(running.pids[0], signal.SIGSTOP)
        try:
            yield Running(running.pids)
        finally:
            os.kill(running.pids[0], signal.SIGCONT)


@contextmanager
def tcpdump(scene: Scene) -> Iterator[Running]:
    """tcpdump -w - | nc, whose far end counts."""
    command = ["tcpdump", "-i", "eth0", "-w", "-", f"not tcp port {NC_PORT}"]
    with _sensor(scene.collector, count_pcap, NC_PORT) as tally, TemporaryDirectory(prefix="guestagent-bench-") as log:
        said = Path(log) / "tcpdump.log"
        with said.open("wb") as stderr:
            dump = scene.vm.popen(command, stdout=subprocess.PIPE, stderr=stderr)
        pipe = scene.vm.popen(["nc", COLLECTOR, str(NC_PORT)], stdin=dump.stdout, **QUIET)
        if dump.stdout:
            dump.stdout.close()  # nc holds the pipe alone, so it ends with tcpdump
        try:
            wait_for(lambda: is_tapped(dump.pid, scene.interface_index), "tcpdump")
            yield Running((dump.pid, pipe.pid), arrived=tally.read, ring_drops=lambda: _dropped(dump, said))
        finally:
            for process in (dump, pipe):
                process.kill()
                process.wait()


@contextmanager
def mirred(scene: Scene) -> Iterator[Running]:
    """tc mirred into a vxlan device; the device at the other end counts."""

    def arrived() -> tuple[int, int]:
        counters = scene.collector.counters("copy0")
        # A tunnel device counts what is left of a frame without its Ethernet header.
        return counters.rx_packets, counters.rx_bytes + counters.rx_packets * _ETHERNET_BYTES

    with taps.mirred(scene):
        yield Running(arrived=arrived)


@contextmanager
def _sensor(host: Host, count: Callable[[str, int, Tally], None], port: int) -> Iterator[Tally]:
    tally = Tally()
    task = host.start(count, COLLECTOR, port, tally)
    try:
        host.wait_for_port(port)
        yield tally
    finally:
        task.kill()
        task.wait()


def _dropped(dump: "subprocess.Popen[Any]", said: Path) -> int:
    """Ask tcpdump for its ring's statistics, which it then says on standard error."""
    before = len(_DROPPED.findall(said.read_text()))
    dump.send_signal(signal.SIGUSR1)
    found = wait_for(lambda: _DROPPED.findall(said.read_text())[before:], "tcpdump's statistics")
    return int(found[-1])


TAPS: dict[str, Tap] = {
    OFF: off,
    OFF_AGAIN: off,
    "guestagent run --full": lambda scene: guestagent(scene, "--full"),
    BUDGET: budget,
    ROOMY: roomy,
    STOPPED: stopped,
    "tcpdump to nc": tcpdump,
    "tc mirred to vxlan": mirred,
}
