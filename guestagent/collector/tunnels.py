"""The listeners of `--listen vxlan://...` and the other tunnels: foreign copies end in the sinks of our own agents.

Each sender becomes an agent whose records are made here, as the kernel would lay them out (capture.block.BlockWriter),
so that counting, files, TAP and relay know no difference. There is no acknowledgement: while a sink is blocked the
sockets are not read, and what then finds no room in them the kernel counts.
"""

import logging
import os
import time
from collections import Counter
from functools import partial
from typing import Any

from guestagent import __version__
from guestagent.capture.block import LAYOUT_VIRTIO, PACKET_HOST, PACKET_OUTGOING, BlockWriter
from guestagent.collector import foreign
from guestagent.collector.intake import MOST_DATAGRAM_BYTES, Intake, open_intakes
from guestagent.collector.registry import Registry
from guestagent.collector.run import Run
from guestagent.encap.decoded import MalformedTunnel
from guestagent.endpoint import Endpoint
from guestagent.errors import GuestagentError
from guestagent.loop import READABLE, Loop
from guestagent.model import Interface
from guestagent.tapstream.frames import BLOCK_PREFIX, BLOCK_PREFIX_BYTES, Frame, Kind
from guestagent.tapstream.hello import AgentHello

log = logging.getLogger("guestagent.collector")

TURN_BYTES = 1024 * 1024
TURN_MESSAGES = 1024
"""About 10 ms of work; then others have their turn."""
BLOCK_BYTES = 256 * 1024
MOST_SENDERS = 1024
"""Each has a run, and below a directory an open file."""
IDLE_SECONDS = 60.0
"""A sender that was silent so long makes room for another where there is none."""
MOST_FAULT_KINDS = 64
_ONE_PROTOCOL = {"gre", "erspan"}
RETRY_SECONDS = 0.05
"""How soon a full disk or a slow reader is tried again."""

Item = tuple[bytes | memoryview, int, int, int]
"""Frame, time in ns, original bytes, packet type."""


class Sender:
    """One source of copies: an address and a key."""

    def __init__(self, run: Run, now: float) -> None:
        self.run = run
        self.sequence = 0
        self.heard_at = now
        self.unsafe = 0
        """Frames that its sink was given and has not taken yet."""
        self.is_broken = False
        """Its sink raised at the last flush: it is given no more before it takes what it has."""


class Tunnels:
    """All tunnel listeners of a collector, and who sends to them."""

    def __init__(self, loop: Loop, registry: Registry) -> None:
        self._loop, self._registry = loop, registry
        self._intakes: list[Intake] = []
        self._senders: dict[tuple[str, str, int | None], Sender] = {}
        self._arena = memoryview(bytearray(TURN_BYTES + MOST_DATAGRAM_BYTES))
        self._block = memoryview(bytearray(BLOCK_BYTES))
        self._blocked: set[Sender] = set()
        """Those whose sink takes no more now; nothing is read meanwhile."""
        self.malformed: Counter[str] = Counter()
        """Datagrams that hold no copy, by kind of fault."""
        self.lost: Counter[str] = Counter()
        """Frames that came and went nowhere, by reason."""
        self.synthesised = 0
        """Frames that got an Ethernet header of ours."""

    def listen(self, endpoint: Endpoint) -> list[str]:
        """Open the sockets of one `--listen`; the addresses they got. Raises ConfigError, HostError."""
        opened = open_intakes(endpoint)
        for intake in opened:
            self._loop.watch(intake, READABLE, partial(self._ready, intake))
        self._intakes += opened
        schemes = {intake.scheme for intake in self._intakes}
        for intake in self._intakes:
            intake.leaves_others = intake.scheme in _ONE_PROTOCOL and schemes >= _ONE_PROTOCOL
        return [intake.name for intake in opened]

    # -- one turn of one socket -----------------------------------------------------------------------------------

    def _ready(self, intake: Intake, _events: int) -> None:
        if not self._blocked:
            self._turn(intake)

    def _turn(self, intake: Intake) -> None:
        now = self._loop.now()
        found: dict[tuple[str, str, int | None], list[Item]] = {}
        at = 0
        for _ in range(TURN_MESSAGES):
            message = intake.receive(self._arena[at : at + MOST_DATAGRAM_BYTES])
            if message is None:
                break
            size, time_ns, source, datagrams = message
            at += size
            for datagram in datagrams:
                self._read(intake.scheme, datagram, source, time_ns, found)
            if at >= TURN_BYTES:
                break
        for key, items in found.items():
            self._deliver(key, items, now)
        self._pause_if_blocked()

    def _read(
        self,
        scheme: str,
        datagram: memoryview,
        source: str,
        time_ns: int,
        found: dict[tuple[str, str, int | None], list[Item]],
    ) -> None:
        try:
            copy = foreign.read(scheme, datagram, source)
        except MalformedTunnel as fault:
            kind = foreign.kind_of_fault(str(fault))
            is_new = kind not in self.malformed and len(self.malformed) >= MOST_FAULT_KINDS
            self.malformed["other faults" if is_new else kind] += 1
            return
        self.synthesised += copy.is_synthesised
        kind_of_packet = PACKET_OUTGOING if copy.is_outgoing else PACKET_HOST
        item = (copy.frame, time_ns, copy.original_bytes, kind_of_packet)
        found.setdefault((scheme, copy.source, copy.key), []).append(item)

    def _deliver(self, key: tuple[str, str, int | None], items: list[Item], now: float) -> None:
        """The items of one sender as blocks of records into its run."""
        try:
            sender = self._senders.get(key) or self._admit(key, now)
        except (ValueError, GuestagentError) as error:
            reason = "too_many_senders" if isinstance(error, ValueError) else "sink_broken"
            if not self.lost[reason]:  # once: senders are a stranger's to invent
                log.error("%s can't be taken: %s", foreign.sender_name(*key), error)
            self.lost[reason] += len(items)
            return
        sender.heard_at = now
        if sender.is_broken:
            self._flush(sender, now)
        if sender.is_broken:
            self.lost["sink_broken"] += len(items)
            return
        writer = BlockWriter(self._block, BLOCK_PREFIX_BYTES)
        for item in items:
            if not _add(writer, item):
                self._take(sender, writer, now)
                writer = BlockWriter(self._block, BLOCK_PREFIX_BYTES)
                _add(writer, item)
        self._take(sender, writer, now)
        sender.unsafe += len(items)
        self._flush(sender, now)

    def _take(self, sender: Sender, writer: BlockWriter, now: float) -> None:
        start = writer.start - BLOCK_PREFIX_BYTES
        BLOCK_PREFIX.pack_into(self._block, start, writer.count)
        sender.sequence += 1
        sender.run.frame(Frame(Kind.BLOCK, 0, 0, sender.sequence, self._block[start : writer.end]), now)

    def _flush(self, sender: Sender, now: float) -> None:
        """What the sink can't take for good is the operator's to know; the other senders go on."""
        sender.is_broken = False
        try:
            if not sender.run.flush(now):
                self._blocked.add(sender)
                return
            sender.unsafe = 0
        except GuestagentError as error:
            log.error("%s: %s", sender.run.hello.agent_id, error)
            sender.is_broken = True
        self._blocked.discard(sender)

    def _give_up(self, sender: Sender, now: float) -> None:
        """It gets no more turn: what its sink does not take now is lost."""
        if sender.unsafe:
            self._flush(sender, now)
            self.lost["sink_broken" if sender.is_broken else "sink_full"] += sender.unsafe
            sender.unsafe = 0

    # -- senders --------------------------------------------------------------------------------------------------

    def _admit(self, key: tuple[str, str, int | None], now: float) -> Sender:
        """A sender that was not heard before. Raises ValueError for one too many, GuestagentError where no file is."""
        if len(self._senders) >= MOST_SENDERS:
            oldest = min(self._senders, key=lambda one: self._senders[one].heard_at)
            if now - self._senders[oldest].heard_at < IDLE_SECONDS:
                raise ValueError(f"{MOST_SENDERS} others send")
            gone = self._senders.pop(oldest)
            self._give_up(gone, now)
            self._registry.said_goodbye(gone.run, "it was silent")
        scheme, source, tunnel_key = key
        name = foreign.sender_name(scheme, source, tunnel_key)
        facts = Interface(0, scheme if tunnel_key is None else f"{scheme}-{tunnel_key}", "", 0)
        host = foreign.sender_name(scheme, source, None)
        hello = AgentHello(name, os.urandom(16).hex(), host, __version__, LAYOUT_VIRTIO, 0, time.time_ns(), 1, (facts,))
        run, _ = self._registry.open(hello)
        log.info("%s began to send", name)
        sender = self._senders[key] = Sender(run, now)
        return sender

    # -- time -----------------------------------------------------------------------------------------------------

    def _pause_if_blocked(self) -> None:
        for intake in self._intakes:
            self._loop.change(intake, 0 if self._blocked else READABLE)

    def tick(self, now: float) -> None:
        """Try blocked sinks again."""
        if self._blocked:
            for sender in list(self._blocked):
                self._flush(sender, now)
            self._pause_if_blocked()

    def deadline(self, now: float) -> float:
        """When `tick` is due."""
        return now + RETRY_SECONDS if self._blocked else float("inf")

    def describe(self) -> dict[str, Any]:
        """For status and report; empty where there are no tunnel listeners."""
        if not self._intakes:
            return {}
        return {
            "tunnels": {
                "listeners": [intake.describe() for intake in self._intakes],
                "senders": len(self._senders),
                "malformed": dict(self.malformed),
                "lost": dict(self.lost),
                "synthesised_ethernet": self.synthesised,
            }
        }

    def close(self) -> None:
        """Close the sockets; the registry ends the runs."""
        for sender in self._senders.values():
            self._give_up(sender, self._loop.now())
        for intake in self._intakes:
            self._loop.forget(intake)
            intake.close()


def _add(writer: BlockWriter, item: Item) -> bool:
    frame, time_ns, original_bytes, packet_type = item
    return writer.add(frame, time_ns, original_bytes=original_bytes, packet_type=packet_type)
