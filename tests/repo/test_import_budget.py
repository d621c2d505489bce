"""The agent stays light: what it imports is the standard library and psutil, and of the library not the heavy parts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.source import ROOT

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

RUN_NEEDS = [
    "guestagent.cli",
    "guestagent.config",
    "guestagent.agent",
    "guestagent.capture.ring",
    "guestagent.capture.bpf",
    "guestagent.governor.meter",
    "guestagent.links.stream",
    "guestagent.tapstream.session",
    "guestagent.observe.status",
]
COLLECT_NEEDS = ["guestagent.collector.server", "guestagent.collector.sinks.pcapng"]


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


@pytest.mark.parametrize("module", RUN_NEEDS + COLLECT_NEEDS)
def test_run_and_collect_load_nothing_heavy(module: str) -> None:
    """Importing any module of the running agent or collector loads none of the heavy ones."""
    path = ROOT.joinpath(*module.split("."))
    if not (path.with_suffix(".py").exists() or path.is_dir()):
        pytest.skip(f"{module} is not written yet")

    assert not heavy(loaded_by(f"import {module}"))


@pytest.mark.skipif(not (ROOT / "guestagent" / "cli.py").exists(), reason="guestagent.cli is not written yet")
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_loads_no_room(flag: str) -> None:
    """`guestagent --help` answers from the verb table: no psutil, no socket layer, none of the heavy ones."""
    code = f"""
import io, sys
sys.argv, sys.stdout = ["guestagent", "{flag}"], io.StringIO()
from guestagent.cli import main
try:
    main()
except SystemExit:
    pass
"""
    loaded = loaded_by(code)

    assert "guestagent.cli" in loaded
    assert not heavy(loaded) | (loaded & {"psutil", "ssl", "guestagent.agent", "guestagent.collector.server"})


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
