"""The link of `--to dir:PATH`: frames go straight to an embedded collector, with no wire in between.

Same frames, same window, same acknowledgements, so everything else of the agent is as it would be with a collector.
"""

from typing import Any, Protocol

from guestagent.links.owner import LinkOwner, LinkState, OnTheWire
from guestagent.tapstream.frames import HEADER, HEADER_BYTES, Frame
from guestagent.tapstream.hello import AgentHello, CollectorHello

RETRY_SECONDS = 0.05
"""How soon a full disk is tried again."""
MOST_FRAMES_PER_TURN = 8
"""2 MB of ring; per-packet work follows, and ticks must keep their time."""


class Receiver(Protocol):
    """What a run of the embedded collector offers."""

    def frame(self, frame: Frame, now: float) -> None:
        """Take one numbered frame."""

    def flush(self, now: float) -> bool:
        """Make it safe; False where the disk is full."""

    def notes(self) -> dict[str, Any]:
        """What an ACK would carry."""


class Embedded(Protocol):
    """The embedded collector."""

    def open(self, hello: AgentHello) -> tuple[Receiver, CollectorHello]:
        """Begin the run."""


class LocalLink:
    """See `links.owner.Link` for the contract."""

    on_the_wire = OnTheWire()

    def __init__(self, place: str, collector: Embedded, owner: LinkOwner, now: float) -> None:
        self.state = LinkState(True, f"writing to {place}")
        self._owner = owner
        self._run, answer = collector.open(owner.hello())
        self._collector_id = answer.collector_id
        self._held = 0
        self._retry_at = now
        self.is_blocked = False
        owner.resumed(answer)
        owner.link_changed(True, self.state.text)

    def deadline(self) -> float:
        """When `pump` tries a full disk again."""
        return self._retry_at if self.is_blocked else float("inf")

    def tick(self, now: float) -> None:
        """Nothing: the turn's pump tries a full disk again, where a fault of the capture is expected."""

    def pump(self, now: float) -> bool:
        """Write the next few frames and acknowledge them."""
        if self.is_blocked and (now < self._retry_at or not self._settle(now)):
            return False
        taken = 0
        while taken < MOST_FRAMES_PER_TURN and self._owner.allowance(now) > 0:
            pending = self._owner.next_frame(now)
            if pending is None:
                break
            whole = memoryview(pending.frame if pending.body is None else bytes(pending.frame) + pending.body)
            kind, flags, interface, _, sequence = HEADER.unpack_from(whole)
            self._run.frame(Frame(kind, flags, interface, sequence, whole[HEADER_BYTES:]), now)
            self.state.sent_bytes += len(whole)
            self._owner.spent(len(whole))
            self._held = sequence
            taken += 1
        return self._settle(now) and taken == MOST_FRAMES_PER_TURN

    def _settle(self, now: float) -> bool:
        done = self._run.flush(now)
        if self.is_blocked != (not done):
            self.is_blocked = not done
            note = str(self._run.notes().get("note", "writing again"))
            self._owner.link_changed(done, note if done else f"{note}; the ring holds on")
            self.state.connected, self.state.text = done, note
        if done:
            self._owner.acknowledged(self._held, self._collector_id, self._run.notes())
        else:
            self._retry_at = now + RETRY_SECONDS
        return done

    def retransmitted(self) -> int | None:
        """Nothing is sent."""
        return None

    def finish(self, reason: str) -> None:
        """Nothing to say; the desk closes the embedded collector."""

    def close(self) -> None:
        """Nothing to give back."""
