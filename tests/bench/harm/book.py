"""Open-loop requests: who waits for which answer, and since when it should have been asked. Pure.

A client that waits for an answer before it asks again asks less while the server stalls, and so measures few of the
bad moments (coordinated omission). Here each request has its time beforehand, and its latency counts from that time,
however late it could be sent; one that was never answered counts until the end.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from statistics import median
from typing import NamedTuple

MESSAGE_BYTES = 128
"""Of a request and of its answer, headers not counted."""
_GOLDEN_RATIO = (5**0.5 - 1) / 2


class Answer(NamedTuple):
    """What became of one request; both times in seconds."""

    due: float
    seconds: float
    """From its due time to its answer; to the end, where none came."""
    is_answered: bool


class Book:
    """`count` requests from `start` on, one in each period, over the connections in turn; answers come in order.

    Where in its period each is due differs evenly: at even distances they would keep step with a load that has a period
    of its own (iperf3 paces by the millisecond), and a run would measure one phase of it, another run another.
    """

    def __init__(self, start: float, per_second: float, count: int, connections: int) -> None:
        self._start, self._per_second, self._count = start, per_second, count
        self._asked = self._answered = 0
        self._waiting: list[deque[float]] = [deque() for _ in range(connections)]
        self._partial_bytes = [0] * connections
        self._found: list[Answer] = []

    @property
    def next_due(self) -> float:
        """When the next request shall leave; infinite after the last."""
        return self._due(self._asked) if self._asked < self._count else inf

    def _due(self, number: int) -> float:
        return self._start + (number + number * _GOLDEN_RATIO % 1) / self._per_second

    @property
    def is_over(self) -> bool:
        """Is everything asked and answered?"""
        return self._answered == self._count

    def take(self, now: float) -> list[int]:
        """The connections to ask over now, in order; one comes twice where two of its requests are due."""
        found = []
        while (due := self.next_due) <= now:
            connection = self._asked % len(self._waiting)
            self._waiting[connection].append(due)
            self._asked += 1
            found.append(connection)
        return found

    def received(self, connection: int, size: int, now: float) -> None:
        """So many bytes of answers came."""
        whole, self._partial_bytes[connection] = divmod(self._partial_bytes[connection] + size, MESSAGE_BYTES)
        self._answered += whole
        for _ in range(whole):
            due = self._waiting[connection].popleft()
            self._found.append(Answer(due, now - due, True))

    def close(self, now: float) -> "Answers":
        """The end; whoever still waits has waited until now at least."""
        unasked = [self._due(at) for at in range(self._asked, self._count)]
        waiting = [Answer(due, now - due, False) for one in (*self._waiting, unasked) for due in one]
        return Answers(sorted([*self._found, *waiting]))


@dataclass(frozen=True, slots=True)
class Answers:
    """What became of the requests, in the order of their due times."""

    found: list[Answer]

    def between(self, start: float, end: float) -> "Answers":
        """Those that were due in this time."""
        first, last = (bisect_left(self.found, at, key=lambda one: one.due) for at in (start, end))
        return Answers(self.found[first:last])

    @property
    def answered(self) -> int:
        """How many were."""
        return sum(one.is_answered for one in self.found)

    @property
    def ordered_seconds(self) -> list[float]:
        """The least latency first."""
        return sorted(one.seconds for one in self.found)

    def usual(self, fraction: float, group: int = 100) -> float:
        """The median of the percentiles of so many requests in a row each.

        A second in which the machine stood still makes the percentile of a whole run, and only one of many groups.
        """
        rows = [Answers(self.found[at : at + group]) for at in range(0, len(self.found), group)]
        return median(percentile(row.ordered_seconds, fraction) for row in rows) if rows else float("nan")


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """By nearest rank: the least value that at least this fraction does not exceed; of an empty sequence nan."""
    return ordered[max(1, ceil(fraction * len(ordered))) - 1] if ordered else float("nan")
