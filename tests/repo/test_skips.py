"""In CI nothing that the machine could have been set up for is skipped in silence."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.repo.source import ROOT

NOT_SET_UP = {
    "root": 'def test_it():\n    pytest.skip("needs root")',
    "mark": '@pytest.mark.skipif(True, reason="tshark is not installed")\ndef test_it(): pass',
    "module": 'pytest.importorskip("no_such_module")',
    "fixture": '@pytest.fixture\ndef lab(): pytest.skip("needs CAP_NET_RAW")\ndef test_it(lab): pass',
}
KERNEL_AND_KNOWN = """
def test_kernel(): pytest.skip("this kernel has no UDP_SEGMENT")
@pytest.mark.xfail(reason="needs root", strict=True)
def test_known(): assert 0
"""


def outcomes(folder: Path, bodies: dict[str, str], ci: str) -> dict[str, int]:
    """How many tests ended how, over planted files under the project's own conftest."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    for name, body in bodies.items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n{body}\n")
    (folder / "pytest.toml").write_text("[pytest]\nmarkers = ['root: needs root']\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "CI": ci}, capture_output=True, text=True, check=False
    )
    return {what: int(count) for count, what in re.findall(r"(\d+) ([a-z]+)", done.stdout.splitlines()[-1])}


def test_a_missing_requirement_fails_in_ci(tmp_path: Path) -> None:
    """A skip for want of root or a package, in a test, mark, fixture or module, is an error with CI=true."""
    assert outcomes(tmp_path, NOT_SET_UP, "true") == {"failed": 1, "errors": 3}


def test_a_missing_requirement_is_skipped_at_home(tmp_path: Path) -> None:
    """The same without CI is a skip."""
    assert outcomes(tmp_path, NOT_SET_UP, "") == {"skipped": 4}


def test_a_missing_kernel_feature_is_skipped_in_ci(tmp_path: Path) -> None:
    """What no set-up can bring, and a known failure, stay what they are."""
    assert outcomes(tmp_path, {"planted": KERNEL_AND_KNOWN}, "true") == {"skipped": 1, "xfailed": 1}
