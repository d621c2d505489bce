"""What is compared: no tap, guestagent with and without its budget, and what people use instead.

Each runs on the VM's eth0 with its sensor on the collector host. How much arrived is counted there.
"""

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
_ETHERNET_BYTES = 14
_DROPPED = re.compile(r"(\d+) packets? dropped by kernel")


@dataclass(frozen=True, slots=True)
class Running:
    """A tap at work."""

    pids: tuple[int, ...] = ()
    """The processes that it adds to the VM."""
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
        yield Running((vm.pid,), tally.read, lambda: int(status()["dropped_by_ring"]))


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
            yield Running((dump.pid, pipe.pid), tally.read, lambda: _dropped(dump, said))
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
    # /proc tells of pressure for the whole machine, so an agent that yields would yield to the world beside its VM.
    BUDGET: lambda scene: guestagent(scene, "--cpu", "5", "--yield", "off"),
    "tcpdump to nc": tcpdump,
    "tc mirred to vxlan": mirred,
}
