"""A row of cells whose load ended first is measured again, beside a longer one."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from guestagent.errors import RunError
from tests.bench.harm import rounds
from tests.bench.harm.loads import LOADS, Outlasted


@pytest.fixture
def patiences(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the rows that were measured; a row of a load named after a number takes that much."""
    asked: list[int] = []

    @contextmanager
    def stage(*_: Any) -> Iterator[tuple[None, None]]:
        yield None, None

    def measure_row(
        _scene: None, _capacity: None, row: rounds.Row, _seconds: float, patience: int, *_: Any
    ) -> list[Any]:
        asked.append(patience)
        if patience < int(row[2][0]):
            raise Outlasted("the load was outlasted")
        return [SimpleNamespace(tap="off")]

    monkeypatch.setattr(rounds, "stage", stage)
    monkeypatch.setattr(rounds, "_measure_row", measure_row)
    return asked


def test_a_row_that_outlasts_its_load_is_measured_again(patiences: list[int]) -> None:
    """With twice the time and then four times; the next row begins anew."""
    said: list[str] = []

    run = rounds.measure([(0, LOADS[0], ["4"]), (1, LOADS[0], ["1"])], 1.0, said.append)

    assert patiences == [1, 2, 4, 1]
    assert len(run.cells) == 2
    assert said.count("the taps outlasted the load") == 2


@pytest.mark.usefixtures("patiences")
def test_a_row_that_never_ends_in_time_ends_the_run() -> None:
    """Nothing is claimed of it."""
    with pytest.raises(RunError, match="outlasted"):
        rounds.measure([(0, LOADS[0], ["5"])], 1.0, lambda _: None)
