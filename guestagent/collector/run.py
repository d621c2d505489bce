"""One run of one agent at this collector: its place in the sequence, its counts, its track into the sink.

A connection comes and goes; the run stays until its BYE, or until the agent's next run shows that it died.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

from guestagent.capture.block import MalformedBlock
from guestagent.collector.fidelity import Fidelity, utc
from guestagent.collector.leases import Member
from guestagent.collector.sinks.outlet import Spout
from guestagent.collector.sinks.track import Resume, Track
from guestagent.model import MOST_INTERFACES, Interface
from guestagent.tapstream.frames import SEQUENCED, Frame, Kind, ProtocolError, decode_block, decode_json
from guestagent.tapstream.hello import AgentHello, decode_interface
from guestagent.tapstream.session import AckClock, ReceiveState

log = logging.getLogger("guestagent.collector")

TWIN_SECONDS = 3.0
"""What a machine had sent before it was reset is read so long after its next run began, and an agent reports each
second: whoever speaks later lives."""


class Run:
    """Takes the numbered frames of a run in any order of connections; writes each once."""

    def __init__(self, hello: AgentHello, track: Track, resume: Resume | None, spouts: Sequence[Spout] = ()) -> None:
        self.hello = hello
        self.member = Member(hello)
        self.fidelity = Fidelity(is_known=resume is None)
        self.track = track
        self._spouts = spouts
        self.known_before = resume is not None
        self.place = ReceiveState(hello.first_sequence - 1)
        if resume:
            self.place = ReceiveState(resume.sequence, resume.sequence, unsupported_gso=dict(resume.stale))
        self.acks = AckClock(hello.ring_bytes)
        self.acknowledged_sequence = self.place.held_sequence
        self._safe_sequence = self.place.taken_sequence
        """The last frame that was taken and is safe; where frames were skipped, `acknowledged_sequence` is beyond."""
        self.safe_stale = dict(self.place.unsupported_gso)
        """Stale records up to there: what the agent is told, for of the others it may give up the frames."""
        self.received = self.received_bytes = self.written = self.malformed = 0
        self.last_frame_ns = hello.started_ns
        self.broken_ns = 0
        """When the connection was lost without a BYE; 0 while it stands or after a BYE."""
        self.heir: Run | None = None
        """The latest run that began under its agent's name while it streamed."""
        self.begun_at = self._heard_at = time.monotonic()
        self._is_twin_told = False
        self.ended = False

    def resume_at(self, hello: AgentHello, collector_id: str) -> int | None:
        """The sequence to answer to a hello of this run: what is safe, not what waits in memory; None for nothing.

        What another collector has is skipped, and was never held: the agent may not hear this answer, and asks again.
        """
        for facts in hello.interfaces:
            if not self.track.knows(facts.id):
                self._describe(facts)
        is_safe = self._make_safe()
        self.broken_ns = 0
        if self.place.skip_to(hello.first_sequence - 1, hello.acknowledged.get(collector_id, 0)) and is_safe:
            self.acknowledged_sequence = self.place.held_sequence
        return self._safe_sequence or None

    def _describe(self, facts: Interface) -> None:
        """Each mark lists all interfaces of the run, so there is a bound to them."""
        if not self.track.knows(facts.id) and self.track.interface_count == MOST_INTERFACES:
            raise ProtocolError(f"a run with more than {MOST_INTERFACES} interfaces")
        self.track.interface(facts)
        for spout in self._spouts:
            spout.interface(facts)

    def frame(self, frame: Frame, now: float) -> None:
        """Take one numbered frame. Raises ProtocolError or MalformedBlock; then the run stands where it stood."""
        if frame.kind not in SEQUENCED:
            raise ProtocolError(f"a {Kind(frame.kind).name} frame has no place in a run")
        if frame.sequence == 0:
            raise ProtocolError("frames of a run are numbered from 1")
        if not self.place.is_new(frame.sequence):
            return
        self._TAKERS[Kind(frame.kind)](self, frame, now)
        self.place.hold(frame.sequence)
        self.track.mark(self.place.held_sequence, self.place.unsupported_gso)
        self.last_frame_ns, self._heard_at = time.time_ns(), now
        self.acks.received(len(frame.payload), now)

    def _take_block(self, frame: Frame, now: float) -> None:
        count, records = decode_block(frame)
        if not self.track.knows(frame.interface):
            raise ProtocolError(f"a BLOCK of interface {frame.interface}, which no hello or INFO named")
        try:
            packets, stale = self.track.records(frame.interface, records, count)
        except MalformedBlock:
            self.malformed += 1
            raise
        for spout in self._spouts:
            spout.records(frame.interface, records, count)
        self.received += count
        self.received_bytes += len(records)
        self.written += packets
        if stale:
            counts = self.place.unsupported_gso
            counts[frame.interface] = counts.get(frame.interface, 0) + stale

    def _take_report(self, frame: Frame, now: float) -> None:
        report = decode_json(frame)
        self.member.reported(report, now)
        remark = self.fidelity.reported(report, time.time_ns())
        try:
            self.track.report(report)
        except RecursionError:  # what json can just decode it can't always encode
            raise ProtocolError("a REPORT frame that is nested too deep") from None
        if remark:
            self.track.remark(remark, lasts=self.fidelity.is_reduced)
        if self.is_twin and not self._is_twin_told:
            self._is_twin_told = True
            log.warning("two agents stream under the name %s: give each an agent_id of its own", self.hello.agent_id)

    def _take_info(self, frame: Frame, now: float) -> None:
        facts = decode_interface(decode_json(frame).get("interface"))
        self._describe(facts)
        self.member.described(facts)

    _TAKERS = {Kind.BLOCK: _take_block, Kind.REPORT: _take_report, Kind.INFO: _take_info}  # noqa: RUF012

    def flush(self, now: float) -> bool:
        """Make everything taken so far safe; False where the sink can't take it now."""
        done = self._make_safe()
        if done:
            self.track.turn_page(now)
        return done

    def _make_safe(self) -> bool:
        done = self.track.flush()
        if done:
            self.acknowledged_sequence = self.place.held_sequence
            self._safe_sequence = self.place.taken_sequence
            self.safe_stale = dict(self.place.unsupported_gso)
        return done

    def notes(self) -> dict[str, Any]:
        """What an ACK carries besides its sequence."""
        notes: dict[str, Any] = {}
        if self.safe_stale:
            notes["unsupported_gso"] = {str(key): value for key, value in self.safe_stale.items()}
        if self.track.output.blocked_by:
            notes["note"] = f"the collector can't write: {self.track.output.blocked_by}"
        return notes

    @property
    def is_dead(self) -> bool:
        """Did its agent begin another run, and this one say nothing since? Then the machine was reset."""
        return self.heir is not None and self._heard_at <= self.heir.begun_at + TWIN_SECONDS

    @property
    def is_twin(self) -> bool:
        """Does it stream beside another run of its name? Clones of a machine share an agent id, as do agents on one."""
        other = self.heir
        return other is not None and not (self.is_dead or self.broken_ns or other.broken_ns or other.ended)

    def end(self, reason: str) -> None:
        """The run is over. Raises RunError where its last words can't be written; all is closed then, too."""
        if not self.ended:
            self.ended = True
            self.fidelity.ended(self.last_frame_ns)
            for spout in self._spouts:
                spout.close()
            self.track.end(reason)

    def unclean_end(self, next_ns: int) -> dict[str, Any]:
        """The gap that an agent left that died: nothing of it is held between these two times."""
        return {
            "run_id": self.hello.run_id,
            "last_held_ns": self.last_frame_ns,
            "gap_from": utc(self.last_frame_ns),
            "gap_until": utc(next_ns),
            "until_ns": next_ns,
        }
