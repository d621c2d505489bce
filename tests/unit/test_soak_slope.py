"""The soak's gate: what grows is found, what warms up or swings is not."""

import pytest

from tests.bench.soak.slope import Sample, slope


def samples(grows_bytes: int, count: int = 60, warm_bytes: int = 0, files: int = 10) -> list[Sample]:
    """One a second; memory that grows each second, after a first quarter that adds `warm_bytes`."""
    return [
        Sample(at, 10_000_000 + grows_bytes * at + min(warm_bytes, warm_bytes * at // (count // 4)), files)
        for at in range(count)
    ]


def test_a_leak_has_a_slope() -> None:
    """100 kB a second are 6 MB a minute."""
    found = slope(samples(100_000))

    assert found.bytes_per_minute == pytest.approx(6_000_000)
    assert found.grown_bytes == pytest.approx(3_000_000)


def test_warming_up_and_swinging_have_none() -> None:
    """A first quarter that grows, and samples that go up and down by turns, are flat."""
    swinging = [one._replace(own_bytes=one.own_bytes + 50_000 * (at % 2)) for at, one in enumerate(samples(0))]

    assert slope(samples(0, warm_bytes=5_000_000)).grown_bytes == 0
    assert slope(swinging).grown_bytes == 0


def test_files_are_counted() -> None:
    """A descriptor more in each second is growth; the most of both is kept."""
    found = slope([one._replace(files=10 + at) for at, one in enumerate(samples(1000))])

    assert found.grown_files == 30
    assert (found.most_files, found.most_bytes) == (69, 10_059_000)


def test_too_few_samples_say_nothing() -> None:
    """Seven samples are refused."""
    with pytest.raises(ValueError, match="7 samples"):
        slope(samples(0, count=7))
