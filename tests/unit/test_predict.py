"""The cost model: linear in what is kept, and it learns what this machine costs without being thrown far."""

from math import isclose

from hypothesis import given
from hypothesis import strategies as st

from guestagent.governor.predict import OWN_IDLE_CORES, OWN_SECONDS_PER_BYTE, OWN_SECONDS_PER_PACKET, Cost, CostModel
from guestagent.governor.rates import Rates

WHOLE_GB = Rates(0.0, 15_000.0, 1e9, 1e9)


def test_costs_are_linear_in_what_is_kept() -> None:
    """Half of the packets cost the mean of none and all: the ladder's arithmetic relies on it."""
    model = CostModel()
    none, half, whole = (model.cost(WHOLE_GB, keep, "full") for keep in (0.0, 0.5, 1.0))

    assert all(isclose(a + c, 2 * b) for a, b, c in zip(none, half, whole, strict=True))
    assert model.cost(WHOLE_GB, 1.0, "headers").cpu < whole.cpu
    assert model.cost(Rates(), 1.0, "full") == Cost()


def test_learning_finds_this_machine() -> None:
    """Within 30 s of mixed load, idle, packets and bytes are each known to a tenth."""
    model, truth = CostModel(), (1.5, 0.7, 1.8)
    for turn in range(300):
        packets, size = [(1e4, 1e6), (0.0, 0.0), (500.0, 5e7)][turn // 5 % 3]
        terms = (OWN_IDLE_CORES * 0.1, OWN_SECONDS_PER_PACKET * packets, OWN_SECONDS_PER_BYTE * size)
        model.learn(0.1, packets, size, sum(a * b for a, b in zip(truth, terms, strict=True)))

    assert all(abs(found - true) <= 0.1 * true for found, true in zip(model.weights, truth, strict=True))


@given(st.lists(st.tuples(st.floats(0.001, 10), st.floats(0, 1e6), st.floats(0, 1e9), st.floats(0, 1e3)), max_size=50))
def test_no_reading_throws_the_model_far(readings: list[tuple[float, float, float, float]]) -> None:
    """Whatever is measured, weights stay within their bounds."""
    model = CostModel()
    for reading in readings:
        model.learn(*reading)

    assert all(0.3 <= weight <= 4.0 for weight in model.weights)


def test_one_outlier_moves_little() -> None:
    """A second of CPU in a half second of light load moves no weight by more than a fifth."""
    model = CostModel()
    model.learn(0.5, 1000, 1e6, 1.0)

    assert all(0.8 <= weight <= 1.2 for weight in model.weights)
