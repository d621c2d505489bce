"""Several sources as one: blocks in order of time, and the ledger of every interface.

The ledger's `captured` and drops come from the kernel, `delivered` from acknowledgements, so its identity is a check on
both and not a definition.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from guestagent.capture.block import FRAME_OFFSET_BYTES, LAYOUT_VIRTIO, stale_count
from guestagent.capture.bpf import REJECT_ALL, Instruction
from guestagent.capture.source import RetiredBlock, Source
from guestagent.model import InterfaceLedger, total

FILLING_BLOCKS = 8
"""2 MB: a busy agent gathers about so much in a turn, and a default ring of 256 blocks is still nearly empty."""


class Loan(NamedTuple):
    """A run of records of a block that was taken; the block goes back with its last run."""

    source: Source
    block: RetiredBlock
    start: int
    end: int
    records: int
    is_last: bool = True


class Tap:
    """The sources of one run. Blocks are taken in order of their first packet's time, given back when settled."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.ledgers = {source.interface.id: InterfaceLedger() for source in sources}
        self.wire_bytes = 0
        """Bytes of the frames taken so far, without record headers."""
        self.taken_records = 0
        self.retired_bytes = 0
        """Of all blocks that the kernel retired, taken or not, as far as `look` saw them."""
        self._looked = {source.interface.id: 0 for source in sources}
        """How many blocks beyond those taken were looked at."""
        self._kept = {source.interface.id: 0 for source in sources}
        """Blocks that were settled and not yet given back."""
        self._told: dict[tuple[str, str, int], int] = {}
        """What each collector has told of each reason and interface, cumulative."""

    @property
    def ring_bytes(self) -> int:
        """What all rings hold together."""
        return sum(source.capacity_bytes for source in self.sources)

    def take(self) -> Loan | None:
        """The block whose first packet is oldest; its header area is the caller's to write."""
        if len(self.sources) == 1:
            source = self.sources[0]
        else:
            heads = [(block.first_ns, at) for at, one in enumerate(self.sources) if (block := one.peek())]
            if not heads:
                return None
            source = self.sources[min(heads)[1]]
        block = source.take()
        if block is None:
            return None
        interface_id = source.interface.id
        if self._looked[interface_id]:
            self._looked[interface_id] -= 1
        else:
            self.retired_bytes += block.ring_bytes
        self.ledgers[interface_id].captured_ring_bytes += block.ring_bytes
        self.taken_records += block.records
        self.wire_bytes += block.ring_bytes - block.records * FRAME_OFFSET_BYTES
        return Loan(source, block, block.start, block.end, block.records)

    def look(self) -> Iterator[tuple[Source, RetiredBlock]]:
        """The blocks retired since the last look and not yet taken; to read, they stay where they are."""
        for source in self.sources:
            interface_id = source.interface.id
            while block := source.peek(self._looked[interface_id]):
                self._looked[interface_id] += 1
                self.retired_bytes += block.ring_bytes
                yield source, block

    def settle(
        self, loans: Iterable[Loan | None], *, delivered: bool, capped: bool = False, keep: bool = False
    ) -> None:
        """Give blocks back: acknowledged, or at the end of the run lost with the link or to a cap.

        With `keep` they are counted and stay until `give_back`.
        """
        for loan in loans:
            if loan is None:
                continue
            ledger = self.ledgers[loan.source.interface.id]
            if delivered:
                ledger.delivered += loan.records
                ledger.delivered_bytes += loan.end - loan.start
            else:
                stale = stale_records(loan)
                ledger.unsupported_gso += stale
                if capped:
                    ledger.capped += loan.records - stale
                else:
                    ledger.lost_on_link += loan.records - stale
            if keep:
                self._kept[loan.source.interface.id] += loan.is_last
            elif loan.is_last:
                loan.source.release(loan.block)

    def give_back(self, loans: Iterable[Loan | None]) -> None:
        """Give back blocks that were kept, in the order in which they were settled."""
        for loan in loans:
            if loan is not None and loan.is_last:
                self._kept[loan.source.interface.id] -= 1
                loan.source.release(loan.block)

    def note(self, collector_id: str, why: str, counts: dict[int, int]) -> None:
        """Take a cumulative count of records that were settled as delivered, and were not; `why`: a word of the ledger.

        Remembered per collector, so that an ACK or hello that repeats the count changes nothing.
        """
        for interface_id, count in counts.items():
            ledger = self.ledgers.get(interface_id)
            if ledger is not None:
                new = count - self._told.get((collector_id, why, interface_id), 0)
                self._told[collector_id, why, interface_id] = count
                setattr(ledger, why, getattr(ledger, why) + new)
                ledger.delivered -= new

    def forget(self, collector_id: str) -> None:
        """This collector does not know the run, or not any more: what it counts begins at 0."""
        self._told = {key: count for key, count in self._told.items() if key[0] != collector_id}

    def refresh(self) -> InterfaceLedger:
        """Read the kernel's counters into the ledgers; their sum."""
        for source in self.sources:
            ledger, counted = self.ledgers[source.interface.id], source.statistics()
            ledger.captured = counted.captured
            ledger.dropped_by_ring = max(0, counted.dropped - ledger.unsupported_gso)
        return total(list(self.ledgers.values()))

    def filling(self, blocks: int = FILLING_BLOCKS) -> Callable[[], object]:
        """Whether so many gathered in a ring that it should be looked at: a question for until the next take."""
        questions = [source.filling(blocks) for source in self.sources]
        return questions[0] if len(questions) == 1 else lambda: any(question() for question in questions)

    def by_name(self) -> dict[str, InterfaceLedger]:
        """Every ledger by its interface's name."""
        return {source.interface.name: self.ledgers[source.interface.id] for source in self.sources}

    def attach(self, program: Sequence[Instruction]) -> None:
        """Swap the filter of every source."""
        for source in self.sources:
            source.attach(program)

    def reject_all(self) -> None:
        """Let nothing new in; what the rings hold stays."""
        self.attach(REJECT_ALL)

    def abandon_rest(self, *, capped: bool) -> None:
        """Count the retired blocks that nobody took as lost, after the drain's patience."""
        while loan := self.take():
            self.settle([loan], delivered=False, capped=capped)

    def held_fraction(self) -> float:
        """How full the fullest ring is with blocks that wait for acknowledgement."""
        return max((source.held_blocks() / source.block_count for source in self.sources), default=0.0)

    def kept_fraction(self) -> float:
        """How much of the fullest ring the blocks take that were settled and are kept."""
        return max(self._kept[source.interface.id] / source.block_count for source in self.sources)

    def filled_fraction(self) -> float:
        """How full the fullest ring is, with blocks that wait to be sent, too; of the room that kept blocks leave."""
        return max(map(self._filled_fraction, self.sources), default=0.0)

    def _filled_fraction(self, source: Source) -> float:
        kept = self._kept[source.interface.id]
        waiting = source.held_blocks() - kept + self._looked[source.interface.id]
        return waiting / max(1, source.block_count - kept)

    @property
    def waiting_bytes(self) -> int:
        """Of the blocks that were retired and not yet taken."""
        return self.retired_bytes - sum(ledger.captured_ring_bytes for ledger in self.ledgers.values())

    def close(self) -> None:
        """Give every socket and ring back."""
        for source in self.sources:
            source.close()


def stale_records(loan: Loan) -> int:
    """The records without a packet, of a block that no collector will count: the kernel has them as dropped, too."""
    if loan.source.layout != LAYOUT_VIRTIO:
        return 0
    return stale_count(loan.block.memory, loan.start, loan.records)
