"""The capture engine without a ring: a packet socket that scapy opens, read packet by packet into a pool of blocks.

For kernels and containers that refuse a TPACKET_V3 ring or its memory. It costs about 10 µs of CPU for each packet
where the ring costs 0.2, and hands over the very same records (layout without virtio header).

* scapy is a way to open a socket here, nothing else: no packet is ever dissected. It is GPL-2.0, an optional extra,
  and imported only when a source is opened.
* Nobody reads the socket between two looks (peek, take), so `fileno` is a Waker: it wakes for packets, for the block
  being filled when that is due, and at once when a look left packets unread. Whatever waits, an edge is still to come.
* While all blocks are on loan the socket is not read. Its queue then overflows in the kernel, which counts each packet
  that it drops and spends nothing of ours on it.
"""

import logging
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from guestagent.capture.block import (
    BLOCK_HEADER_BYTES,
    FRAME_OFFSET_BYTES,
    LAYOUT_PLAIN,
    STATUS_USER,
    STATUS_VLAN_VALID,
    BlockWriter,
)
from guestagent.capture.bpf import Instruction
from guestagent.capture.packetsocket import SOL_PACKET, Tapping, open_packet_socket
from guestagent.capture.ring import BLOCK_BYTES, RETIRE_MS
from guestagent.capture.source import PRIVATE_BYTES, RetiredBlock, Statistics
from guestagent.capture.waker import AT_ONCE_NS, NEVER_NS, Waker
from guestagent.errors import HostError
from guestagent.model import Interface

QUEUE_BYTES = 4 * 1024 * 1024
"""The kernel's queue between two looks: about 30 ms of the loop's absence at 100 kpps. Beside the pool, in the kernel;
never over an eighth of it. Without CAP_NET_ADMIN it is what net.core.rmem_max grants."""
QUEUE_FRACTION = 1 / 8
BURST_PACKETS = 512
"""One look reads no more, about 5 ms of work, so that the loop keeps its time under a flood."""

_RETIRE_NS = RETIRE_MS * 1_000_000
_LARGEST_FRAME_BYTES = BLOCK_BYTES - BLOCK_HEADER_BYTES - PRIVATE_BYTES - FRAME_OFFSET_BYTES
"""What an empty block takes; a longer one (BIG TCP goes up to 512 KB) is cut, as the ring would."""

_PACKET_STATISTICS, _PACKET_AUXDATA = 6, 8
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_AUXDATA = struct.Struct("@IIIHHHH")
"""struct tpacket_auxdata: status, length on the wire, length after the filter's cut, mac, net, vlan tci, vlan tpid."""
_TIMESPEC = struct.Struct("@ll")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_AUXDATA.size) + socket.CMSG_SPACE(_TIMESPEC.size)


class PortableSource(Tapping):
    """One interface's socket and pool; see `capture.source.Source` for the contract.

    Raises HostError where scapy, a privilege or the interface is missing.
    """

    def __init__(
        self,
        interface: Interface,
        index: int,
        program: Sequence[Instruction],
        *,
        block_count: int,
        promiscuous: bool = False,
    ) -> None:
        self._scapy = _open_scapy_socket(interface.name)
        super().__init__(self._scapy.ins, index, promiscuous=promiscuous)
        self.interface = interface
        self.layout = LAYOUT_PLAIN
        self.block_count = block_count
        self.capacity_bytes = block_count * BLOCK_BYTES
        self._blocks: list[bytearray] = []
        self._free: list[int] = []
        self._retired: deque[RetiredBlock] = deque()
        self._writer: BlockWriter | None = None
        self._writing = 0
        self._held = self._captured = self._dropped = 0
        self._trouble = ""
        self._frame = memoryview(bytearray(_LARGEST_FRAME_BYTES))
        self._waker = Waker(self._socket)
        try:
            self._setup(program)
        except OSError as error:
            self.close()
            raise HostError(f"the packet socket on {interface.name} could not be set up: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def _setup(self, program: Sequence[Instruction]) -> None:
        self.attach(program)
        self._socket.setblocking(False)
        self._socket.setsockopt(SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        queue_bytes = min(QUEUE_BYTES, int(self.capacity_bytes * QUEUE_FRACTION))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, queue_bytes)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, queue_bytes)
        except PermissionError:
            pass  # CAP_NET_RAW alone is enough to run; the queue is then what the system grants anyone
        self.bind(self.index)

    def fileno(self) -> int:
        """The descriptor that wakes for packets and for a block that is due."""
        return self._waker.fileno()

    def peek(self, ahead: int = 0) -> RetiredBlock | None:
        """Read the socket; the oldest block that is full or RETIRE_MS old, or one of those after it."""
        count, due_ns = self._read(), NEVER_NS
        if self._writer is not None:
            age_ns = time.time_ns() - self._writer.first_ns
            # A negative age means that the clock was set back: better too early than an hour late.
            if 0 <= age_ns < _RETIRE_NS:
                due_ns = _RETIRE_NS - age_ns
            else:
                self._retire()
        if count == BURST_PACKETS:
            self._waker.wake_after(AT_ONCE_NS)
        elif not self._is_full():
            self._waker.looked(found=count > 0, due_ns=due_ns)
        return self._retired[ahead] if ahead < len(self._retired) else None

    def take(self) -> RetiredBlock | None:
        """Like peek; the block leaves the queue."""
        block = self.peek()
        if block is not None:
            self._retired.popleft()
            self._held += 1
        return block

    def filling(self, blocks: int) -> Callable[[], object]:
        """Never worth waiting: packets are read when the agent wakes."""
        return lambda: True

    def release(self, block: RetiredBlock) -> None:
        """Back to the pool; the last one back is the next one filled, since its memory is warm."""
        was_full = self._is_full()
        block.memory.release()
        self._free.append(block.number)
        self._held -= 1
        if was_full:
            self._waker.wake_after(AT_ONCE_NS)

    def held_blocks(self) -> int:
        """Blocks between take and release."""
        return self._held

    def statistics(self) -> Statistics:
        """tp_packets (which includes tp_drops), and tp_drops with the packets that we read and had no block for."""
        packets, drops = struct.unpack("@2I", self._socket.getsockopt(SOL_PACKET, _PACKET_STATISTICS, 8))
        self._captured += packets
        self._dropped += drops
        return Statistics(self._captured, self._dropped)

    def pending_error(self) -> str:
        """The socket's error, as ENETDOWN after the interface went down; reading may have met it first."""
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        met, self._trouble = self._trouble, ""
        return os.strerror(code) if code else met

    def close(self) -> None:
        """Close the descriptors and let the pool go."""
        self._waker.close()
        self._scapy.close()
        self._blocks.clear()

    def _read(self) -> int:
        """Move packets from the socket into blocks until it is empty, no block is free, or the burst is over.

        How many there were. An error of the socket counts as one: it is told once and then gone, and reading goes on.
        """
        for count in range(BURST_PACKETS):
            if self._is_full():
                return count
            try:
                size, ancillary, _, sender = self._socket.recvmsg_into([self._frame], _ANCILLARY_BYTES)
            except BlockingIOError:
                return count
            except OSError as error:
                self._trouble = error.strerror or str(error)
                continue
            self._store(self._frame[:size], sender[2], ancillary)
        return BURST_PACKETS

    def _store(self, frame: memoryview, packet_type: int, ancillary: list[tuple[int, int, bytes]]) -> None:
        time_ns, status, original_bytes, vlan = _facts(ancillary, len(frame))
        while (writer := self._writer or self._open()) is not None:
            if writer.add(
                frame,
                time_ns,
                original_bytes=original_bytes,
                packet_type=packet_type,
                interface_index=self.index,
                vlan=vlan,
                status=status,
            ):
                return
            self._retire()
        self._dropped += 1

    def _is_full(self) -> bool:
        return self._writer is None and not self._free and len(self._blocks) == self.block_count

    def _open(self) -> BlockWriter | None:
        """Begin a block: one that came back, else a new one, so that an idle link's pool stays small."""
        if self._is_full():
            return None
        if not self._free:
            self._free.append(len(self._blocks))
            self._blocks.append(bytearray(BLOCK_BYTES))
        self._writing = self._free.pop()
        self._writer = BlockWriter(memoryview(self._blocks[self._writing]), PRIVATE_BYTES)
        return self._writer

    def _retire(self) -> None:
        """Queue the block being filled."""
        writer, self._writer = self._writer, None
        assert writer is not None
        memory = memoryview(self._blocks[self._writing])
        self._retired.append(
            RetiredBlock(self._writing, memory, writer.start, writer.end, writer.count, writer.first_ns, writer.end)
        )


def _facts(ancillary: list[tuple[int, int, bytes]], size: int) -> tuple[int, int, int, tuple[int, int] | None]:
    """Time, status, original length and VLAN tag, as the kernel tells them beside a packet of `size` bytes."""
    time_ns, status, original_bytes, vlan = 0, STATUS_USER, size, None
    for _, kind, data in ancillary:
        if kind == _PACKET_AUXDATA:
            status, original_bytes, _, _, _, tci, tpid = _AUXDATA.unpack(data)
            vlan = (tci, tpid) if status & STATUS_VLAN_VALID else None
        elif kind == _SO_TIMESTAMPNS:
            sec, nsec = _TIMESPEC.unpack(data)
            time_ns = sec * 1_000_000_000 + nsec
    return time_ns or time.time_ns(), status, original_bytes, vlan


def _open_scapy_socket(name: str) -> Any:
    """scapy's listening socket, which receives nothing yet. Raises HostError.

    `type` is the protocol: 0 is none, where scapy's own choice would let packets in before our filter is attached.
    """
    try:
        # Not scapy.all: that loads every protocol, 52 MB against 22 MB and 650 ms against 150 ms.
        from scapy.arch.linux import L2ListenSocket
    except ImportError:
        raise HostError("the portable engine needs scapy: install guestagent[portable]") from None
    # Without its protocols scapy can't name the link type and says so on stderr; we never ask it to dissect.
    logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
    open_packet_socket(name).close()  # says what is missing in the words of the other engine
    try:
        return L2ListenSocket(iface=name, type=0, promisc=0, nofilter=1)
    except (OSError, ValueError) as error:
        raise HostError(f"scapy can't open a packet socket on {name}: {error}") from error
