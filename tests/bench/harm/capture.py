"""What the kernel's capture alone makes of a request: the ring is open and shut by turns, and nobody reads it.

The part of a tap that harm.turns cannot see, since every request pays it. As there, both sides share the host's mood,
for they change ten times a second. The control is one half of the times without, and the other.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from guestagent.capture.engine import Wish, open_capture
from guestagent.errors import RunError
from tests.bench.harm.book import Answers

PHASE_SECONDS = 0.05
SETTLE_SECONDS = 0.01
"""After the ring was opened or shut, for which the kernel waits for its readers."""
_FRESH_SECONDS = 0.05
"""The kernel has cleared the ring's 64 MB on the VM's processor: who waited for that is not measured."""
_PHASES_OF_A_RING = 20
"""Its 64 MB take 20,000 datagrams of 512 bytes a second for ten times as long."""


class Phase(NamedTuple):
    """A time in which the ring is open, or shut."""

    is_open: bool
    start: float
    end: float
    seen: int
    """Packets."""


def come_and_go(seconds: float, expression: str) -> list[Phase]:
    """On the VM, for so long: the agent's own ring, of what a filter expression lets through."""
    found: list[Phase] = []
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        (ring,) = open_capture(Wish(("eth0",), expression, engine="ring")).sources
        with closing(ring):
            ring.pause(True)
            time.sleep(_FRESH_SECONDS)
            for at in range(_PHASES_OF_A_RING):
                ring.pause(at % 2 == 0)
                time.sleep(SETTLE_SECONDS)
                before, start = ring.statistics(), time.monotonic()
                time.sleep(PHASE_SECONDS)
                end, after = time.monotonic(), ring.statistics()
                found.append(Phase(at % 2 == 1, start, end, after.captured - before.captured))
        if after.dropped:
            raise RunError("the ring was too small: it dropped packets, and so took less time than an agent's")
    return found


def parts(answers: Answers, phases: Sequence[Phase]) -> tuple[Answers, Answers, Answers]:
    """(due while it was open, while it was shut for every other time, for the others); RunError where one is empty."""
    if strange := [one for one in phases if one.is_open != bool(one.seen)]:
        raise RunError(f"in {len(strange)} of {len(phases)} phases the ring saw none while open, or some while shut")
    shut = [one for one in phases if not one.is_open]
    open_, first, second = (
        Answers([answer for one in some for answer in answers.between(one.start, one.end).found])
        for some in ([one for one in phases if one.is_open], shut[::2], shut[1::2])
    )
    if not (open_.found and first.found and second.found):
        raise RunError(f"of {len(answers.found)} requests none was due in some of {len(phases)} phases of the ring")
    return open_, first, second
