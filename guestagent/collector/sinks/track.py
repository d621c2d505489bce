"""A track: one run's packets, reports and marks on their way into a pcapng output.

All tracks of a shared file write through one output; in a directory each has its own. What a track queued is safe once
`flush` answered True.
"""

import mmap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestagent import __version__
from guestagent.capture.block import LAYOUT_VIRTIO
from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.sinks.output import Output
from guestagent.collector.sinks.wiresize import WireSizeEncoder
from guestagent.encap.segment import Segmenter
from guestagent.model import Interface
from guestagent.tapstream.hello import AgentHello


@dataclass(frozen=True, slots=True)
class Resume:
    """What an earlier collector process left of a run."""

    sequence: int
    stale: dict[int, int]


@dataclass(slots=True)
class Described:
    """How many interfaces one file describes; shared by the tracks that write to it."""

    count: int = 0


class Track:
    """One run's way into an output. Frames come in sequence; each is followed by its mark."""

    def __init__(
        self,
        hello: AgentHello,
        output: Output,
        described: Described,
        place: reader.RunPlace | None = None,
        *,
        wire_size: bool = False,
    ) -> None:
        self.hello = hello
        self.run_id = bytes.fromhex(hello.run_id)
        self.output = output
        self._described = described
        self._facts: dict[int, Interface] = {}
        self._indexes = dict(place.indexes) if place else {}
        self._written = dict(place.written) if place else {}
        self._tags = dict(place.tags) if place else {}
        self.segmenter = Segmenter()
        """It counts nothing unless frames are cut to wire size."""
        self._encoder: pcapng.PacketEncoder | WireSizeEncoder
        if wire_size:
            self._encoder = WireSizeEncoder(hello.layout, self.segmenter)
        else:
            self._encoder = pcapng.PacketEncoder(has_virtio=hello.layout == LAYOUT_VIRTIO)
        self._last_report: dict[str, Any] = {}
        self._remark = ""
        """What limits the copy, for readers that know nothing of ours; empty while nothing does."""
        self._unsaid: dict[int, str] = {}
        """Remarks by interface that wait for its next packet."""
        self._last_mark: tuple[int, dict[int, int]] = (place.sequence, place.stale) if place else (0, {})
        for facts in hello.interfaces:
            self.interface(facts)

    def interface(self, facts: Interface) -> None:
        """Describe an interface, unless the file says so already; one that changed is described anew, for what follows.

        Descriptions can't be changed in place, so its packets from here on have another index.
        """
        self._facts[facts.id] = facts
        description = pcapng.interface(facts, self.hello.agent_id, self.hello.host, self.run_id)
        tag = pcapng.tag_of(description)
        if facts.id in self._indexes:
            if self._tags.get(facts.id, tag) == tag:
                return
            self._conclude(facts.id, {}, "the interface changed and is described anew")
        self._indexes[facts.id], self._tags[facts.id], self._written[facts.id] = self._described.count, tag, 0
        self._described.count += 1
        self.output.write(description)

    def knows(self, interface_id: int) -> bool:
        """Was this interface described?"""
        return interface_id in self._facts

    @property
    def interface_count(self) -> int:
        """How many interfaces were described."""
        return len(self._facts)

    def records(self, interface_id: int, records: memoryview, count: int) -> tuple[int, int]:
        """Queue a run of records; (packets, stale records). Raises MalformedBlock, and nothing was queued."""
        index = self._indexes[interface_id]
        data, packets, stale = self._encoder.encode(records, count, index)
        if self._unsaid and packets and (remark := self._unsaid.pop(interface_id, "")):
            data = pcapng.commented(data, remark)
        self.output.write(data)
        self._written[interface_id] = self._written.get(interface_id, 0) + packets
        return packets, stale

    def report(self, value: dict[str, Any]) -> None:
        """Queue an agent's REPORT and keep it for the statistics at the end."""
        self.output.write(pcapng.report(self.run_id, value))
        self._last_report = value

    def remark(self, text: str, *, lasts: bool) -> None:
        """Say it with the next packet of each interface; what lasts is said again in each following file."""
        self._remark = text if lasts else ""
        self._unsaid = dict.fromkeys(self._facts, text)

    def mark(self, sequence: int, stale: dict[int, int]) -> None:
        """Queue the mark that closes a frame."""
        self._last_mark = (sequence, stale)
        rows = [
            (one, self._tags.get(one, 0), self._indexes[one], stale.get(one, 0), self._written.get(one, 0))
            for one in self._facts
        ]
        self.output.write(pcapng.mark(self.run_id, sequence, self.output.size, self._described.count, rows))

    def statistics(self, comment: str) -> None:
        """Queue what each interface counted."""
        ledgers = self._last_report.get("interfaces", {})
        for identifier in self._facts:
            counters = ledgers.get(str(identifier)) if isinstance(ledgers, dict) else None
            pairs = counters.items() if isinstance(counters, dict) else ()
            numbers = {key: value for key, value in pairs if type(value) is int and 0 <= value < 1 << 63}
            said = "; ".join(filter(None, (comment, self._unsaid.get(identifier))))
            self._conclude(identifier, numbers, said)

    def _conclude(self, identifier: int, counters: dict[str, int], comment: str) -> None:
        index, written = self._indexes[identifier], self._written.get(identifier, 0)
        self.output.write(pcapng.statistics(index, time.time_ns(), counters, written, comment))

    @property
    def checksums(self) -> tuple[int, int]:
        """Partial checksums (completed, left as they were)."""
        return self._encoder.checksums_completed, self._encoder.checksums_left

    def turn_page(self, now: float) -> None:
        """Between frames: begin another file where it is time."""

    def flush(self) -> bool:
        """Everything queued is written."""
        return self.output.flush()

    def end(self, reason: str) -> None:
        """The run is over: statistics, last flush."""
        self.statistics(reason)
        self.flush()


def section_of(comment: str) -> bytes:
    """A section header in our name."""
    return pcapng.section(comment, f"guestagent {__version__}", "Linux")


def resume_of(place: reader.RunPlace | None) -> Resume | None:
    """What a recovered place means for the agent."""
    return Resume(place.sequence, place.stale) if place else None


def recover_file(path: Path, *, from_last_mark: bool) -> reader.Recovered | None:
    """How far one of our files came; None for a file that is not ours."""
    if not path.is_file():
        return None
    if path.stat().st_size == 0:
        return reader.Recovered()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if not reader.is_ours(data):
            return None
        return reader.recover(data, from_last_mark=from_last_mark)
