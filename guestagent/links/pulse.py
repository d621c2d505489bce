"""Is the collector alive, and does what we send get through? Pure: what the kernel counts, and time, are arguments."""

from enum import Enum, auto

from guestagent.links.ramp import USUAL_PAYLOAD_BYTES

PING_SECONDS = 1.0
LARGE_BYTES = 1200
"""What a path that swallows large packets alone lets through is shorter."""
LOSS_LOOK_SECONDS = 1.0
LOSSY_SHARE, FEWEST_RESENT = 0.02, 5
"""Of the segments of a second; a clean path sends again none in a thousand."""


class Sign(Enum):
    """What a look at a connection says."""

    WELL = auto()
    QUIET = auto()
    """Nothing was heard for PING_SECONDS: ask."""
    SILENT = auto()
    SWALLOWED = auto()
    """The peer's kernel has acknowledged nothing of ours since its hello: small packets passed, large ones do not."""


class Pulse:
    """Of one connection that stands."""

    def __init__(self, silence_seconds: float) -> None:
        self._silence_seconds = silence_seconds
        self._heard_at = self._checked_at = 0.0
        self._taken_bytes = self._greeted_bytes = self._asked_bytes = 0
        self._swallow_seconds = PING_SECONDS
        self._is_welcome = False

    @property
    def due_at(self) -> float:
        """When to look next."""
        return max(self._heard_at, self._checked_at) + PING_SECONDS

    def heard(self, now: float) -> None:
        """The peer said something."""
        self._heard_at, self._asked_bytes = now, 0

    def asked(self, position_bytes: int) -> None:
        """A ping goes out, which ends so far behind the beginning of the stream."""
        self._asked_bytes = self._asked_bytes or position_bytes

    def welcomed(self, now: float, sent_bytes: int, took_seconds: float = 0.0) -> None:
        """The peer took the run, so long after it was asked; of so many bytes it has got all that it needed."""
        self._swallow_seconds = max(PING_SECONDS, 2 * took_seconds)  # a path may be long
        self._heard_at, self._greeted_bytes, self._is_welcome = now, sent_bytes, True

    def look(self, now: float, sent_bytes: int, queued_bytes: int) -> Sign:
        """`queued_bytes` of what was sent are in the kernel and not acknowledged by the peer's.

        On a slow path a ping waits behind data; as long as it does, bytes that the peer's kernel takes are a sign of
        life. A kernel takes bytes for a process that hangs, too, until its buffer is full.
        """
        self._checked_at = now
        before, self._taken_bytes = self._taken_bytes, sent_bytes - queued_bytes
        if before < self._taken_bytes < self._asked_bytes:
            self._heard_at = max(self._heard_at, now - PING_SECONDS)
        quiet_seconds = now - self._heard_at
        if self._is_welcome and self._taken_bytes <= self._greeted_bytes and queued_bytes >= LARGE_BYTES:
            return Sign.SWALLOWED if quiet_seconds >= self._swallow_seconds else Sign.WELL
        if quiet_seconds >= self._silence_seconds:
            return Sign.SILENT
        return Sign.QUIET if quiet_seconds >= PING_SECONDS else Sign.WELL


class Loss:
    """How much of what goes out has to be sent again, over all connections of a run."""

    def __init__(self) -> None:
        self.resent = 0
        """Segments so far."""
        self._of_connection = 0
        self.due_at = 0.0
        self._before = (0, 0)

    def counted(self, of_connection: int) -> None:
        """The kernel's count of this connection."""
        self.resent += max(0, of_connection - self._of_connection)
        self._of_connection = of_connection

    def new_connection(self) -> None:
        """The count begins anew."""
        self._of_connection = 0

    def look(self, now: float, sent_bytes: int) -> str:
        """What is wrong with the path by the last LOSS_LOOK_SECONDS, empty where it is fine."""
        resent, sent = self.resent - self._before[0], (sent_bytes - self._before[1]) // USUAL_PAYLOAD_BYTES
        self.due_at, self._before = now + LOSS_LOOK_SECONDS, (self.resent, sent_bytes)
        if resent < FEWEST_RESENT or resent < LOSSY_SHARE * (sent + resent):
            return ""
        return f"the path loses packets: {resent} retransmissions beside {sent} segments in a second"
