"""Planted tests that run under the project's own conftest."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.repo.source import ROOT

PYTEST_TOML = "[pytest]\nmarkers = ['root: needs root', 'alone: loads the machine']\n"


def run(folder: Path, bodies: dict[str, str], ci: str = "", *options: str) -> list[str]:
    """What pytest prints over the bodies of planted files, with this value of CI."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    for name, body in bodies.items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n{body}\n")
    (folder / "pytest.toml").write_text(PYTEST_TOML)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    done = subprocess.run(
        [*command, *options], cwd=folder, env={**os.environ, "CI": ci}, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


def outcomes(lines: list[str]) -> dict[str, int]:
    """How many tests ended how, by pytest's last line."""
    return {what: int(count) for count, what in re.findall(r"(\d+) ([a-z]+)", lines[-1])}
