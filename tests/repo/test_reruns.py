"""A lab test that fails is run once more, and why it had failed is not lost."""

from pathlib import Path

import pytest

from tests.repo.planted import outcomes, run

PLANTED = """
tries = []

@pytest.mark.flaky(reruns=1)
def test_second_time_lucky():
    tries.append("a try")
    assert len(tries) == 2, "the moon was in the wrong place"
"""


@pytest.mark.parametrize("processes", ["0", "2"])
def test_the_reason_of_a_first_try_is_shown(tmp_path: Path, processes: str) -> None:
    """The run passes, and its summary has the first try's error."""
    said = run(tmp_path, {"planted": PLANTED}, "true", "-n", processes)

    assert outcomes(said) == {"passed": 1, "rerun": 1}
    assert any("AssertionError: the moon was in the wrong place" in line for line in said)
