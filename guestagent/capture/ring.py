"""The capture engine: an AF_PACKET socket with a TPACKET_V3 ring (Linux: Documentation/networking/packet_mmap.rst).

The kernel fills blocks and hands each over by setting TP_STATUS_USER in its status word; we hand it back by clearing
the word. Three traps, each measured, shape this file:

* While one block is not released the socket stays readable, so it is watched edge-triggered and we walk on from our
  own next-block index until a block belongs to the kernel.
* On weakly ordered processors the status may be seen before the rest of the header. The status is read alone, then a
  full barrier (a lock), then the header.
* The socket is opened with protocol 0, gets filter and ring, and is bound last: no packet that the filter refuses is
  ever in the ring.
"""

import mmap
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import getitem

from guestagent.capture.block import BLOCK_HEADER, BLOCK_STATUS_OFFSET_BYTES, LAYOUT_PLAIN, LAYOUT_VIRTIO
from guestagent.capture.bpf import Instruction
from guestagent.capture.packetsocket import SOL_PACKET, Tapping, describe_super_packets, open_packet_socket
from guestagent.capture.source import PRIVATE_BYTES, RetiredBlock, Statistics
from guestagent.errors import HostError
from guestagent.model import Interface

BLOCK_BYTES = 256 * 1024
"""Holds the largest super-packet (64 KB and headers) four times; smaller blocks would cut super-packets short."""
RETIRE_MS = 100
"""An idle link's records wait no longer; 256 such blocks bridge 25 s of outage at low rate."""
FEWEST_BLOCKS = 8

_FRAME_BYTES = 2048
"""Only a formality of V3 (frames are packed); must divide the block."""
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V3 = 2
_STATUS_KERNEL = 0
_WORD_BYTES = 4

_barrier = threading.Lock()


class Ring(Tapping):
    """One interface's ring; see `capture.source.Source` for the contract.

    Raises HostError where a privilege, the memory or a kernel feature is missing.
    """

    def __init__(
        self,
        interface: Interface,
        index: int,
        program: Sequence[Instruction],
        *,
        block_count: int,
        virtio: bool = True,
        promiscuous: bool = False,
        block_bytes: int = BLOCK_BYTES,
        retire_ms: int = RETIRE_MS,
    ) -> None:
        super().__init__(open_packet_socket(interface.name), index, promiscuous=promiscuous)
        self.interface = interface
        self.layout = LAYOUT_VIRTIO if virtio else LAYOUT_PLAIN
        self.capacity_bytes = block_bytes * block_count
        self._block_bytes, self.block_count = block_bytes, block_count
        self._next = 0
        self._waiting: deque[RetiredBlock] = deque()
        """Retired blocks from our own index on, as far as somebody peeked."""
        self._held = 0
        self._captured = self._dropped = 0
        self._memory: memoryview | None = None
        try:
            self._setup(program, virtio, retire_ms)
        except OSError as error:
            self.close()
            raise HostError(f"the ring on {interface.name} could not be set up: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def _setup(self, program: Sequence[Instruction], virtio: bool, retire_ms: int) -> None:
        self.attach(program)
        self._socket.setsockopt(SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        if virtio:
            describe_super_packets(self._socket)
        frames = self.capacity_bytes // _FRAME_BYTES
        request = struct.pack(
            "@7I", self._block_bytes, self.block_count, _FRAME_BYTES, frames, retire_ms, PRIVATE_BYTES, 0
        )
        try:
            self._socket.setsockopt(SOL_PACKET, _PACKET_RX_RING, request)
        except OSError as error:
            raise HostError(
                f"the kernel refused a ring of {self.capacity_bytes >> 20} MB on {self.interface.name} "
                f"({error.strerror}): ask for less with --ring, or use --engine portable"
            ) from error
        self._map = mmap.mmap(self._socket.fileno(), self.capacity_bytes)
        self._memory = memoryview(self._map)
        self._words = self._memory.cast("B").cast("I")
        self.bind(self.index)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def peek(self, ahead: int = 0) -> RetiredBlock | None:
        """The block at our own index, or so many after it, once the kernel has retired it."""
        while len(self._waiting) <= ahead:
            block = self._retired(len(self._waiting))
            if block is None:
                return None
            self._waiting.append(block)
        return self._waiting[ahead]

    def _retired(self, ahead: int) -> RetiredBlock | None:
        if self._held + ahead >= self.block_count:
            return None
        number = (self._next + ahead) % self.block_count
        base = number * self._block_bytes
        if self._words[(base + BLOCK_STATUS_OFFSET_BYTES) // _WORD_BYTES] == _STATUS_KERNEL:
            return None
        with _barrier:
            pass
        assert self._memory is not None
        _, records, first, used, _, sec, nsec, _, _ = BLOCK_HEADER.unpack_from(self._memory, base)
        memory = self._memory[base : base + self._block_bytes]
        return RetiredBlock(number, memory, first, used, records, sec * 1_000_000_000 + nsec, used)

    def take(self) -> RetiredBlock | None:
        """The block at our own index; the index moves on."""
        block = self.peek()
        if block is not None:
            self._waiting.popleft()
            self._next = (self._next + 1) % self.block_count
            self._held += 1
        return block

    def filling(self, blocks: int) -> Callable[[], object]:
        """Is the block so far ahead of our own index retired, or none left that could be?

        The question is the status word itself, which is 0 while the kernel has the block: it is asked after each
        wake-up of a rest, when all that the application did not use has left the caches.
        """
        if self._held + blocks > self.block_count:
            return lambda: True
        ahead = (self._next + blocks - 1) % self.block_count
        return partial(getitem, self._words, (ahead * self._block_bytes + BLOCK_STATUS_OFFSET_BYTES) // _WORD_BYTES)

    def release(self, block: RetiredBlock) -> None:
        """Clear the block's status word after everything that was read from it."""
        block.memory.release()
        with _barrier:
            pass
        self._words[(block.number * self._block_bytes + BLOCK_STATUS_OFFSET_BYTES) // _WORD_BYTES] = _STATUS_KERNEL
        self._held -= 1

    def held_blocks(self) -> int:
        """Blocks between take and release."""
        return self._held

    def statistics(self) -> Statistics:
        """tp_packets (which includes tp_drops) and tp_drops; the kernel resets both at each reading, we add up."""
        packets, drops, _freezes = struct.unpack("@3I", self._socket.getsockopt(SOL_PACKET, _PACKET_STATISTICS, 12))
        self._captured += packets
        self._dropped += drops
        return Statistics(self._captured, self._dropped)

    def pending_error(self) -> str:
        """The socket's error, as ENETDOWN after the interface went down or away."""
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return os.strerror(code) if code else ""

    def close(self) -> None:
        """Unmap and close; a block still on loan keeps its pages until its holder lets go."""
        for block in self._waiting:
            block.memory.release()
        if self._memory is not None:
            self._words.release()
            self._memory.release()
            self._memory = None
            try:
                self._map.close()
            except BufferError:
                pass  # a view of a block is alive in a traceback; the map goes with it
        self._socket.close()
