"""What the link asks of the agent: it holds the window of numbered frames, the ring's loans and the exclusions."""

import logging
import os
import time
from collections import deque
from functools import partial
from typing import Any

from guestagent import __version__, identity
from guestagent.capture.engine import Capture
from guestagent.capture.tap import Tap
from guestagent.model import Exclusion, Interface
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind, ProtocolError
from guestagent.tapstream.hello import AgentHello, CollectorHello, decode_counts, encode_interface
from guestagent.tapstream.session import Pending, SendWindow

log = logging.getLogger("guestagent.agent")

RUN_ID_BYTES = 16
"""From os.urandom: importing `secrets` would bring in OpenSSL, 4 MB."""
KEPT_EXCLUSIONS = 4
"""Closed connections of ours may still say FIN or be answered by RST; the last few stay left out."""
MOST_NOTE_CHARACTERS = 200


class Desk:
    """The owner of the link (links.owner.LinkOwner): frames out, acknowledgements in, every block on loan accounted."""

    def __init__(self, capture: Capture, agent_id: str) -> None:
        self.capture = capture
        self.tap = Tap(capture.sources)
        self.window = SendWindow()
        self.agent_id = agent_id
        self.run_id = os.urandom(RUN_ID_BYTES).hex()
        self.swaps_ns: deque[int] = deque(maxlen=16)
        """When the capture filter was swapped, wall clock."""
        self.is_held = False
        """While the loop detector looks, no new frame goes out."""
        self.collector_note = ""
        """What the collector remarks with its acknowledgements, such as a full disk."""
        self._started_ns = time.time_ns()
        self._exclusions: deque[Exclusion] = deque(maxlen=KEPT_EXCLUSIONS)

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
        )

    def exclude(self, exclusion: Exclusion) -> None:
        """Leave one more connection of ours out of the capture."""
        self._exclusions.append(exclusion)
        for source in self.tap.sources:
            source.attach(self.capture.program(source.interface.id, tuple(self._exclusions)))
        self.swaps_ns.append(time.time_ns())

    def resumed(self, answer: CollectorHello) -> None:
        """A collector took the run: what it holds is settled, the rest goes out again."""
        if answer.held_sequence is not None:
            self._settle(answer.held_sequence, answer.collector_id, answer.unsupported_gso)
        self.window.rewind()

    def next_frame(self) -> Pending | None:
        """The next numbered frame, made from the next block where none waits."""
        if self.is_held:
            return None
        if not self.window.unsent:
            loan = self.tap.take()
            if loan is None:
                return None
            source, block = loan
            self.window.add(
                Kind.BLOCK,
                lambda sequence: frames.write_block_header(
                    block.memory,
                    block.start,
                    block.end,
                    interface=source.interface.id,
                    sequence=sequence,
                    records=block.records,
                    flags=frames.FLAG_LAST_OF_BLOCK,
                ),
                loan,
            )
        return self.window.send_next()

    def acknowledged(self, sequence: int, collector_id: str, notes: dict[str, Any]) -> None:
        """Settle what a collector made safe."""
        self._settle(sequence, collector_id, decode_counts(notes.get("unsupported_gso", {})))
        self.collector_note = frames.printable(str(notes.get("note", ""))[:MOST_NOTE_CHARACTERS])
        if self.collector_note:
            log.warning("collector %s says: %s", collector_id, self.collector_note)

    def _settle(self, sequence: int, collector_id: str, unsupported: dict[int, int]) -> None:
        if sequence > self.window.highest_sent:
            raise ProtocolError(f"it acknowledges frame {sequence}, which was never sent")
        self.tap.settle((pending.loan for pending in self.window.acknowledge(sequence)), delivered=True)
        self.tap.note_unsupported(collector_id, unsupported)

    def link_changed(self, connected: bool, text: str) -> None:
        """Say how the link is."""
        if connected:
            log.info("%s", text)
        else:
            log.warning("%s; the ring holds on", text)

    def interface_changed(self, interface: Interface) -> None:
        """Tell the collector of new facts."""
        self.window.add(Kind.INFO, partial(_info_frame, interface))

    def abandon(self) -> None:
        """The run ends: what nobody acknowledged is lost on the link."""
        self.tap.settle((pending.loan for pending in self.window.abandon()), delivered=False)
        self.tap.abandon_rest()


def _info_frame(interface: Interface, sequence: int) -> bytes:
    return frames.encode_json(Kind.INFO, encode_interface(interface), sequence=sequence)
