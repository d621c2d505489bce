"""The agent stays light: what it imports is the standard library and psutil, and of the library not the heavy parts."""

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.repo.source import ROOT, dotted, modules

HEAVY = {
    # 10 MB of resident memory and 83 modules each; the loop is our own and the one HTTP client is http.client
    "asyncio",
    "http.server",
    # 25 MB and more each, or forbidden in the agent by licence (scapy)
    "boto3",
    "botocore",
    "google",
    "grpc",
    "numpy",
    "requests",
    "scapy",
    # loaded while its endpoint is on
    "prometheus_client",
}

NEVER_IN_THE_AGENT = {"__main__", "demo", "lab"}
"""Not held to the budget: the lab plays the application and its peers, in processes of its own."""


def rooms() -> dict[str, list[str]]:
    """Dotted names of the modules of each room or top-level module that may be loaded where packets are copied."""
    found = defaultdict(list)
    for path in modules():
        name = dotted(path).removesuffix(".__init__")
        found[dotted(path).split(".")[1]].append(name)
    return {room: names for room, names in found.items() if room not in NEVER_IN_THE_AGENT}


def loaded_by(code: str, path: Path = ROOT) -> set[str]:
    """Names of all modules that a fresh interpreter holds after the code."""
    script = f"{code}\nimport sys\nsys.stderr.write('\\n'.join(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines())


def heavy(loaded: set[str]) -> set[str]:
    """Which of the heavy ones, or parts of them, are loaded."""
    return {name for name in HEAVY if any(f"{one}.".startswith(f"{name}.") for one in loaded)}


@pytest.mark.parametrize("room", sorted(rooms()))
def test_loading_a_room_loads_nothing_heavy(room: str) -> None:
    """Importing every module of a room, as run, collect or check would, loads none of the heavy ones."""
    assert not heavy(loaded_by(f"import {', '.join(rooms()[room])}"))


@pytest.mark.parametrize("flag", ["--help", "--version", "run --help"])
def test_help_loads_no_room(flag: str) -> None:
    """`guestagent --help` answers from the verb table: no psutil, no TLS, no room, none of the heavy ones."""
    code = f"""
import io, sys
sys.argv, sys.stdout = ["guestagent", *"{flag}".split()], io.StringIO()
from guestagent.cli import main
try:
    main()
except SystemExit:
    pass
"""
    loaded = loaded_by(code)
    ours = {name.split(".")[1] for name in loaded if name.startswith("guestagent.")}

    assert "cli" in ours
    assert not ours - {"cli", "errors", "flags", "model"}
    assert not heavy(loaded) | (loaded & {"psutil", "ssl", "logging"})


def test_a_heavy_import_is_caught(tmp_path: Path) -> None:
    """A module that imports asyncio, and one that reaches scapy through another, are both named."""
    (tmp_path / "scapy").mkdir()
    (tmp_path / "scapy" / "__init__.py").touch()
    (tmp_path / "inner.py").write_text("import scapy\n")
    (tmp_path / "planted.py").write_text("import asyncio, inner\n")

    assert heavy(loaded_by("import planted", tmp_path)) == {"asyncio", "scapy"}


def test_an_empty_interpreter_is_light() -> None:
    """Nothing heavy is there before we begin, so what is found was brought by us."""
    assert not heavy(loaded_by("pass"))
