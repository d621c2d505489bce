"""Who has what: the agent's window of unacknowledged frames, and the collector's place in each run. Pure.

The agent numbers BLOCK, REPORT and INFO frames of a run from 1 and keeps each until an ACK covers it; a BLOCK's bytes
stay in the ring meanwhile. After a break the collector's hello says the last frame that it holds; what it holds is
acknowledged, the rest is sent again from the first. So nothing is lost while the ring has room, and nothing is written
twice.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from guestagent.tapstream.frames import Kind, encode_json

MOST_REPORTS = 64
"""Unacknowledged REPORTs; beyond, the newest replaces the one before (its counters are cumulative)."""


@dataclass(slots=True, eq=False)
class Pending:
    """One numbered frame of the window: the bytes to send, and what its acknowledgement settles."""

    sequence: int
    kind: Kind
    frame: memoryview | bytes
    loan: Any = None
    """What the acknowledgement gives back: a run of records of the desk's, or None."""
    body: memoryview | None = None
    """What follows `frame` where the two don't lie in one piece."""
    interface_id: int | None = None
    """Of an INFO."""


class SendWindow:
    """The agent's side of the sequence. `send_next` walks it; `acknowledge` empties it; `rewind` starts over."""

    def __init__(self) -> None:
        self._frames: deque[Pending] = deque()
        self._sent = 0
        self.next_sequence = 1
        self.highest_sent = 0
        """No collector can hold more than this."""

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def first_sequence(self) -> int:
        """The oldest frame not acknowledged, or the next to be made."""
        return self._frames[0].sequence if self._frames else self.next_sequence

    def add(
        self,
        kind: Kind,
        build: Callable[[int], memoryview | bytes],
        loan: Any = None,
        body: memoryview | None = None,
    ) -> None:
        """Number a frame and queue it; `build` makes its bytes, or those before its `body`, from the sequence."""
        sequence = self.next_sequence
        self._frames.append(Pending(sequence, kind, build(sequence), loan, body))
        self.next_sequence += 1

    def add_report(self, report: dict[str, Any]) -> None:
        """Queue a REPORT; where MOST_REPORTS wait, renew the last one, unless that is already on its way."""
        waiting = [one for one in self._frames if one.kind == Kind.REPORT]
        if len(waiting) < MOST_REPORTS:
            self.add(Kind.REPORT, lambda sequence: encode_json(Kind.REPORT, report, sequence=sequence))
        elif waiting[-1].sequence >= self._frames[0].sequence + self._sent:
            waiting[-1].frame = encode_json(Kind.REPORT, report, sequence=waiting[-1].sequence)

    def add_info(self, interface_id: int, info: dict[str, Any]) -> None:
        """Queue an INFO; in the place of one of this interface that no packet stands under yet and nobody was given."""
        for one in reversed(self._frames):
            if one.kind == Kind.BLOCK or one.sequence <= self.highest_sent:
                break
            if one.kind == Kind.INFO and one.interface_id == interface_id:
                one.frame = encode_json(Kind.INFO, info, sequence=one.sequence)
                return
        self.add(Kind.INFO, lambda sequence: encode_json(Kind.INFO, info, sequence=sequence))
        self._frames[-1].interface_id = interface_id

    def send_next(self) -> Pending | None:
        """The next frame that this connection has not been given."""
        if self._sent == len(self._frames):
            return None
        pending = self._frames[self._sent]
        self._sent += 1
        self.highest_sent = max(self.highest_sent, pending.sequence)
        return pending

    @property
    def unsent(self) -> int:
        """Frames that this connection has not been given."""
        return len(self._frames) - self._sent

    @property
    def in_flight(self) -> int:
        """Frames that this connection was given and nobody has acknowledged."""
        return self._sent

    def acknowledge(self, sequence: int) -> list[Pending]:
        """Drop every frame up to `sequence` from the window and return them, oldest first."""
        settled = []
        while self._frames and self._frames[0].sequence <= sequence:
            settled.append(self._frames.popleft())
        self._sent = max(0, self._sent - len(settled))
        return settled

    def rewind(self) -> None:
        """A new connection: everything that is left goes out again."""
        self._sent = 0

    def abandon(self) -> list[Pending]:
        """Give up every frame, at the end of a run."""
        self._sent = 0
        left = list(self._frames)
        self._frames.clear()
        return left


@dataclass(slots=True)
class ReceiveState:
    """The collector's place in one run, and its counts."""

    held_sequence: int = 0
    """Nothing up to here is waited for: it was taken, or skipped."""
    taken_sequence: int = 0
    """The last frame that came and was taken."""
    gaps: int = 0
    """Numbered frames that never came."""
    duplicates: int = 0
    """Numbered frames that came again and were not written."""
    elsewhere: int = 0
    """Numbered frames that another collector acknowledged."""
    unsupported_gso: dict[int, int] = field(default_factory=dict)
    """Stale records by interface id, over the whole run."""

    def is_new(self, sequence: int) -> bool:
        """Was this frame never held? A frame that came again is counted."""
        if sequence <= self.held_sequence:
            self.duplicates += 1
            return False
        return True

    def skip_to(self, sequence: int, ours: int) -> bool:
        """The agent no longer holds what comes up to `sequence`, so a collector acknowledged it: up to `ours` we did.

        True where we lack some of it: what we acknowledged is a gap, the rest is held elsewhere.
        """
        missed = max(0, sequence - self.held_sequence)
        lost = min(missed, max(0, ours - self.held_sequence))
        self.gaps += lost
        self.elsewhere += missed - lost
        self.held_sequence += missed
        return missed > 0

    def hold(self, sequence: int) -> None:
        """This frame is taken; frames that were skipped before it are counted."""
        self.gaps += sequence - self.held_sequence - 1
        self.held_sequence = self.taken_sequence = sequence


ACK_SECONDS = 0.02
"""The agent's ring holds what is not acknowledged: at 10 Gbit/s, 20 ms are 25 MB."""
ACK_RING_FRACTION = 8


class AckClock:
    """When the next ACK is due: 20 ms after the first unacknowledged frame, or an eighth of the ring."""

    def __init__(self, ring_bytes: int) -> None:
        self._limit_bytes = max(1, ring_bytes // ACK_RING_FRACTION)
        self._bytes = 0
        self.due_at: float | None = None

    def received(self, size: int, now: float) -> None:
        """A numbered frame of `size` bytes became safe."""
        self._bytes += size
        if self._bytes >= self._limit_bytes:
            self.due_at = now
        elif self.due_at is None:
            self.due_at = now + ACK_SECONDS

    def sent(self) -> None:
        """An ACK went out."""
        self._bytes, self.due_at = 0, None


FIRST_BACKOFF_SECONDS = 0.1
EARLY_BACKOFF_SECONDS = 1.0
LATE_BACKOFF_SECONDS = 5.0
EARLY_SECONDS = 10.0
"""A restarted collector is back within 10 s, and the ring bridges about 25: until then a try each second at least."""


class Backoff:
    """Doubling waits with jitter: 0.1 s, never over 1 s in the first 10 s of an outage, never over 5 s."""

    def __init__(self, random_fraction: Callable[[], float] = random.random) -> None:
        self._random = random_fraction
        self._since: float | None = None
        self._wait = FIRST_BACKOFF_SECONDS

    def failed(self, now: float) -> float:
        """Seconds to wait before the next try."""
        if self._since is None:
            self._since = now
        most = EARLY_BACKOFF_SECONDS if now - self._since < EARLY_SECONDS else LATE_BACKOFF_SECONDS
        wait = min(self._wait, most)
        self._wait = min(self._wait * 2, LATE_BACKOFF_SECONDS)
        return wait * (0.5 + self._random() / 2)

    def served(self, *, progressed: bool) -> None:
        """A connection that stood is over. Where it brought nothing forward, this is still the outage of before."""
        if progressed:
            self._since, self._wait = None, FIRST_BACKOFF_SECONDS
