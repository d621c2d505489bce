"""Stand-ins for what a room normally meets: records without a ring, sources, a desk."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from guestagent.capture.block import LAYOUT_VIRTIO, BlockWriter
from guestagent.capture.bpf import Instruction
from guestagent.capture.source import PRIVATE_BYTES, RetiredBlock, Statistics
from guestagent.model import Exclusion, Interface
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Frame, Kind
from guestagent.tapstream.hello import AgentHello, CollectorHello, encode_agent_hello
from guestagent.tapstream.lease import Lease
from guestagent.tapstream.session import Pending, SendWindow

RUN_ID = "0123456789abcdef" * 2
EPOCH_NS = 1_700_000_000_123_456_789
MAC = "02:00:00:00:00:09"
"""For scapy, which otherwise asks the network, in a thread, for that of an address to send to."""
PATIENCE_SECONDS = 5.0
"""How long a test waits for what takes milliseconds on an idle machine."""


def interface(identifier: int = 0, name: str = "eth0") -> Interface:
    """An Ethernet interface."""
    return Interface(identifier, name, f"02:00:00:00:00:{identifier & 0xFF:02x}", 1500, addresses=("192.0.2.1",))


def agent_hello(run_id: str = RUN_ID, **changes: Any) -> AgentHello:
    """A sound hello, apart from the changes."""
    hello = AgentHello(
        agent_id="vm-1",
        run_id=run_id,
        host="host-1",
        version="0.1",
        layout=LAYOUT_VIRTIO,
        ring_bytes=1 << 20,
        started_ns=EPOCH_NS,
        first_sequence=1,
        interfaces=(interface(),),
    )
    return replace(hello, **changes)


def run_of_records(packets: Iterable[bytes], **fields: Any) -> tuple[bytes, int]:
    """(records, count) as a BLOCK carries them; every packet one microsecond after the one before."""
    packets = list(packets)
    memory = bytearray(64 + sum(len(packet) + 128 for packet in packets))
    writer = BlockWriter(memory, 0)
    for at, packet in enumerate(packets):
        assert writer.add(packet, EPOCH_NS + 1000 * at, **fields)
    return bytes(memory[writer.start : writer.end]), writer.count


def block_frame(sequence: int, records: bytes, count: int, interface_id: int = 0) -> bytes:
    """A whole BLOCK frame."""
    payload = frames.BLOCK_PREFIX.pack(count) + records
    return frames.encode(Kind.BLOCK, payload, interface=interface_id, sequence=sequence)


def packets_frame(sequence: int, packets: Iterable[bytes], interface_id: int = 0) -> bytes:
    """A BLOCK frame of these packets."""
    return block_frame(sequence, *run_of_records(packets), interface_id)


def parsed(data: bytes) -> Frame:
    """One whole frame, as a deframer would hand it on."""
    kind, flags, interface_id, length, sequence = frames.HEADER.unpack_from(data)
    assert len(data) == frames.HEADER_BYTES + length
    return Frame(kind, flags, interface_id, sequence, memoryview(data)[frames.HEADER_BYTES :])


def greeting(hello: AgentHello | None = None) -> bytes:
    """What an agent says first."""
    return frames.PREFACE + frames.encode_json(Kind.HELLO, encode_agent_hello(hello or agent_hello()))


class FakeSource:
    """A source whose blocks the test writes; follows the protocol of capture.source."""

    def __init__(self, facts: Interface | None = None, block_count: int = 4) -> None:
        self.interface = facts or interface()
        self.index = 2
        self.layout = LAYOUT_VIRTIO
        self.capacity_bytes = 1 << 20
        self.block_count = block_count
        self.programs: list[Sequence[Instruction]] = []
        self.waiting: deque[RetiredBlock] = deque()
        self.has_device = True
        self.taken: deque[RetiredBlock] = deque()
        self.captured = self.dropped = 0
        self.is_closed = self.is_paused = False

    def retire(self, packets: Sequence[bytes], first_ns: int = EPOCH_NS, stale: int = 0) -> RetiredBlock:
        """Offer a block of these packets, then as many stale records, which the kernel counts as dropped."""
        memory = bytearray(256 + sum(len(packet) + 128 for packet in packets) + 128 * stale)
        writer = BlockWriter(memory, PRIVATE_BYTES)
        for packet in packets:
            assert writer.add(packet, first_ns)
        for _ in range(stale):
            assert writer.add(b"", first_ns, status=0)
        self.captured += len(packets) + stale
        self.dropped += stale
        view = memoryview(memory)
        block = RetiredBlock(0, view, writer.start, writer.end, writer.count, first_ns, writer.end)
        self.waiting.append(block)
        return block

    def refuse(self, count: int) -> None:
        """The ring was full so many times."""
        self.captured += count
        self.dropped += count

    def peek(self, ahead: int = 0) -> RetiredBlock | None:
        """The oldest block not yet taken, or one after it."""
        return self.waiting[ahead] if ahead < len(self.waiting) else None

    def is_bound(self) -> bool:
        """As told."""
        return self.has_device

    def filling(self, blocks: int) -> Callable[[], object]:
        """As a ring, of the blocks that wait."""
        return lambda: len(self.waiting) >= blocks

    def take(self) -> RetiredBlock | None:
        """Lend it."""
        if not self.waiting:
            return None
        self.taken.append(self.waiting.popleft())
        return self.taken[-1]

    def release(self, block: RetiredBlock) -> None:
        """Blocks come back in the order in which they were taken."""
        assert self.taken.popleft() is block

    def statistics(self) -> Statistics:
        """Totals so far."""
        return Statistics(self.captured, self.dropped)

    def attach(self, program: Sequence[Instruction]) -> None:
        """Remember the program."""
        self.programs.append(program)

    def held_blocks(self) -> int:
        """Blocks on loan."""
        return len(self.taken)

    def fileno(self) -> int:
        """There is none."""
        return -1

    def pending_error(self) -> str:
        """All is well."""
        return ""

    def bind(self, index: int) -> None:
        """Remember the index."""
        self.index, self.has_device = index, True

    def pause(self, paused: bool) -> None:
        """Remember it."""
        self.is_paused = paused

    def close(self) -> None:
        """Remember it."""
        self.is_closed = True


class FakeOwner:
    """A desk behind a link (links.owner.LinkOwner): a window, and frames that the test queues."""

    def __init__(self, hello: AgentHello | None = None) -> None:
        self._hello = hello or agent_hello()
        self.window = SendWindow()
        self.settled: list[int] = []
        self.exclusions: list[Exclusion] = []
        self.answers: list[CollectorHello] = []
        self.notes: list[dict[str, Any]] = []
        self.changes: list[tuple[bool, str]] = []
        self.leases: list[Lease] = []
        self.allowed_bytes, self.spent_bytes = float("inf"), 0.0
        self.cap_bytes_per_second = float("inf")

    def queue(self, packets: Iterable[bytes]) -> None:
        """Number a block of these packets."""
        packets = list(packets)
        self.window.add(Kind.BLOCK, lambda sequence: packets_frame(sequence, packets))

    def hello(self) -> AgentHello:
        """This run, as of now."""
        return replace(self._hello, first_sequence=self.window.first_sequence)

    def exclude(self, exclusion: Exclusion) -> None:
        """Remember it."""
        self.exclusions.append(exclusion)

    def readmit(self, exclusion: Exclusion) -> None:
        """Forget it."""
        self.exclusions.remove(exclusion)

    def resumed(self, answer: CollectorHello) -> None:
        """Settle what the collector holds, begin again with the rest."""
        self.answers.append(answer)
        if answer.held_sequence is not None:
            self.settled += [one.sequence for one in self.window.acknowledge(answer.held_sequence)]
        self.window.rewind()

    def next_frame(self, now: float) -> Pending | None:
        """The next frame of the window."""
        return self.window.send_next()

    def allowance(self, now: float) -> float:
        """What the test sets."""
        return self.allowed_bytes

    def spent(self, wire_bytes: float, further_packets: int = 0) -> None:
        """Remember it."""
        self.spent_bytes += wire_bytes

    def leased(self, lease: Lease, now: float) -> None:
        """Remember it."""
        self.leases.append(lease)

    def acknowledged(self, sequence: int, collector_id: str, notes: dict[str, Any]) -> None:
        """Settle."""
        self.notes.append(notes)
        self.settled += [one.sequence for one in self.window.acknowledge(sequence)]

    def link_changed(self, connected: bool, text: str) -> None:
        """Remember it."""
        self.changes.append((connected, text))
