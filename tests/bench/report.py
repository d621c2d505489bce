"""The figures as Markdown, every cell as CSV, and one picture."""

import csv
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from tests.bench import figures
from tests.bench.clocks import machine
from tests.bench.collector import Feed
from tests.bench.figures import Figure, Metric, Table, Target
from tests.bench.rounds import Cell
from tests.bench.start import Start
from tests.bench.writers import Writer

MOST_BUSY = 0.05
"""A machine that was busier than this before the run has measured its other work too."""


@dataclass
class Results:
    """All that one run found out."""

    command: str
    rounds: int
    seconds: float
    busy_before: float
    cells: list[Cell] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    feeds: list[Feed] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)

    def targets(self) -> list[Target]:
        """The promises that this run can judge."""
        return figures.targets(Table(self.cells), self.starts, self.feeds)


def markdown(results: Results) -> str:
    """The whole report."""
    parts = [_preamble(results)]
    table = Table(results.cells)
    for on in table.offloads:
        parts += [_small(table, on), _bulk(table, on)]
    parts += [f"{name} could not be measured here: {reason}." for name, reason in results.missing.items()]
    if results.starts:
        parts.append(_starts(results.starts))
    if results.feeds:
        parts.append(_feeds(results.feeds))
    if results.writers:
        parts.append(_writers(results.writers))
    if judged := results.targets():
        parts.append(_judged(judged))
    return "\n\n".join(parts) + "\n"


def rows(header: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """A Markdown table, the first column to the left, all others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _preamble(results: Results) -> str:
    warning = ""
    if results.busy_before > MOST_BUSY:
        share = f"{results.busy_before:.0%}"
        warning = f"\n\n**Not quiet:** other work used {share} of the CPUs before the run; these numbers include it."
    return (
        "# Measured\n\n"
        f"`{results.command}` on {time.strftime('%Y-%m-%d', time.gmtime())}: {machine()}, "
        f"Python {platform.python_version()}. Interleaved rounds: {results.rounds}, {results.seconds:g} s a cell; "
        "medians over the rounds, in parentheses the 95 % interval of the median (bootstrap).\n\n"
        "Three hosts in network namespaces on a bridge: `vm` (tapped), `peer`, `collector`; the copies leave through "
        "the NIC that is tapped. Both directions are captured; *in* and *out* say where the load goes. CPU is what is "
        "not idle in /proc/stat on the whole machine, the sensor's end included, less the same load without a tap; "
        "bytes are the interfaces' counters. Every cell is in [cells.csv](cells.csv)." + warning + "\n\n![](taps.png)"
    )


def _small(table: Table, on: bool) -> str:
    def line(tap: str) -> list[object]:
        def both(metric: Metric) -> list[Figure]:
            return [table.figure(tap, "small", inbound, on, metric) for inbound in (True, False)]

        lost = [table.lost(tap, "small", inbound, on) for inbound in (True, False)]
        own, share = both(figures.own_microseconds), both(figures.copied)
        return [tap, *both(figures.added_microseconds), _pair(own), _pair(share), " / ".join(filter(None, lost))]

    return f"## Small packets, offloads {'on' if on else 'off'}\n\n50,000 UDP frames of 512 bytes a second.\n\n" + rows(
        ["tap", "added CPU per packet, µs: in", "out", "own process, µs", "copied ÷ application bytes", "lost"],
        [line(tap) for tap in table.taps if tap != "base"],
    )


def _bulk(table: Table, on: bool) -> str:
    def line(tap: str) -> list[object]:
        def both(metric: Metric) -> list[Figure]:
            return [table.figure(tap, "bulk", inbound, on, metric) for inbound in (True, False)]

        lost = [table.lost(tap, "bulk", inbound, on) for inbound in (True, False)]
        rest = [_pair(both(metric)) for metric in (figures.gigabits, figures.copied, figures.added_per_gigabyte)]
        return [tap, *both(figures.kept), *rest, " / ".join(filter(None, lost))]

    header = ["tap", "kept: in", "out", "Gbit/s", "copied ÷ application bytes", "added CPU s/GB", "lost"]
    return (
        f"## Bulk TCP, offloads {'on' if on else 'off'}\n\nOne flow as fast as it goes; *kept* is the application's "
        "rate beside its rate without a tap. *lost* are the records that the tap itself admits, over all rounds.\n\n"
        + rows(header, [line(tap) for tap in table.taps])
    )


def _pair(both: Sequence[Figure]) -> str:
    return " / ".join(f"{one.median:.2f}" for one in both)


def _starts(starts: Sequence[Start]) -> str:
    def line(one: Start) -> list[str]:
        times, sizes = one.milliseconds, (one.resident_bytes, one.ring_bytes)
        spread = f"{min(times):.0f} to {max(times):.0f}"
        return [one.name, f"{median(times):.0f}", spread, *(f"{size / 1e6:.1f}" for size in sizes)]

    header = ["program", "exec to first packet, ms", "range", "resident without the ring, MB", "ring, MB"]
    return f"## Start and memory\n\nMedian of {len(starts[0].milliseconds)} starts.\n\n" + rows(
        header, [line(one) for one in starts]
    )


def _feeds(feeds: Sequence[Feed]) -> str:
    body = [
        [one.name, f"{one.packets_per_core / 1e3:.0f}", f"{one.bits_per_core / 1e9:.2f}",
         f"{one.packets / one.wall_seconds / 1e3:.0f}"]
        for one in feeds
    ]  # fmt: skip
    header = ["`guestagent collect` to pcapng", "kpps per core", "Gbit/s per core", "kpps by the wall clock"]
    return "## Collector\n\n" + rows(header, body)


def _writers(writers: Sequence[Writer]) -> str:
    ours = writers[0].microseconds
    body = [[one.name, f"{one.microseconds:.2f}", f"{one.microseconds / ours:.1f}"] for one in writers]
    return "## pcapng writers\n\n" + rows(["writer", "CPU per 512-byte packet, µs", "times ours"], body)


def _judged(judged: Sequence[Target]) -> str:
    body = [[one.name, one.figure, f"{'≤' if one.at_most else '≥'} {one.limit:g}", one.verdict] for one in judged]
    return "## Targets\n\n" + rows(["what", "measured", "target", ""], body)


def write(results: Results, directory: Path) -> None:
    """RESULTS.md, cells.csv and, where matplotlib is installed, taps.png."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "RESULTS.md").write_text(markdown(results))
    if not results.cells:
        return
    with (directory / "cells.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(asdict(results.cells[0])), lineterminator="\n")
        table.writeheader()
        table.writerows({**asdict(one), "seconds": round(one.seconds, 3), "busy_seconds": round(one.busy_seconds, 3),
                         "tap_seconds": round(one.tap_seconds, 3)} for one in results.cells)  # fmt: skip
    picture(Table(results.cells), directory / "taps.png")


def picture(table: Table, path: Path) -> None:
    """Three panels side by side: CPU per small packet, bulk kept, bytes copied; offloads on where measured."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = (
        ("added CPU per small packet, µs", "small", figures.added_microseconds),
        ("bulk TCP kept beside no tap", "bulk", figures.kept),
        ("bulk bytes copied ÷ sent", "bulk", figures.copied),
    )
    taps = [tap for tap in reversed(table.taps) if tap != "base"]
    drawing, axes = plt.subplots(1, len(panels), figsize=(12, 3.4), sharey=True, layout="constrained")
    for axis, (title, load, metric) in zip(axes, panels, strict=True):
        for inbound, shift, colour in ((True, 0.2, "#2a6f97"), (False, -0.2, "#e09f3e")):
            found = [table.figure(tap, load, inbound, table.offloads[0], metric) for tap in taps]
            medians = [one.median for one in found]
            spread = [[one.median - one.low for one in found], [one.high - one.median for one in found]]
            places = [at + shift for at in range(len(taps))]
            axis.barh(places, medians, 0.38, xerr=spread, color=colour, label="in" if inbound else "out", capsize=2)
        axis.set_title(title, fontsize=10)
        axis.axvline(0, color="black", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(taps)), taps)
    axes[-1].legend(frameon=False)
    drawing.savefig(path, dpi=120)
    plt.close(drawing)
