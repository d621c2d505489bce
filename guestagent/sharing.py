"""One desk, several collectors that each get every frame: `mode = "replicate"` for streams.

    desk ──► fan-out ──► share ──► link ──► collector
                    └──► share ──► link ──► collector

The ledger counts a record as delivered once one collector acknowledged it; its block stays in the ring for the others,
as long as blocks that are kept so take no more than half of a ring. Then the older half of them is given up for whoever
lacks it, and counted in that collector's books. No payload is copied: all links send the same memory.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from guestagent.capture.tap import stale_records
from guestagent.desk import MOST_NOTE_CHARACTERS, Desk
from guestagent.governor.bucket import TokenBucket
from guestagent.model import Exclusion
from guestagent.runs import MOST_RUN_BYTES
from guestagent.tapstream import frames
from guestagent.tapstream.fanout import AWAY, LAGGING, FanOut, Place
from guestagent.tapstream.hello import AgentHello, CollectorHello, decode_counts
from guestagent.tapstream.lease import Lease
from guestagent.tapstream.session import Pending

log = logging.getLogger("guestagent.agent")

MOST_KEPT_FRACTION = 0.5
"""Of a ring, for those that lag: 12 s at low rates. The other half is for those that keep up."""
MOST_KEPT_BYTES = 4 << 20
"""Beside the ring: REPORTs, and what tells of each run of a block. On a VM without traffic that is over half an hour of
REPORTs, four minutes with 64 interfaces; they are cumulative, so little is lost with the older ones."""
NAME = "replicate"
"""Of all collectors together, where the tap asks who counted."""


class Sharing:
    """The collectors' shares of one desk."""

    def __init__(self, desk: Desk, collectors: int) -> None:
        self.desk = desk
        self.fanout = FanOut(collectors, desk.next_frame, self._stale)
        self.shares = tuple(Share(self, place, copy) for copy, place in enumerate(self.fanout.places, 1))

    def _stale(self, pending: Pending) -> tuple[int, int]:
        """Another one acknowledged this frame, and told of its stale records: few blocks need a walk."""
        loan = pending.loan
        if loan is None or not self.fanout.is_told_stale(loan.source.interface.id):
            return 0, 0
        return loan.source.interface.id, stale_records(loan)

    def settle(self) -> None:
        """Do what the collectors' acknowledgements allow."""
        desk, fanout = self.desk, self.fanout
        settled = desk.window.acknowledge(fanout.leader)
        desk.tap.settle((pending.loan for pending in settled), delivered=True, keep=True)
        desk.tap.note(NAME, "unsupported_gso", fanout.stale())
        desk.tap.give_back(pending.loan for pending in fanout.passed_by_all())
        desk.kept_frames = fanout.kept

    def relieve(self, cut: Callable[[int], bool]) -> None:
        """Give back what fills the ring for those that lag. `cut` ends a collector's connection, if one stands."""
        while self.fanout.kept and self._is_too_much():
            sequence = self.fanout.middle()
            for at, place in enumerate(self.fanout.places):
                if place.passed < sequence:
                    self.fanout.give_up(place, sequence, LAGGING if cut(at) else AWAY)
            self.settle()

    def _is_too_much(self) -> bool:
        return self.desk.tap.kept_fraction() > MOST_KEPT_FRACTION or self.fanout.beside_bytes > MOST_KEPT_BYTES

    def noted(self) -> None:
        """Pass on what the collectors remark."""
        self.desk.collector_note = "; ".join(share.note for share in self.shares if share.note)

    def finish(self) -> None:
        """The run ends: close each collector's books."""
        self.fanout.finish()
        self.settle()

    def describe(self, at: int) -> dict[str, Any]:
        """The books of one collector, for status and reports."""
        return self.fanout.describe(self.fanout.places[at])


class Share:
    """One collector's side of the desk (links.owner.LinkOwner)."""

    def __init__(self, sharing: Sharing, place: Place, copy: int) -> None:
        self.note = ""
        self._copy = copy
        self._sharing, self._place, self._desk = sharing, place, sharing.desk
        self._bucket = TokenBucket()
        self._exclusion: Exclusion | None = None
        self._collector_id = ""

    def hello(self) -> AgentHello:
        """This run, as of now, and as this collector knows it."""
        acknowledged = {self._collector_id: self._place.acknowledged} if self._collector_id else {}
        first = self._place.passed + 1  # what is held beside that is for the others
        return replace(self._desk.hello(), first_sequence=first, acknowledged=acknowledged, copy=self._copy)

    def exclude(self, exclusion: Exclusion) -> None:
        """The others' connections stay among the last few that are left out, however often this one is made anew."""
        self._exclusion = exclusion
        others = [one._exclusion for one in self._sharing.shares if one is not self and one._exclusion]
        for one in (*others, exclusion):
            self._desk.exclude(one)

    def readmit(self, exclusion: Exclusion) -> None:
        """Capture again what was left out."""
        self._desk.readmit(exclusion)

    def resumed(self, answer: CollectorHello) -> None:
        """Settle what this collector holds, send it the rest from the start."""
        self._collector_id = answer.collector_id
        self._sharing.fanout.resume(self._place, answer.held_sequence, answer.taken_sequence)
        self._tell_stale(answer.unsupported_gso)
        self._sharing.settle()

    def _tell_stale(self, counts: dict[int, int]) -> None:
        """Of interfaces that the run has; a peer may name a hundred thousand."""
        ledgers = self._desk.tap.ledgers
        self._place.tell_stale({at: count for at, count in counts.items() if at in ledgers})

    def next_frame(self, now: float) -> Pending | None:
        """The next frame that this collector lacks; none while the desk is held, or the loop detector would see it."""
        if self._desk.is_held:
            return None
        return self._sharing.fanout.next_frame(self._place, now)

    def allowance(self, now: float) -> float:
        """How many bytes may leave for this collector: the desk's cap is that of one copy, and each has its own."""
        self._bucket.set_rate(now, self.cap_bytes_per_second)
        room_bytes = self._bucket.available(now)
        if room_bytes <= 0:
            opens_at = self._bucket.ready_at(now, MOST_RUN_BYTES)
            self._desk.gate_opens_at = min(self._desk.gate_opens_at, opens_at)
        return room_bytes

    @property
    def cap_bytes_per_second(self) -> float:
        """Of one copy."""
        return self._desk.cap_bytes_per_second

    def spent(self, wire_bytes: float, further_packets: int = 0) -> None:
        """So many left, with the headers of the packets that carry them; a stream counts no further packets."""
        self._bucket.spend(wire_bytes)

    def leased(self, lease: Lease, now: float) -> None:
        """One collector can't speak for the others: the config takes no `dedupe` beside them."""

    def acknowledged(self, sequence: int, collector_id: str, notes: dict[str, Any]) -> None:
        """Settle what this collector made safe."""
        self._sharing.fanout.acknowledge(self._place, sequence)
        self._tell_stale(decode_counts(notes.get("unsupported_gso", {})))
        self._sharing.settle()
        note = frames.printable(str(notes.get("note", ""))[:MOST_NOTE_CHARACTERS])
        if note != self.note:
            self.note = note
            self._sharing.noted()
            if note:
                log.warning("collector %s says: %s", collector_id, note)

    def link_changed(self, connected: bool, text: str) -> None:
        """Say how the link is."""
        self._desk.link_changed(connected, text)
