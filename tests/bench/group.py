"""A control group for all that a bench starts: its CPU is counted alone and exactly, whatever else the machine does.

/proc/stat samples what runs by the tick, knows everyone's work only, and on some virtual machines an idle processor's
time stands still in it for seconds: cells of nothing beside nothing differed by half of the machine. A group's time is
a sum of the scheduler's own clock, in nanoseconds (version 1: cpuacct.usage) or microseconds (version 2: cpu.stat), and
it keeps what ended processes have used. Such a group bounds nothing.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
PREFIX = "guestagent-bench-"


@contextmanager
def own_group(mounts: Path = MOUNTS) -> Iterator[None]:
    """This process and all that it starts from here on are in a group of their own, where one can be made.

    Groups of dead runs are removed.
    """
    base, _ = _membership(mounts)
    if base is None:
        yield
        return
    for leftover in base.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is in use: its run lives
            leftover.rmdir()
    group = base / f"{PREFIX}{os.getpid()}"
    group.mkdir()
    _move_to(group)
    try:
        yield
    finally:
        _move_to(base)
        with suppress(OSError):  # a child outlives us by a moment: the next run removes it
            group.rmdir()


def reader(mounts: Path = MOUNTS) -> Callable[[], float] | None:
    """CPU seconds so far of the group that own_group has made; None outside of one."""
    group, read = _membership(mounts)
    return None if group is None or not group.name.startswith(PREFIX) else lambda: read(group)


def _move_to(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _membership(mounts: Path) -> tuple[Path | None, Callable[[Path], float]]:
    """Our group where CPU is accounted for, None where it is not ours to write; and how to read its time."""
    places = {}
    for line in mounts.read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpuacct" in options.split(","):
            places["cpuacct"] = Path(place)
        elif kind == "cgroup2":
            places[""] = Path(place)
    for line in sorted(Path("/proc/self/cgroup").read_text().splitlines(), reverse=True):
        _, controllers, path = line.split(":", 2)
        for controller, read in _READERS.items():
            if controller in controllers.split(",") and controller in places:
                group = places[controller] / path.lstrip("/")
                if os.access(group / "cgroup.procs", os.W_OK):
                    return group, read
    return None, _read_cpu_stat


def _read_cpuacct(group: Path) -> float:
    return int((group / "cpuacct.usage").read_text()) / 1e9


def _read_cpu_stat(group: Path) -> float:
    words = (group / "cpu.stat").read_text().split()
    return int(words[words.index("usage_usec") + 1]) / 1e6


_READERS: dict[str, Callable[[Path], float]] = {"cpuacct": _read_cpuacct, "": _read_cpu_stat}
"""By controller; version 2 has one hierarchy without a name."""
