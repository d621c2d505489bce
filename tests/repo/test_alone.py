"""The mark `alone`: what loads the machine or judges time runs by itself, beside no other test of this checkout."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from tests.repo.planted import outcomes, run

PLANTED = """
import json, time

def stay(name):
    start = time.monotonic()
    time.sleep(0.2)
    with open("stays", "a") as file:
        file.write(json.dumps([name, start, time.monotonic()]) + "\\n")

@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number): stay("alone")

@pytest.mark.parametrize("number", range(6))
def test_shared(number): stay("shared")
"""


@pytest.mark.parametrize("processes", ["0", "3"])
def test_nothing_runs_beside_a_test_that_is_alone(tmp_path: Path, processes: str) -> None:
    """In several processes, the others run side by side and those marked come last, one after the other."""
    said = run(tmp_path, {"planted": PLANTED}, "", "-n", processes, "--dist", "loadgroup")
    assert outcomes(said) == {"passed": 9}
    stays = sorted(map(json.loads, (tmp_path / "stays").read_text().splitlines()), key=lambda stay: stay[1])
    beside = [{one[0], other[0]} for one, other in combinations(stays, 2) if other[1] < one[2]]

    assert [name for name, *_ in stays] == ["shared"] * 6 + ["alone"] * 3
    assert all(names == {"shared"} for names in beside)
    assert bool(beside) == (processes == "3")
