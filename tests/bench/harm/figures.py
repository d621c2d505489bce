"""From cells to figures: each tap beside "off" of its round, medians with an exact interval, the promises. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb, isfinite
from statistics import median

from tests.bench.figures import Figure
from tests.bench.harm.loads import LOADS, Load
from tests.bench.harm.rounds import Cell
from tests.bench.harm.taps import BUDGET, OFF, ROOMY

CONFIDENCE = 0.95
LEAST_IDLE = 0.2
"""Below this share of idle time without a tap, what a tap adds is taken from the application and not from idling: CPU
added can't be told by subtraction."""

VMS = {BUDGET: "", ROOMY: ", two cores"}
"""Taps that keep a budget, and which VM a promise about them speaks of."""

Metric = Callable[[Cell, Cell], float]
"""Of a cell and the "off" of its pair."""


def kept(cell: Cell, off: Cell) -> float:
    """The application's rate as a fraction of its rate without a tap."""
    return cell.rate / off.rate


def p50(cell: Cell, off: Cell) -> float:
    """Times the median latency without a tap."""
    return cell.p50_us / off.p50_us


def p99(cell: Cell, off: Cell) -> float:
    """Times the 99th percentile without a tap."""
    return cell.p99_us / off.p99_us


def usual_p99(cell: Cell, off: Cell) -> float:
    """Times the 99th percentile of an ordinary tenth of a second without a tap."""
    return cell.usual_p99_us / off.usual_p99_us


def tail(cell: Cell, off: Cell) -> float:
    """Times the tail without a tap: a host that is slower for a while moves median and 99th percentile together."""
    return cell.tail / off.tail


def p999(cell: Cell, off: Cell) -> float:
    """Times the 99.9th percentile without a tap."""
    return cell.p999_us / off.p999_us


def busy(cell: Cell, _off: Cell) -> float:
    """Percent of the VM that works."""
    return 100 * cell.worked.busy_seconds / cell.vm_seconds


def added(cell: Cell, off: Cell) -> float:
    """Percent of the VM that the tap adds: its processes and all that the kernel does for it."""
    return busy(cell, cell) - busy(off, off)


def own(cell: Cell, _off: Cell) -> float:
    """Percent of the VM in the tap's processes."""
    return 100 * cell.worked.tap_seconds / cell.vm_seconds


def copied_packets(cell: Cell, _off: Cell) -> float:
    """Packets at the sensor for each packet of the application."""
    return cell.counted.arrived_packets / cell.counted.app_packets


def copied_bytes(cell: Cell, _off: Cell) -> float:
    """Bytes of frames at the sensor for each byte of the application."""
    return cell.counted.arrived_bytes / cell.counted.app_bytes


def interval_ranks(count: int) -> tuple[int, float]:
    """(k, coverage): the k-th least and k-th greatest of `count` values enclose the median with that probability.

    The sign test turned round: a value lies below the median as a coin falls, whatever the distribution. The narrowest
    interval of at least CONFIDENCE; with fewer than six values even the whole range covers less.
    """
    tail, best = 0.0, (1, 1 - 2 * 0.5**count)
    for k in range(1, count // 2 + 1):
        tail += comb(count, k - 1) * 0.5**count
        if 1 - 2 * tail < CONFIDENCE:
            break
        best = k, 1 - 2 * tail
    return best


def figure(values: Sequence[float]) -> Figure:
    """The median and the interval of interval_ranks."""
    ordered, (k, _) = sorted(values), interval_ranks(len(values))
    return Figure(median(ordered), ordered[k - 1], ordered[-k])


class Table:
    """The cells of one run, asked by tap and load."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = {(one.tap, one.load, one.round): one for one in cells}
        self.taps = list(dict.fromkeys(one.tap for one in cells))
        self.taps_on = [one for one in self.taps if one != OFF]
        present = {one.load for one in cells}
        self.loads = [one for one in LOADS if one.name in present]

    def cells(self, tap: str, load: str) -> list[Cell]:
        """Of all rounds."""
        return [one for key, one in self._cells.items() if key[:2] == (tap, load)]

    def figure(self, tap: str, load: str, metric: Metric) -> Figure:
        """Over the pairs of all rounds."""
        return figure([metric(one, self._cells[OFF, load, one.round]) for one in self.cells(tap, load)])

    def together(self, tap: str, loads: Sequence[Load], metric: Metric) -> Figure:
        """Over the pairs of several loads, as if they were one."""
        cells = [one for load in loads for one in self.cells(tap, load.name)]
        return figure([metric(one, self._cells[OFF, one.load, one.round]) for one in cells])

    def pairs(self) -> int:
        """How many each figure rests on."""
        return min(len(self.cells(tap, load.name)) for tap in self.taps for load in self.loads)

    def off(self, load: str, field: str) -> float:
        """The median of one field of "off"."""
        return median(float(getattr(one, field)) for one in self.cells(OFF, load))

    def ring_drops(self, tap: str, load: str) -> int | None:
        """Of all rounds; None where the tap has no ring."""
        told = [one.counted.ring_drops for one in self.cells(tap, load)]
        return sum(one or 0 for one in told) if told[0] is not None else None

    def tells_added(self, tap: str, load: str) -> bool:
        """Can added CPU be told? Not where little idles without it, nor beside a VM with fewer cores."""
        cores = {one.vm_seconds / one.seconds for name in (OFF, tap) for one in self.cells(name, load)}
        return len(cores) == 1 and self.figure(OFF, load, busy).median <= 100 * (1 - LEAST_IDLE)


@dataclass(frozen=True, slots=True)
class Promise:
    """One number of the design, and what was measured."""

    name: str
    figure: Figure
    limit: float
    gate: float | None
    """Where a regression begins: far enough off that shared cores don't reach it. None: not for a gate."""
    at_most: bool = True

    @property
    def verdict(self) -> str:
        """Does the median keep it?"""
        if not isfinite(self.figure.median):
            return "not measured"
        is_met = self.figure.median <= self.limit if self.at_most else self.figure.median >= self.limit
        return "met" if is_met else "**missed**"

    @property
    def is_broken(self) -> bool:
        """Is even the interval's better end beyond the gate?"""
        if self.gate is None or not isfinite(self.figure.median):
            return False
        return self.figure.low > self.gate if self.at_most else self.figure.high < self.gate


def promises(table: Table) -> list[Promise]:
    """Every promise about the taps with a budget that this run can judge."""
    present = set(table.taps)
    return [one for tap, vm in VMS.items() if {OFF, tap} <= present for one in _promises_of(tap, vm, table)]


def _promises_of(tap: str, vm: str, table: Table) -> list[Promise]:
    found = []
    for load in table.loads:
        name = load.name + vm

        def about(metric: Metric, load: Load = load) -> Figure:
            return table.figure(tap, load.name, metric)

        if load.is_promised and load.is_flat_out:
            found.append(Promise(f"{name}: application keeps", about(kept), 0.97, 0.6, at_most=False))
            found.append(Promise(f"{name}: own process, % of the VM", about(own), 5, None))
        elif not load.is_flat_out and table.tells_added(tap, load.name):
            found.append(Promise(f"{name}: CPU added, % of the VM", about(added), 5.5, 1.3 * 5.5))
        if load.is_moderate:
            found.append(Promise(f"{name}: p99, times that without a tap", about(p99), 1.05, 1.3))
    if found and (moderate := [load for load in table.loads if load.is_moderate]):
        for metric, told in ((p99, "p99"), (usual_p99, "p99 of an ordinary tenth of a second")):
            value = table.together(tap, moderate, metric)
            found.append(Promise(f"moderate loads together{vm}: {told}, times that without a tap", value, 1.05, None))
    return found
