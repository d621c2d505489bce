"""The systemd units as tests read them: settings, and what their system call filter leaves."""

import re
import subprocess
from pathlib import Path

UNITS = Path(__file__).resolve().parents[1] / "packaging/systemd"


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit, each with all its values."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", (UNITS / f"{name}.service").read_text(), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def allowed_calls(filters: list[str]) -> set[str]:
    """The system calls that SystemCallFilter lines leave, by systemd's own lists."""
    calls = _expand("@default")
    for line in filters:
        names = {name for word in line.removeprefix("~").split() for name in _expand(word)}
        calls = calls - names if line.startswith("~") else calls | names
    return calls


def _expand(word: str) -> set[str]:
    """A call, or all of a group."""
    if not word.startswith("@"):
        return {word}
    command = ["systemd-analyze", "syscall-filter", word]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    inner = [line.strip() for line in listed.splitlines()[1:]]
    return {name for one in inner if one and not one.startswith("#") for name in _expand(one)}
