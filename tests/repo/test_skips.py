"""In CI nothing that the machine could have been set up for is skipped in silence."""

from pathlib import Path

import pytest

from tests.repo.planted import outcomes, run

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


@pytest.mark.parametrize("processes", ["0", "2"])
def test_a_missing_requirement_fails_in_ci(tmp_path: Path, processes: str) -> None:
    """A skip for want of root or a package, in a test, mark, fixture or module, is an error with CI=true."""
    assert outcomes(run(tmp_path, NOT_SET_UP, "true", "-n", processes)) == {"failed": 1, "errors": 3}


def test_a_missing_requirement_is_skipped_at_home(tmp_path: Path) -> None:
    """The same without CI is a skip."""
    assert outcomes(run(tmp_path, NOT_SET_UP, "")) == {"skipped": 4}


def test_a_missing_kernel_feature_is_skipped_in_ci(tmp_path: Path) -> None:
    """What no set-up can bring, and a known failure, stay what they are."""
    assert outcomes(run(tmp_path, {"planted": KERNEL_AND_KNOWN}, "true")) == {"skipped": 1, "xfailed": 1}
