"""What the process's control group allows, beside what the budgets need; systemd's CPUQuota and MemoryMax end there."""

from collections.abc import Iterator
from math import inf
from pathlib import Path

NEEDED_BYTES = 32 << 20
"""25 MB resident beside the ring, and room to load a filter; ring pages are charged to no group."""


def warnings(
    budget_cores: float, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[str]:
    """A sentence for each limit of the group, or of one above it, that is below what the agent may need."""
    cores, memory = inf, inf
    for place in _groups(root, own):
        cores = min(cores, _quota_cores(place))
        memory = min(memory, _number(place / "memory.max"))
    found = []
    if cores < budget_cores:
        found.append(
            f"the control group gives {cores:.2g} of a core, the budget is {budget_cores:.2g}: "
            "raise CPUQuota or lower --cpu"
        )
    if memory < NEEDED_BYTES:
        found.append(
            f"the control group gives {memory / 1e6:.0f} MB, the agent needs {NEEDED_BYTES / 1e6:.0f} MB "
            "beside its ring: raise MemoryMax"
        )
    return found


def _groups(root: Path, own: Path) -> Iterator[Path]:
    """The unified group of this process (cgroup v2) and those above it; none where there is no such hierarchy."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith("0::/"):
            place = root / line[4:]
            yield place
            yield from (one for one in place.parents if one.is_relative_to(root))


def _quota_cores(place: Path) -> float:
    try:
        quota, period = (place / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max": no quota
        return inf


def _number(path: Path) -> float:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return inf
