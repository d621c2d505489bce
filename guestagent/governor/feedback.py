"""The loop detector: are we capturing our own copies? Pure; time is an argument.

The capture filter leaves out our own connection by address and port. Behind a tunnel or a rewritten destination the
same bytes leave under other headers, are captured, sent again, and so on, at whatever rate the machine can do.

Rates alone can't tell that from a quiet VM whose every byte is copied: in both, what is captured tracks what is sent.
So on suspicion the agent holds its sending for a moment, while the ring keeps what comes. In a feedback loop the
interface then falls silent with it; real traffic goes on, and ends the hold as soon as it shows. Three holds in a row
that stayed silent are proof. A hold that showed real traffic is not repeated for a while, unless the rate grows far
beyond: a loop may begin behind real traffic.
"""

from dataclasses import dataclass
from enum import Enum

SUSPICION_RATIO = 0.9
SUSPICION_SECONDS = 1.0
LEAST_BYTES_PER_SECOND = 125_000
"""1 Mbit/s: less harms nobody, and slow traffic stops by itself too often to prove anything."""
HOLDS_SECONDS = (0.4, 0.9, 2.0)
"""The proof. Bursts with pauses may miss one hold or two; those of any one period that miss the first two meet the
third. Silence costs nothing."""
SETTLE_SECONDS = 0.12
"""The first part of a hold still shows what was on its way."""
STOPPED_FRACTION = 0.2
REST_SECONDS = 60.0
GROWTH_THAT_ENDS_REST = 4.0
REST_BETWEEN_HOLDS_SECONDS = 0.5
HELD_LOOK_SECONDS, FIRST_LOOK_SECONDS = 0.03, 0.25
"""A hold should not outlast its purpose; one look costs about 0.1 ms. After it, what had to wait goes out at first."""


class Verdict(Enum):
    """What the desk does next."""

    GO_ON = "go on"
    HOLD = "hold"
    LOOP = "loop"


@dataclass(frozen=True, slots=True)
class Sample:
    """Running totals in wire bytes: what the tapped interfaces counted, what we captured of it, what we sent."""

    seen_bytes: int
    captured_bytes: int
    sent_bytes: int
    copies: int = 1
    """Streams that carry each frame at this moment; one of them may come back."""


class LoopDetector:
    """Fed with samples when they are due; says when to hold and when to stop."""

    def __init__(self, now: float) -> None:
        self.due_at = now
        """When the next sample is wanted."""
        self._since: tuple[float, Sample] | None = None
        self._hold: tuple[float, Sample | None] | None = None
        self._rate_before = 0.0
        self._proofs = 0
        self._rest_until = self._rest_rate = 0.0

    def step(self, now: float, sample: Sample) -> Verdict:
        """One sample in, one verdict out."""
        verdict = self._judge(now, sample)
        if verdict is Verdict.HOLD:
            wait_seconds = HELD_LOOK_SECONDS
        elif self._since is None:
            wait_seconds = FIRST_LOOK_SECONDS
        else:
            wait_seconds = REST_BETWEEN_HOLDS_SECONDS if self._proofs else SUSPICION_SECONDS
        self.due_at = now + wait_seconds
        return verdict

    def _judge(self, now: float, sample: Sample) -> Verdict:
        if self._hold is not None:
            return self._during_hold(now, sample)
        if self._since is None:
            self._since = (now, sample)
            return Verdict.GO_ON
        start, before = self._since
        self._since = (now, sample)
        self._rate_before = (sample.seen_bytes - before.seen_bytes) / (now - start)
        if not _is_suspicious(before, sample, now - start):
            self._proofs = 0
            return Verdict.GO_ON
        if now < self._rest_until and self._rate_before < GROWTH_THAT_ENDS_REST * self._rest_rate:
            return Verdict.GO_ON
        self._hold = (now, None)
        return Verdict.HOLD

    def _during_hold(self, now: float, sample: Sample) -> Verdict:
        assert self._hold is not None
        start, settled = self._hold
        if settled is None:
            if now - start >= SETTLE_SECONDS:
                self._hold = (start, sample)
            return Verdict.HOLD
        seconds = HOLDS_SECONDS[self._proofs]
        seen = sample.seen_bytes - settled.seen_bytes
        is_real = seen > STOPPED_FRACTION * self._rate_before * (seconds - SETTLE_SECONDS)
        if not is_real and now - start < seconds:
            return Verdict.HOLD
        self._hold = self._since = None
        if is_real:
            self._proofs, self._rest_until, self._rest_rate = 0, now + REST_SECONDS, self._rate_before
            return Verdict.GO_ON
        self._proofs += 1
        return Verdict.LOOP if self._proofs == len(HOLDS_SECONDS) else Verdict.GO_ON


def _is_suspicious(before: Sample, after: Sample, seconds: float) -> bool:
    """Captured tracks sent, and our own bytes are not among what the filter left out."""
    captured = after.captured_bytes - before.captured_bytes
    all_sent = after.sent_bytes - before.sent_bytes
    sent = all_sent / after.copies
    unselected = after.seen_bytes - before.seen_bytes - captured - (all_sent - sent)  # the others are left out rightly
    is_fast = min(captured, sent) > LEAST_BYTES_PER_SECOND * seconds
    tracks = is_fast and min(captured, sent) / max(captured, sent) > SUSPICION_RATIO
    return tracks and unselected < sent / 2
