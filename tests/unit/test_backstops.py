"""Control groups beside the budgets, on a tree of files as cgroup v2 lays it out."""

from configparser import ConfigParser
from pathlib import Path

import pytest

from guestagent.backstops import NEEDED_BYTES, warnings
from guestagent.governor.limits import OWN_CORES
from guestagent.standback import NICENESS
from tests.repo.source import ROOT


def tree(where: Path, **files: str) -> tuple[Path, Path]:
    """(root, /proc/self/cgroup) of a process in a/b, with these files in the group above it."""
    root, own = where / "cgroup", where / "own"
    (root / "a" / "b").mkdir(parents=True)
    own.write_text("3:cpu:/elsewhere\n0::/a/b\n")
    for name, text in files.items():
        (root / "a" / name.replace("_", ".")).write_text(text)
    return root, own


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, []),
        ({"cpu_max": "max 100000\n", "memory_max": "max\n"}, []),
        ({"cpu_max": "100000 100000\n", "memory_max": f"{NEEDED_BYTES}\n"}, []),
        ({"cpu_max": "5000 100000\n"}, ["CPUQuota"]),
        ({"memory_max": f"{NEEDED_BYTES - 1}\n"}, ["MemoryMax"]),
    ],
)
def test_a_limit_below_the_need_is_said(tmp_path: Path, files: dict[str, str], said: list[str]) -> None:
    """A quota or a memory limit of any group above the process is compared with what the agent may need."""
    found = warnings(0.1, *tree(tmp_path, **files))
    assert len(found) == len(said)
    assert all(word in text for word, text in zip(said, found, strict=True))


def test_no_such_hierarchy_says_nothing(tmp_path: Path) -> None:
    """Where the files can't be read there is nothing to warn of."""
    assert warnings(1.0, tmp_path / "x", tmp_path / "y") == []


def test_the_service_agrees_with_the_budgets(tmp_path: Path) -> None:
    """What packaging/systemd gives the process draws no warning for any budget of its one thread, and bounds it."""
    unit = ConfigParser(interpolation=None, strict=False)
    unit.read(ROOT / "packaging/systemd/guestagent.service")
    service = unit["Service"]
    quota_percent = int(service["CPUQuota"].removesuffix("%"))
    memory_bytes = int(service["MemoryMax"].removesuffix("M")) << 20

    given = tree(tmp_path, cpu_max=f"{quota_percent * 1000} 100000\n", memory_max=f"{memory_bytes}\n")
    assert warnings(OWN_CORES, *given) == []
    assert OWN_CORES <= quota_percent / 100 <= 1
    assert NEEDED_BYTES <= memory_bytes <= 4 * NEEDED_BYTES
    assert int(service["Nice"]) == NICENESS
