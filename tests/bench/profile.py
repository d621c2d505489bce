"""Where the CPU of the agent's process goes: `python -m tests.bench.profile [--seconds S]`, as root; prints only.

perf(1) samples the process of `guestagent run --full` under each load of the comparison, to a collector that forgets.
A share is of the process's own samples, what it calls included.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from guestagent.errors import GuestagentError, HostError
from guestagent.lab.hosts import Lab
from tests.bench.perf import report
from tests.bench.scene import LOADS, Load, Scene
from tests.bench.taps import stream

SAMPLES_PER_SECOND = 2000
SYMBOLS = {
    "send()": "__sys_sendto|__x64_sys_sendto|__arm64_sys_sendto",
    "  copy into socket buffers": "_copy_from_iter|copy_page_from_iter|skb_copy_to_page_nocache",
    "  softirq": "__do_softirq|handle_softirqs|do_softirq",
    "scheduler": "__schedule|schedule",
    "epoll_wait()": "__x64_sys_epoll_wait|__x64_sys_epoll_pwait|do_epoll_wait",
}
"""Names of the kernel that may stand for it; the first that is found counts."""


def shares(told: str) -> dict[str, float]:
    """Name to percent of `perf report --sort X`, whose lines are `  12.34%  name` or with a second column between."""
    found: dict[str, float] = {}
    for line in told.splitlines():
        if row := re.match(r"\s*(?P<percent>[\d.]+)%\s+(?:[\d.]+%\s+)?(?:\[[k.]\] )?(?P<name>\S+)", line):
            found.setdefault(row["name"], float(row["percent"]))
    return found


def profile(scene: Scene, load: Load, pid: int, seconds: float, data: Path) -> dict[str, float]:
    """Percent of the process's samples by name: kernel, Python, and SYMBOLS."""
    command = ["perf", "record", "-q", "-g", "-e", "cpu-clock", "-F", str(SAMPLES_PER_SECOND), "-p", str(pid)]
    recorder = subprocess.Popen([*command, "-o", str(data), "--", "sleep", str(seconds)], stderr=subprocess.DEVNULL)
    load.make(scene, load.inbound, seconds + 1)
    recorder.wait()
    parts = shares(report(str(data), "--no-children", "--sort", "dso"))
    inclusive = shares(report(str(data), "--children", "--sort", "sym"))
    kernel = sum(share for name, share in parts.items() if name.startswith("[kernel"))
    by_symbol = {
        label: next((inclusive[one] for one in names.split("|") if one in inclusive), 0.0)
        for label, names in SYMBOLS.items()
    }
    return {"kernel": kernel, **by_symbol, "Python and libraries": sum(parts.values()) - kernel}


def main() -> int:
    """A table: a row for each name, a column for each load."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description=__doc__.partition(":")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load; default: 5")
    flags = parser.parse_args()
    columns = {}
    try:
        with Lab() as lab, TemporaryDirectory() as directory:
            scene = Scene(lab, offloads=True)
            with stream(scene) as running:
                for load in LOADS:
                    name = f"{load.name} {'in' if load.inbound else 'out'}"
                    data = Path(directory) / name.replace(" ", "-")
                    columns[name] = profile(scene, load, running.pids[0], flags.seconds, data)
    except FileNotFoundError as error:
        raise HostError(f"it needs {error.filename}: apt-get install linux-perf") from error
    print("| % of the process's samples |" + "".join(f" {name} |" for name in columns))
    print("|---|" + "---:|" * len(columns))
    for row in next(iter(columns.values())):
        print(f"| {row} |" + "".join(f" {column[row]:.0f} |" for column in columns.values()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GuestagentError as error:
        sys.exit(f"profile: {error}")
