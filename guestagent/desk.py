"""What the link asks of the agent: it holds the window of numbered frames, the ring's loans and the exclusions."""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

from guestagent import __version__, identity
from guestagent.capture.engine import Capture
from guestagent.capture.tap import Loan, Tap
from guestagent.errors import ConfigError
from guestagent.governor.bucket import Gate
from guestagent.model import KEPT_EXCLUSIONS, Exclusion, Interface, Selection
from guestagent.runs import MOST_RUN_BYTES, block_frame, split
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind, ProtocolError
from guestagent.tapstream.hello import MOST_COLLECTORS, AgentHello, CollectorHello, decode_counts, encode_interface
from guestagent.tapstream.lease import Lease
from guestagent.tapstream.session import Pending, SendWindow

log = logging.getLogger("guestagent.agent")

RUN_ID_BYTES = 16
"""From os.urandom: importing `secrets` would bring in OpenSSL, 4 MB."""
MOST_NOTE_CHARACTERS = 200


class Desk:
    """The owner of the link (links.owner.LinkOwner): frames out, acknowledgements in, every block on loan accounted."""

    def __init__(
        self, capture: Capture, agent_id: str, dedupe: str = "", tags: Mapping[str, str] | None = None
    ) -> None:
        self.capture = capture
        self.tap = Tap(capture.sources)
        self.window = SendWindow()
        self.agent_id = agent_id
        self.cloud = ""
        """What the metadata service says of this VM, once it has answered."""
        self._dedupe = dedupe
        self._tags = dict(tags or {})
        self.run_id = os.urandom(RUN_ID_BYTES).hex()
        self.swaps_ns: deque[int] = deque(maxlen=16)
        """When the capture filter was swapped, wall clock."""
        self.is_held = False
        """While the loop detector looks, and at the end of the drain, no new frame goes out."""
        self._was_capped = False
        self.gate = Gate(time.monotonic())
        """The caps on what leaves."""
        self.gate_opens_at = inf
        """When what waits for a cap may leave; infinite where nothing waits for one."""
        self.selection = capture.wish.selection
        """What the filter in force keeps."""
        self._peers_until = inf
        self._rest: Loan | None = None
        """Of a block that leaves in several runs."""
        self.kept_frames = 0
        """Frames that one collector has and another waits for, where each gets every frame."""
        self.collector_note = ""
        """What the collector remarks with its acknowledgements, such as a full disk."""
        self._acknowledged: dict[str, int] = {}
        """The last sequence that each collector acknowledged, the latest collector last."""
        self._started_ns = time.time_ns()
        self._exclusions: deque[Exclusion] = deque(maxlen=KEPT_EXCLUSIONS)
        self._is_ending = False
        self._tunnels: Counter[Exclusion] = Counter()
        """Exclusions that hold until they are readmitted, and how many tunnels share each."""
        self._others: tuple[Exclusion, ...] = ()
        self.tell: Callable[[Sequence[Exclusion]], None] = lambda _own: None
        """Called with our own exclusions, for other agents on this host to know them."""

    def hello(self) -> AgentHello:
        """This run, as of now."""
        return AgentHello(
            agent_id=self.agent_id,
            run_id=self.run_id,
            host=identity.host_name(),
            version=__version__,
            layout=self.tap.sources[0].layout,
            ring_bytes=self.tap.ring_bytes,
            started_ns=self._started_ns,
            first_sequence=self.window.first_sequence,
            interfaces=tuple(source.interface for source in self.tap.sources),
            cloud=self.cloud,
            dedupe=self._dedupe,
            acknowledged=dict(self._acknowledged),
            tags=self._tags,
        )

    def exclude(self, exclusion: Exclusion) -> None:
        """Leave one more connection of ours out of the capture."""
        if not exclusion.local_port or exclusion.last_local_port:
            self._tunnels[exclusion] += 1
            if self._tunnels[exclusion] > 1:
                return
        else:
            if exclusion in self._exclusions:  # still in use, so it moves to the end
                self._exclusions.remove(exclusion)
            self._exclusions.append(exclusion)
        self._leave_out_ours()

    def _leave_out_ours(self) -> None:
        self._attach(self.capture, self.selection)
        self.tell((*self._tunnels, *self._exclusions))

    def leave_out(self, others: tuple[Exclusion, ...]) -> None:
        """Leave the connections of other agents on this host out of the capture."""
        if others != self._others:
            self._others = others
            self._attach(self.capture, self.selection)

    def readmit(self, exclusion: Exclusion) -> None:
        """Capture again what was left out for a sensor that has moved."""
        if exclusion in self._tunnels:
            self._tunnels[exclusion] -= 1
            if not self._tunnels[exclusion]:
                del self._tunnels[exclusion]
                self._leave_out_ours()

    def reject_all(self) -> None:
        """Let nothing new in, whatever connection of ours is still made."""
        self._is_ending = True
        self.tap.reject_all()

    # -- the filter -----------------------------------------------------------------------------------------------

    def select(self, selection: Selection) -> None:
        """Keep this much of the traffic from now on; peers on lease stay as they are. Raises ConfigError as `renew`."""
        self.renew(self.capture, selection)

    def renew(self, capture: Capture, selection: Selection) -> None:
        """Filter by another wish. Raises ConfigError where the kernel refuses it; then the old one stays."""
        try:
            self._attach(capture, selection._replace(peers=self.selection.peers))
        except ConfigError:
            self._attach(self.capture, self.selection)
            raise
        self.capture = capture

    def leased(self, lease: Lease, now: float) -> None:
        """Leave incoming packets of these addresses to their own agents, for as long as the collector says."""
        if self._dedupe:
            self._peers_until = now + lease.seconds if lease.peers else inf
            self._leave_to(lease.peers)

    def tick(self, now: float) -> None:
        """A lease that was not renewed is over."""
        if now >= self._peers_until:
            self._peers_until = inf
            self._leave_to(())

    def deadline(self) -> float:
        """When the lease ends, or what waits for a cap may leave."""
        return min(self._peers_until, self.gate_opens_at)

    def _leave_to(self, peers: tuple[str, ...]) -> None:
        if peers != self.selection.peers:
            self._attach(self.capture, self.selection._replace(peers=peers))

    def _attach(self, capture: Capture, selection: Selection) -> None:
        """Without the compares of a lease, then without those of other agents, where the kernel refuses more."""
        try:
            self._swap(capture, selection)
        except ConfigError as error:
            if selection.peers:
                log.warning("no room for the compares of a lease, copying its peers' packets: %s", error)
                self._dedupe = ""
            elif self._others:
                log.warning("no room for %d connections of other agents: %s", len(self._others), error)
                self._others = ()
            else:
                raise
            self._attach(capture, selection._replace(peers=()))

    def _swap(self, capture: Capture, selection: Selection) -> None:
        if self._is_ending:
            return
        for source in self.tap.sources:
            source.attach(
                capture.program(source.interface.id, (*self._tunnels, *self._exclusions, *self._others), selection)
            )
            source.pause(selection.paused)
        self.selection = selection
        self.swaps_ns.append(time.time_ns())

    # -- the way out ----------------------------------------------------------------------------------------------

    def resumed(self, answer: CollectorHello) -> None:
        """A collector took the run: what it holds is settled, the rest goes out again."""
        if answer.held_sequence is None:
            self.tap.forget(answer.collector_id)
        else:
            self._settle(answer.held_sequence, answer.collector_id, answer.unsupported_gso)
        self.window.rewind()

    def next_frame(self, now: float) -> Pending | None:
        """The next numbered frame, made from the next block where none waits, as soon as the caps allow one."""
        if self.is_held:
            return None
        room_bytes, room_packets = self.gate.room(now)
        if room_packets < 1:
            self._wait_for_gate(now)
            return None
        if not self.window.unsent:
            whole = self._rest or self.tap.take()
            if whole is None:
                return None
            run, self._rest = split(whole, room_bytes, room_packets)
            is_first = run.start == run.block.start
            body = None if is_first else run.block.memory[run.start : run.end]
            self.window.add(Kind.BLOCK, partial(block_frame, run), run, body)
        pending = self.window.send_next()
        if pending and pending.loan:
            self.gate.packets.spend(pending.loan.records)
        return pending

    def allowance(self, now: float) -> float:
        """How many bytes may leave at this moment."""
        room_bytes = self.gate.bytes.available(now)
        if room_bytes <= 0:
            self._wait_for_gate(now)
        return room_bytes

    @property
    def cap_bytes_per_second(self) -> float:
        """The cap in force."""
        return self.gate.bytes.rate

    def _wait_for_gate(self, now: float) -> None:
        self.gate_opens_at = min(self.gate_opens_at, self.gate.ready_at(now, MOST_RUN_BYTES, MOST_RUN_BYTES))

    def spent(self, wire_bytes: float, further_packets: int = 0) -> None:
        """So many left, with the headers of the packets that carry them; and packets beyond one for each record."""
        self.gate.spend(wire_bytes, further_packets)

    def acknowledged(self, sequence: int, collector_id: str, notes: dict[str, Any]) -> None:
        """Settle what a collector made safe."""
        self._settle(sequence, collector_id, decode_counts(notes.get("unsupported_gso", {})))
        self.tap.note(collector_id, "lost_on_link", decode_counts(notes.get("lost_on_link", {})))
        self.collector_note = frames.printable(str(notes.get("note", ""))[:MOST_NOTE_CHARACTERS])
        if self.collector_note:
            log.warning("collector %s says: %s", collector_id, self.collector_note)

    def _settle(self, sequence: int, collector_id: str, unsupported: dict[int, int]) -> None:
        if sequence > self.window.highest_sent:
            raise ProtocolError(f"it acknowledges frame {sequence}, which was never sent")
        self._acknowledged[collector_id] = max(sequence, self._acknowledged.pop(collector_id, 0))
        if len(self._acknowledged) > MOST_COLLECTORS:
            del self._acknowledged[next(iter(self._acknowledged))]
        self.tap.settle((pending.loan for pending in self.window.acknowledge(sequence)), delivered=True)
        self.tap.note(collector_id, "unsupported_gso", unsupported)

    def link_changed(self, connected: bool, text: str) -> None:
        """Say how the link is."""
        if connected:
            log.info("%s", text)
        else:
            log.warning("%s", text)

    def interface_changed(self, interface: Interface) -> None:
        """Tell the collector of new facts."""
        self.window.add_info(interface.id, encode_interface(interface))

    def last_call(self) -> None:
        """No new frame goes out any more; what waits for a cap now will be lost to it."""
        if not self.is_held:
            self.is_held, self._was_capped = True, self.gate_opens_at < inf

    @property
    def is_settled(self) -> bool:
        """Is nothing left that a collector could still acknowledge?"""
        return not (self.window.in_flight if self.is_held else len(self.window)) and not self.kept_frames

    def abandon(self) -> None:
        """The run ends: what nobody acknowledged is lost on the link, or to the cap that it waited for."""
        capped = self._was_capped or self.gate_opens_at < inf
        sent: list[Loan | None] = []
        waiting = [self._rest]
        for pending in self.window.abandon():
            (sent if pending.sequence <= self.window.highest_sent else waiting).append(pending.loan)
        self.tap.settle(sent, delivered=False)
        self.tap.settle(waiting, delivered=False, capped=capped)
        self._rest = None
        self.tap.abandon_rest(capped=capped)
