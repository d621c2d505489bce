"""How a figure grows over a soak: by what it was in the second quarter and in the last one. Pure."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Sample(NamedTuple):
    """A process at one moment."""

    seconds: float
    own_bytes: int
    """Resident memory of its own (RssAnon): the ring, code and files apart."""
    files: int


class Slope(NamedTuple):
    """Of one process over a soak."""

    grown_bytes: float
    """Median of the last quarter less that of the second; the first is warming up."""
    bytes_per_minute: float
    """The same by the time between the middles of the two quarters."""
    grown_files: float
    most_bytes: int
    most_files: int


def slope(samples: Sequence[Sample]) -> Slope:
    """Raises ValueError for fewer than eight samples."""
    if len(samples) < 8:
        raise ValueError(f"{len(samples)} samples have no slope")
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    grown = statistics.median(one.own_bytes for one in last) - statistics.median(one.own_bytes for one in second)
    minutes = (statistics.median(s.seconds for s in last) - statistics.median(s.seconds for s in second)) / 60
    files = statistics.median(one.files for one in last) - statistics.median(one.files for one in second)
    return Slope(
        grown,
        grown / minutes,
        files,
        max(one.own_bytes for one in samples),
        max(one.files for one in samples),
    )
