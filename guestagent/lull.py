"""How long what is ready may wait for company: every turn costs beside an application, and nothing may press."""

from math import inf

from guestagent.capture.ring import BLOCK_BYTES
from guestagent.capture.tap import FILLING_BLOCKS
from guestagent.desk import Desk
from guestagent.links.owner import Link
from guestagent.loop import NO_REST, Rest

REST_SECONDS = 0.02
"""50 turns a second at most, unless the ring fills or the socket is full: half the CPU at 50,000 small packets/s."""
PATIENCE_SECONDS, CALM_FILL = 0.2, 0.125
"""Where nothing presses neither an acknowledgement nor a second block is worth a turn of its own: a seventh of our CPU
at 20,000 packets/s. Less than the lag that tells of a slow collector (pressure.py), and no later than time asks."""
UNCAPPED_SECONDS = 1.0
"""Since a cap held something back. Its bucket saves 40 ms: while it decides, more would be lost in a longer rest."""


class Lull:
    """Looks at the link, the caps and the rings of one run."""

    def __init__(self, link: Link, desk: Desk) -> None:
        self._link, self._desk, self._capped_at = link, desk, -inf

    def rest(self, now: float) -> Rest:
        """Until the next turn. Nothing presses where what gathers in the ring can leave whenever it is looked at."""
        if self._desk.gate_opens_at < inf:
            self._capped_at = now
        if self._link.is_blocked:
            return NO_REST
        is_free = self._link.state.connected and now - self._capped_at > UNCAPPED_SECONDS
        tap = self._desk.tap
        if not is_free or tap.filled_fraction() >= CALM_FILL:
            return Rest(REST_SECONDS, 0.0, tap.filling())
        # What the bucket can't let go at once would wait behind the cap, and what that brings meanwhile be lost.
        blocks = max(1, int(min(FILLING_BLOCKS, self._desk.gate.bytes.depth / BLOCK_BYTES)))
        return Rest(REST_SECONDS, PATIENCE_SECONDS, tap.filling(blocks))
