"""From cells to figures: medians over rounds with an interval, and the targets of the design. Pure."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median

from tests.bench.collector import SMALL_BYTES, Feed
from tests.bench.rounds import Cell
from tests.bench.start import Start

RESAMPLES = 1000
FAR_ABOVE, FAR_BELOW = 1.3, 0.6
"""Ratios vary by up to a quarter between runs on shared cores: only what is further off than this is a regression."""
LEAST_COPIED = 0.98
"""Below this share of the application's bytes a tap that admits no loss has lost in silence."""

Metric = Callable[[Cell, Cell], float]
"""Of a cell and the base of its round."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A median over the rounds, and where 95 % of the medians of resampled rounds lie."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Target:
    """One promise of the design and what was measured. Only ratios and sizes are fit for a gate, times are not."""

    name: str
    figure: Figure
    limit: float
    at_most: bool = True
    gated: bool = True

    @property
    def verdict(self) -> str:
        """Does the median keep the promise?"""
        if not isfinite(self.figure.median):
            return "lost in noise"
        is_met = self.figure.median <= self.limit if self.at_most else self.figure.median >= self.limit
        return "met" if is_met else "**missed**"

    @property
    def is_far_off(self) -> bool:
        """Is even the interval's better end far from the promise?"""
        if not isfinite(self.figure.median):
            return False
        if self.at_most:
            return self.figure.low > self.limit * FAR_ABOVE
        return self.figure.high < self.limit * FAR_BELOW


def added_microseconds(cell: Cell, base: Cell) -> float:
    """CPU of the whole machine for each packet of the application, less what the load costs without a tap."""
    return (cell.busy_seconds - base.busy_seconds) / cell.packets * 1e6


def own_microseconds(cell: Cell, _base: Cell) -> float:
    """CPU of the tap's own processes for each packet of the application."""
    return cell.tap_seconds / cell.packets * 1e6


def gigabits(cell: Cell, _base: Cell) -> float:
    """What the application got, Gbit/s."""
    return cell.app_bytes * 8 / cell.seconds / 1e9


def kept(cell: Cell, base: Cell) -> float:
    """The application's rate as a fraction of the rate without a tap."""
    return gigabits(cell, base) / gigabits(base, base)


def copied(cell: Cell, _base: Cell) -> float:
    """Bytes that reached the collector for each byte of the application."""
    return cell.copied_bytes / cell.app_bytes


def added_per_gigabyte(cell: Cell, base: Cell) -> float:
    """CPU seconds for each GB of the application, less those without a tap."""
    return (cell.busy_seconds / cell.app_bytes - base.busy_seconds / base.app_bytes) * 1e9


def figure(values: Sequence[float]) -> Figure:
    """The median and its bootstrap interval; the same numbers give the same interval."""
    return _resampled(len(values), lambda rounds: median(values[at] for at in rounds))


def _resampled(count: int, statistic: Callable[[Sequence[int]], float]) -> Figure:
    dice = random.Random(4795)
    found = sorted(statistic(dice.choices(range(count), k=count)) for _ in range(RESAMPLES))
    return Figure(statistic(range(count)), found[RESAMPLES // 40], found[-RESAMPLES // 40 - 1])


class Table:
    """The cells of one run, asked by tap and load."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = {(one.tap, one.load, one.inbound, one.offloads, one.round): one for one in cells}
        self.rounds = sorted({one.round for one in cells})
        self.taps = list(dict.fromkeys(one.tap for one in cells))
        self.offloads = sorted({one.offloads for one in cells}, reverse=True)

    def values(self, tap: str, load: str, inbound: bool, offloads: bool, metric: Metric) -> list[float]:
        """One value for each round."""
        place = (load, inbound, offloads)
        return [metric(self._cells[tap, *place, at], self._cells["base", *place, at]) for at in self.rounds]

    def figure(self, tap: str, load: str, inbound: bool, offloads: bool, metric: Metric) -> Figure:
        """The median over the rounds."""
        return figure(self.values(tap, load, inbound, offloads, metric))

    def lost(self, tap: str, load: str, inbound: bool, offloads: bool) -> str:
        """What the tap admits to have lost in all rounds, empty where it does not tell."""
        losses = [self._cells[tap, load, inbound, offloads, at].lost for at in self.rounds]
        told = [one for one in losses if one is not None]
        return str(sum(told)) if told else ""

    def ratio(self, tap: str, other: str, load: str, inbound: bool, offloads: bool, metric: Metric) -> Figure:
        """Median over median, the same rounds resampled on both sides; infinite where noise hides the lower one."""
        over, under = (self.values(one, load, inbound, offloads, metric) for one in (tap, other))

        def one_ratio(rounds: Sequence[int]) -> float:
            below = median(under[at] for at in rounds)
            return median(over[at] for at in rounds) / below if below > 0 else float("inf")

        return _resampled(len(self.rounds), one_ratio)

    def silent_losses(self, tap: str) -> int:
        """Bulk cells in which the tap admits no loss and yet some bytes did not arrive."""
        cells = [one for one in self._cells.values() if one.tap == tap and one.load == "bulk" and one.lost == 0]
        return sum(copied(one, one) < LEAST_COPIED for one in cells)


def targets(table: Table, starts: Sequence[Start], feeds: Sequence[Feed]) -> list[Target]:
    """Every promise that this run can judge."""
    found = [*_stream_targets(table)] if "stream" in table.taps else []
    for one in starts[:1]:
        megabytes = one.resident_bytes / 1e6
        found.append(Target("agent's memory beyond the ring, MB", Figure(megabytes, megabytes, megabytes), 25))
        found.append(Target("from exec to the first packet, ms", figure(one.milliseconds), 150, gated=False))
    for feed in feeds:
        is_small = feed.frame_bytes == SMALL_BYTES
        value = feed.packets_per_core / 1e3 if is_small else feed.bits_per_core / 1e9
        name = f"collector, {feed.name}, {'kpps' if is_small else 'Gbit/s'} per core"
        found.append(Target(name, Figure(value, value, value), 400 if is_small else 4, at_most=False, gated=False))
    return found


def _stream_targets(table: Table) -> list[Target]:
    found = []
    for on in table.offloads:
        for inbound in (True, False):
            where = f"{'in' if inbound else 'out'}, offloads {'on' if on else 'off'}"
            for other, limit in (("ring only", 1.25), ("tcpdump to nc", 0.6), ("tc mirred to vxlan", 0.7)):
                if other in table.taps:
                    ratio = table.ratio("stream", other, "small", inbound, on, added_microseconds)
                    found.append(Target(f"added CPU per small packet ÷ {other}, {where}", ratio, limit))
            ratio = table.ratio("stream", "ring only", "bulk", inbound, on, kept)
            found.append(Target(f"bulk TCP kept ÷ ring only, {where}", ratio, 0.9, at_most=False))
    silent = float(table.silent_losses("stream"))
    return [*found, Target("bulk cells with bytes lost in silence", Figure(silent, silent, silent), 0)]
