"""The figures as Markdown, every cell as CSV, and one picture."""

import csv
import platform
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.clocks import machine
from tests.bench.figures import Figure
from tests.bench.harm import figures
from tests.bench.harm.figures import Metric, Promise, Table, interval_ranks, promises
from tests.bench.harm.loads import LOADS, PROBE_PER_SECOND, UNITS
from tests.bench.harm.rounds import WARM_SECONDS, Cell, Run
from tests.bench.harm.taps import BUDGET, OFF, OFF_AGAIN, ROOMY, STOPPED
from tests.bench.report import MOST_BUSY, rows

_MICROSECONDS = "{:,.0f} µs"
LATENCIES: tuple[tuple[str, str, str, Metric], ...] = (
    ("p50", "p50_us", _MICROSECONDS, figures.p50),
    ("p99", "p99_us", _MICROSECONDS, figures.p99),
    ("p99 in units of the cell's own p50", "tail", "{:.2f}", figures.tail),
    ("p99 of an ordinary tenth of a second", "usual_p99_us", _MICROSECONDS, figures.usual_p99),
    ("p99.9", "p999_us", _MICROSECONDS, figures.p999),
)
_NOTHING = "-"
_NOTES = {
    OFF_AGAIN: "*off again* is a pair without any tap: what this machine makes of nothing. ",
    ROOMY: "The *VM of two cores* has one of the world's, too. The application keeps to the first, the agent is set to "
    "that one, as the scheduler does where it idles, and shares it with the world. ",
    STOPPED: "*Stopped* is its capture alone: the kernel filters and copies into the ring, and nobody takes it out. ",
}
_MODERATE = (
    f"Moderate are {', '.join(load.name for load in LOADS if load.is_moderate)}; "
    "together, their pairs are taken as those of one load."
)


@dataclass(frozen=True, slots=True)
class Results:
    """All that one run found out."""

    name: str
    """Of its files."""
    command: str
    seconds: float
    busy_before: float
    run: Run

    def table(self) -> Table:
        """Its cells."""
        return Table(self.run.cells)

    def promises(self) -> list[Promise]:
        """What it can judge."""
        return promises(self.table())


def markdown(results: Results) -> str:
    """The whole report."""
    table = results.table()
    parts = [_preamble(results, table), _kept(table), *(_latency(table, *one) for one in LATENCIES)]
    parts += [_cpu(table), _copied(table)]
    parts += [f"{name} could not be measured here: {reason}." for name, reason in results.run.missing.items()]
    if judged := results.promises():
        parts.append(_judged(judged))
    return "\n\n".join(parts) + "\n"


def _preamble(results: Results, table: Table) -> str:
    warning, name = "", results.name
    if results.busy_before > MOST_BUSY:
        share = f"{results.busy_before:.0%}"
        warning = f"\n\n**Not quiet:** other work used {share} of the CPUs before the run; these numbers include it."
    count = table.pairs()
    notes = "".join(note for tap, note in _NOTES.items() if tap in table.taps)
    return (
        "# Does the tap hurt the application?\n\n"
        f"`{results.command}` on {time.strftime('%Y-%m-%d', time.gmtime())}: {machine()}, {virtualisation()}, "
        f"Python {platform.python_version()}. {count} interleaved rounds, {results.seconds:g} s a cell after "
        f"{WARM_SECONDS:g} s to warm up. Every number beside a tap is a median over pairs: the tap and *off* under "
        "one load that runs on meanwhile, seconds apart. "
        f"{_interval(count)}\n\n"
        "Three hosts in network namespaces on a bridge: `vm` (tapped, it runs the application's servers), `peer`, "
        "`collector`; the copies leave through the NIC that is tapped. One core is the VM's, with all that it sends "
        "and receives; peer, switch and collector have the rest; none of them halts meanwhile where the kernel lets "
        "it. The agent yields to nobody (`--yield off`): pressure is told of the machine, the world included. `bulk` "
        "is one TCP flow (iperf3; *in* is towards the VM), flat out or at a fraction of that; `udp` are frames of 512 "
        f"bytes, half of them each way; `ask` are requests. Beside every load {PROBE_PER_SECOND:,} requests a second "
        "go to an echo server in the VM over 16 connections, at times fixed beforehand, one in each period, where in "
        f"it differs; a latency counts from that time. {notes}Every cell is in "
        f"[{name}.csv]({name}.csv).{warning}\n\n![]({name}.png)"
    )


def _interval(count: int) -> str:
    if count == 1:
        return "One pair has no interval."
    k, coverage = interval_ranks(count)
    ends = "the least and the greatest" if k == 1 else f"number {k} from either end"
    return (
        f"In parentheses the interval of that median by order statistics: {ends} of {count} pairs enclose it with a "
        f"probability of {coverage:.1%}, whatever the distribution."
    )


def virtualisation() -> str:
    """What this machine runs on, as systemd or the processor knows it."""
    found = []
    for kind in ("vm", "container"):
        with suppress(FileNotFoundError):
            said = subprocess.run(
                ["systemd-detect-virt", f"--{kind}"], capture_output=True, text=True, check=False
            ).stdout.strip()
            found += [f"{kind}: {said}"] if said not in ("", "none") else []
    if not any(one.startswith("vm") for one in found) and "hypervisor" in Path("/proc/cpuinfo").read_text():
        found.insert(0, "vm: of a kind unknown here")
    return ", ".join(found) or "no virtualisation found"


def _by_tap(table: Table, off: Sequence[str], metric: Metric, more: Sequence[Sequence[object]] = ()) -> str:
    taps = table.taps_on
    body = [
        [load.name, told, *(_words(table.figure(tap, load.name, metric), 2) for tap in taps)]
        for load, told in zip(table.loads, off, strict=True)
    ]
    return rows(["load", "off", *taps], [*body, *more])


def _words(figure: Figure, digits: int) -> str:
    low, middle, high = (f"{one:.{digits}f}" for one in (figure.low, figure.median, figure.high))
    return middle if low == high else f"{middle} ({low} to {high})"


def _kept(table: Table) -> str:
    off = []
    for load in table.loads:
        scale, unit = UNITS[load.kind]
        off.append(f"{table.off(load.name, 'rate') / scale:.2f} {unit}")
    return (
        "## What the application keeps\n\nIts rate beside its rate without a tap. A paced load keeps 1.00 while there "
        "is room.\n\n" + _by_tap(table, off, figures.kept)
    )


def _latency(table: Table, name: str, field: str, form: str, metric: Metric) -> str:
    off = [form.format(table.off(load.name, field)) for load in table.loads]
    if not (moderate := [load for load in table.loads if load.is_moderate]):
        return f"## Latency, {name}\n\nTimes that without a tap.\n\n" + _by_tap(table, off, metric)
    together = [_words(table.together(tap, moderate, metric), 2) for tap in table.taps_on]
    told = _by_tap(table, off, metric, [["moderate together", "", *together]])
    return f"## Latency, {name}\n\nTimes that without a tap. {_MODERATE}\n\n{told}"


def _cpu(table: Table) -> str:
    def cell(tap: str, load: str) -> str:
        own = f"{table.figure(tap, load, figures.own).median:.1f}"
        is_told = table.tells_added(tap, load)
        return f"{_words(table.figure(tap, load, figures.added), 1) if is_told else _NOTHING} / {own}"

    off = [f"{table.figure(OFF, load.name, figures.busy).median:.0f} %" for load in table.loads]
    body = [
        [load.name, told, *(cell(tap, load.name) for tap in table.taps_on)]
        for load, told in zip(table.loads, off, strict=True)
    ]
    return (
        "## CPU\n\nPercent of the VM: *added* / *in the tap's own processes*. Added is what its core works, by "
        f"/proc/stat, less *off*: the tap's processes and the kernel's share. {_NOTHING} where it can't be told: *off* "
        "leaves too little idle, or the other core is the world's, too.\n\n"
        + rows(["load", "off", *table.taps_on], body)
    )


def _copied(table: Table) -> str:
    def cell(tap: str, load: str) -> str:
        packets, size = (table.figure(tap, load, one).median for one in (figures.copied_packets, figures.copied_bytes))
        drops = table.ring_drops(tap, load)
        return f"{packets:.2f} / {size:.2f} / {_NOTHING if drops is None else drops}"

    body = [[load.name, *(cell(tap, load.name) for tap in table.taps_on)] for load in table.loads]
    return (
        "## What was copied for it\n\n*Packets* / *bytes* that arrived at the sensor, of the application's; *ring "
        "drops* of all rounds, as the tap passes them on. Packets and bytes are counted at the sensor. The tunnel "
        "device cuts super-packets, so its packets may be more than 1.\n\n" + rows(["load", *table.taps_on], body)
    )


def _judged(judged: Sequence[Promise]) -> str:
    def line(one: Promise) -> list[object]:
        sign, worse = ("≤", ">") if one.at_most else ("≥", "<")
        gate = _NOTHING if one.gate is None else f"{worse} {one.gate:g}"
        return [one.name, _words(one.figure, 2), f"{sign} {one.limit:g}", gate, one.verdict]

    return (
        f"## What `{BUDGET}` promises\n\nThe gate (`--gate`) fails where even the interval's better end is "
        "beyond it.\n\n" + rows(["what", "measured", "promise", "gate", ""], [line(one) for one in judged])
    )


def write(results: Results, directory: Path) -> None:
    """Report, cells and picture: HARM.md, harm.csv and harm.png."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{results.name.upper()}.md").write_text(markdown(results))
    with (directory / f"{results.name}.csv").open("w", newline="") as file:
        cells = [_flat(one) for one in results.run.cells]
        table = csv.DictWriter(file, list(cells[0]), lineterminator="\n")
        table.writeheader()
        for cell in cells:
            table.writerow({key: round(one, 4) if isinstance(one, float) else one for key, one in cell.items()})
    picture(results.table(), directory / f"{results.name}.png")


def _flat(cell: Cell) -> dict[str, Any]:
    row = asdict(cell)
    worked, counted = row.pop("worked"), row.pop("counted")
    return {**row, **worked, **counted}


def picture(table: Table, path: Path) -> None:
    """Two panels: what the application keeps flat out, and the 99th percentile where there is room."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator

    flat_out = [load.name for load in table.loads if load.is_flat_out]
    paced = [load.name for load in table.loads if not load.is_flat_out]
    panels = (
        ("throughput kept flat out", flat_out, figures.kept, "linear"),
        ("p99 latency, times that without a tap", paced, figures.p99, "log"),
    )
    taps = list(reversed(table.taps_on))
    drawing, axes = plt.subplots(1, len(panels), figsize=(12, 6.5), sharey=True, layout="constrained")
    for axis, (title, loads, metric, scale) in zip(axes, panels, strict=True):
        for number, load in enumerate(loads):
            found = [table.figure(tap, load, metric) for tap in taps]
            shift = 0.7 * ((number + 0.5) / len(loads) - 0.5)
            spread = [[one.median - one.low for one in found], [one.high - one.median for one in found]]
            places = [at - shift for at in range(len(taps))]
            axis.errorbar([one.median for one in found], places, xerr=spread, fmt="o", ms=4, capsize=2, label=load)
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set_xscale(scale)
        if scale == "log":
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
        if loads:
            axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=4)
    axes[0].set_yticks(range(len(taps)), taps)
    axes[0].set_xlim(left=0)
    drawing.savefig(path, dpi=120)
    plt.close(drawing)
