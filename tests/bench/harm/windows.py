"""The CPU budget in every window of five seconds, one after the other: own process by its clock, capture by perf.

What is promised is "own + capture share, in every window after the first two seconds". Each is told for itself, without
a cell beside it, so no noise of an application comes in.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.clocks import machine
from tests.bench.harm.loads import Load, Work
from tests.bench.harm.meters import cpu_seconds
from tests.bench.harm.rounds import WARM_SECONDS, stage
from tests.bench.harm.shares import LOOKS_PER_SECOND, capture_share, record
from tests.bench.harm.taps import BUDGET, TAPS, Running
from tests.bench.report import rows
from tests.bench.scene import Scene

WINDOW_SECONDS = 5.0
LIMIT_PERCENT = 5.5
ROUNDS = 3
_IN_A_ROW = 4
_BETWEEN_SECONDS = 2.0
"""More than perf takes to begin and to end."""


@dataclass(frozen=True, slots=True)
class Window:
    """Percent of the VM's processors."""

    load: str
    own: float
    capture: float

    @property
    def total(self) -> float:
        """What the budget bounds."""
        return self.own + self.capture


def measure(loads: Sequence[Load], rounds: int, directory: Path, say: Callable[[str], None]) -> list[Window]:
    """Some windows of each load in each round, of one agent each."""
    found = []
    with stage(WINDOW_SECONDS, say) as (scene, capacity):
        for number in range(rounds):
            for load in loads:
                say(f"round {number + 1}: {load.name}")
                with TAPS[BUDGET](scene) as running:
                    seconds = WARM_SECONDS + _IN_A_ROW * (WINDOW_SECONDS + _BETWEEN_SECONDS)
                    work = Work(scene, load, seconds, capacity)
                    time.sleep(WARM_SECONDS)
                    owns = [_record(scene, running, directory / str(at)) for at in range(_IN_A_ROW)]
                    work.finish()
                shares = [capture_share(directory / str(at), running.pids[0]) for at in range(_IN_A_ROW)]
                found += [Window(load.name, 100 * own, 100 * at) for own, at in zip(owns, shares, strict=True)]
    return found


def _record(scene: Scene, running: Running, to: Path) -> float:
    """One window: the part of the VM's processors that the process takes."""
    before, start = cpu_seconds(running.pids), time.monotonic()
    record(scene.vm.cpus, WINDOW_SECONDS, to)
    return (cpu_seconds(running.pids) - before) / (time.monotonic() - start) / len(scene.vm.cpus)


def markdown(windows: Sequence[Window], command: str) -> str:
    """The whole report."""
    loads = dict.fromkeys(one.load for one in windows)
    body = [_row(name, [one for one in windows if one.load == name]) for name in loads]
    over = sum(one.total > LIMIT_PERCENT for one in windows)
    return (
        "# The CPU budget in every window\n\n"
        f"`{command}` on {time.strftime('%Y-%m-%d', time.gmtime())}: {machine()}; one core is the VM's, peer, switch "
        f"and collector have the rest. `{BUDGET}`, windows of {WINDOW_SECONDS:g} s, a moment apart, the first "
        f"{WARM_SECONDS:g} s after a load's start left out. Percent of the VM. *Own* is the process, by its clock in "
        "the kernel; what the NIC receives while it runs is counted there, too. *Capture* is what senders and "
        f"receivers pay for their copies: perf looks at the VM's core {LOOKS_PER_SECOND:,} times a second, and counts "
        "the stacks with the packet socket's functions on them. What the kernel sends by its timers, and "
        f"acknowledgements of it, are in neither. Promised is {LIMIT_PERCENT:g} in every window.\n\n"
        + rows(["load", "windows", "own", "capture", "both, median", "both, worst", f"> {LIMIT_PERCENT:g}"], body)
        + f"\n\n{len(windows)} windows, {over} of them above the promise.\n"
    )


def _row(name: str, windows: Sequence[Window]) -> list[object]:
    told = [[getattr(one, field) for one in windows] for field in ("own", "capture", "total")]
    over = sum(one.total > LIMIT_PERCENT for one in windows)
    return [name, len(windows), *(f"{median(one):.1f}" for one in told), f"{max(told[-1]):.1f}", over]
