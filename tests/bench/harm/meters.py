"""What one cell is judged by: the CPU of the VM and of the tap in it, and packets and bytes where they pass."""

from collections.abc import Sequence
from dataclasses import dataclass

from guestagent.errors import RunError
from tests.bench.clocks import BusyClock, process_seconds
from tests.bench.harm.taps import Running
from tests.bench.scene import Scene


@dataclass(frozen=True, slots=True)
class Worked:
    """CPU seconds."""

    busy_seconds: float
    """Of the VM."""
    tap_seconds: float
    """Of them in the tap's own processes."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Packets and bytes."""

    app_packets: int
    """As the peer's interface counted them, requests included; with offloads a super-packet is one."""
    app_bytes: int
    arrived_packets: int
    """Copies at the sensor; the kernel's tunnel device cuts super-packets into many."""
    arrived_bytes: int
    wire_bytes: int
    """What the collector's interface received: copies, their headers, and their framing."""
    ring_drops: int | None


class Meters:
    """Reads everything when made, and the differences afterwards; the counters outside of the CPU's window."""

    def __init__(self, scene: Scene, running: Running) -> None:
        self._scene, self._running = scene, running
        self._counted = self._count()
        self._busy, self._before = BusyClock(scene.vm.cpus), cpu_seconds(running.pids)

    def worked(self) -> Worked:
        """Since it was made."""
        return Worked(self._busy.seconds(), cpu_seconds(self._running.pids) - self._before)

    def counted(self) -> Counted:
        """Since it was made; what is on its way to the sensor now is about what was on its way then."""
        before, now = self._counted, self._count()
        has_ring = before.ring_drops is not None and now.ring_drops is not None
        return Counted(
            app_packets=now.app_packets - before.app_packets,
            app_bytes=now.app_bytes - before.app_bytes,
            arrived_packets=now.arrived_packets - before.arrived_packets,
            arrived_bytes=now.arrived_bytes - before.arrived_bytes,
            wire_bytes=now.wire_bytes - before.wire_bytes,
            ring_drops=(now.ring_drops or 0) - (before.ring_drops or 0) if has_ring else None,
        )

    def _count(self) -> Counted:
        peer, collector = self._scene.counters()
        return Counted(
            peer.rx_packets + peer.tx_packets,
            peer.rx_bytes + peer.tx_bytes,
            *self._running.arrived(),
            collector.rx_bytes,
            self._running.ring_drops(),
        )


def cpu_seconds(pids: Sequence[int]) -> float:
    """Of a tap's processes so far; RunError where one has ended."""
    try:
        return process_seconds(*pids)
    except OSError as error:
        raise RunError("a process of the tap ended while it was measured") from error
