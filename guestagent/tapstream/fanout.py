"""Who has what of a run of which several collectors get every frame. Pure.

    given back │ one has it, another waits for it │ on its way to all │ not yet made
               ▲ first_sequence                   ▲ leader            ▲ last frame taken

All collectors share the frames and their numbers; each has its own place among them. Acknowledgements are cumulative,
so no frame needs a count of who still wants it: what all places have passed goes back.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from guestagent.tapstream.frames import ProtocolError
from guestagent.tapstream.session import Pending

AWAY, LAGGING, ENDED = "collector_away", "collector_lagging", "run_ended"
"""Why a collector misses records that another one has: not connected, it took too little, the run ended before."""

PENDING_BYTES = 640
"""Of memory for a frame whose bytes lie in the ring, with its loan and views (measured: 600)."""
MOST_WAITING = 1024
"""Doubts that wait for a collector's disk: it takes a turn's worth before it finds it full, 256 frames."""


class Doubt(NamedTuple):
    """A frame that was sent to a collector and given up for it before its answer came."""

    sequence: int
    records: int
    stale: int
    interface: int
    reason: str


class Place:
    """One collector's place in the run, and its books."""

    def __init__(self) -> None:
        self.passed = 0
        """Up to here nothing is owed to it: it has it, or it was given up."""
        self.acknowledged = 0
        """The last frame that it said it holds."""
        self.sent = self.highest_sent = 0
        """The last frame given to this connection, and to any."""
        self.delivered = 0
        """Records that it acknowledged, stale ones included."""
        self.lost: Counter[str] = Counter()
        """Records that another collector has and this one will never get, by reason."""
        self.doubts: deque[Doubt] = deque()
        """No more than a ring holds: what is given up while it is connected ends the connection. Its next hello settles
        all but those that it took and has not written yet, MOST_WAITING at the most; a later ACK settles them."""
        self.told_stale: dict[int, int] = {}
        """Stale records that it counted, by interface."""
        self._stale_before: dict[int, int] = {}
        """Of them, those that it has forgotten."""
        self.missed_stale: Counter[int] = Counter()
        """Stale records among those that it never got, by interface."""

    def tell_stale(self, counts: dict[int, int]) -> None:
        """Take its cumulative counts."""
        for interface, count in counts.items():
            count += self._stale_before.get(interface, 0)
            self.told_stale[interface] = max(count, self.told_stale.get(interface, 0))

    def forgot(self) -> None:
        """It does not know the run, or not any more: what it counts begins at 0."""
        self._stale_before = dict(self.told_stale)

    def stale(self) -> Counter[int]:
        """Stale records by interface, of all that it was given or lost."""
        return self.missed_stale + Counter(self.told_stale)

    def lose(self, doubt: Doubt) -> None:
        """It will never get this one."""
        self.lost[doubt.reason] += doubt.records - doubt.stale
        if doubt.stale:
            self.missed_stale[doubt.interface] += doubt.stale

    def settle_doubts(self, sequence: int) -> None:
        """It has what is in doubt up to here."""
        while self.doubts and self.doubts[0].sequence <= sequence:
            doubt = self.doubts.popleft()
            self.delivered += doubt.records
            self.acknowledged = max(self.acknowledged, doubt.sequence)


class FanOut:
    """The frames of a run between the desk that makes them and the collectors that each get all of them."""

    def __init__(
        self, places: int, take: Callable[[float], Pending | None], stale: Callable[[Pending], tuple[int, int]]
    ) -> None:
        self.places = tuple(Place() for _ in range(places))
        self.first_sequence = 1
        """The oldest frame that is held, or the next to be made."""
        self.leader = 0
        """One collector at least has everything up to here."""
        self.taken_records = 0
        self.beside_bytes = 0
        """Memory that the frames take which are held, without what lies in the ring."""
        self._frames: deque[Pending] = deque()
        self._take, self._stale = take, stale
        """`stale` answers (interface, how many of a frame's records have no packet)."""

    @property
    def kept(self) -> int:
        """Frames that one collector has and another waits for."""
        return max(0, self.leader + 1 - self.first_sequence)

    def next_frame(self, place: Place, now: float) -> Pending | None:
        """The frame after the last one that this place's connection was given; a new one at the front."""
        at = place.sent + 1 - self.first_sequence
        if at < len(self._frames):
            pending: Pending | None = self._frames[at]
        elif pending := self._take(now):
            self._frames.append(pending)
            self.taken_records += _records(pending)
            self.beside_bytes += _beside_bytes(pending)
        if pending is not None:
            place.sent = pending.sequence
            place.highest_sent = max(place.highest_sent, place.sent)
        return pending

    def acknowledge(self, place: Place, sequence: int) -> None:
        """This collector has everything up to `sequence`. Raises ProtocolError where it can't."""
        if sequence > max(place.highest_sent, place.passed):
            raise ProtocolError(f"it acknowledges frame {sequence}, which was never sent")
        place.settle_doubts(sequence)
        if sequence > place.passed:
            place.delivered += sum(map(_records, self._between(place.passed, sequence)))
            place.passed = place.acknowledged = sequence
            place.sent = max(place.sent, sequence)  # an earlier connection brought it, and its disk was full meanwhile
            self.leader = max(self.leader, sequence)

    def resume(self, place: Place, held_sequence: int | None, taken_sequence: int = 0) -> None:
        """A new connection: what the collector holds is known now, the rest goes out again.

        What it has taken and not written yet stays in doubt, where it was given up: an ACK may still come for it.
        """
        self.acknowledge(place, held_sequence or 0)
        if held_sequence is None:
            place.forgot()
        waiting = sum(doubt.sequence <= taken_sequence for doubt in islice(place.doubts, MOST_WAITING))
        for _ in range(len(place.doubts) - waiting):
            place.lose(place.doubts.pop())
        place.sent = place.passed

    def give_up(self, place: Place, sequence: int, reason: str) -> None:
        """What this collector lacks up to `sequence`, no more than the leader has, it won't be sent any more.

        Its connection is over: the memory of a frame that was half sent goes back.
        """
        for pending in self._between(place.passed, sequence):
            interface, stale = self._stale(pending)
            doubt = Doubt(pending.sequence, _records(pending), stale, interface, reason)
            if pending.sequence <= place.highest_sent:
                place.doubts.append(doubt)
            else:
                place.lose(doubt)
        place.passed = max(place.passed, sequence)
        place.sent = max(place.sent, place.passed)

    def finish(self) -> None:
        """The run ends: what one collector has and another did not acknowledge is lost for that one."""
        for place in self.places:
            self.give_up(place, self.leader, ENDED)
            while place.doubts:
                place.lose(place.doubts.popleft())

    def passed_by_all(self) -> Iterator[Pending]:
        """The frames that go back now, oldest first."""
        least = min(place.passed for place in self.places)
        while self._frames and self._frames[0].sequence <= least:
            self.first_sequence += 1
            self.beside_bytes -= _beside_bytes(self._frames[0])
            yield self._frames.popleft()

    def middle(self) -> int:
        """The frame in the middle of those that one collector has and another waits for."""
        return self.first_sequence + self.kept // 2

    def stale(self) -> dict[int, int]:
        """Stale records by interface: each place counts the same ones, some of them later."""
        counts: Counter[int] = Counter()
        for place in self.places:
            counts |= place.stale()
        return dict(counts)

    def is_told_stale(self, interface: int) -> bool:
        """Did a collector count stale records of this interface?"""
        return any(place.told_stale.get(interface) for place in self.places)

    def describe(self, place: Place) -> dict[str, Any]:
        """The books of one collector: after the end `delivered` and what was lost are the ledger's `delivered`."""
        stale = sum(place.stale().values())
        delivered = place.delivered - sum(place.told_stale.values())
        return {
            "delivered": delivered,
            "in_flight": self.taken_records - delivered - stale - place.lost.total(),
            "lost_records": {reason: place.lost[reason] for reason in (AWAY, LAGGING, ENDED)},
        }

    def _between(self, passed: int, sequence: int) -> Iterator[Pending]:
        """The frames behind `passed`, up to `sequence`."""
        return islice(
            self._frames, max(0, passed + 1 - self.first_sequence), max(0, sequence + 1 - self.first_sequence)
        )


def _records(pending: Pending) -> int:
    return pending.loan.records if pending.loan else 0


def _beside_bytes(pending: Pending) -> int:
    return PENDING_BYTES + (0 if pending.loan else len(pending.frame))
