"""The one description of a ring block and of the records in it, for whoever writes or reads them.

The bytes are the kernel's own (include/uapi/linux/if_packet.h, TPACKET_V3), little-endian, as they lie in the ring
and as they travel to the collector. A run of records looks like this, each record 8-byte aligned:

    +0   tpacket3_hdr    next offset, sec, nsec, snaplen, len, status, mac, net, rxhash, vlan tci, vlan tpid
    +48  sockaddr_ll     packet type (direction) at +58
    +82  virtio_net_hdr  10 bytes right before the frame, where the layout has it
    +92  the frame       `mac` says where, `snaplen` bytes are here of `len` on the wire

A record without STATUS_USER is *stale*: the kernel reserved its place, then found that it could not describe the
super-packet in a virtio header (net/packet/af_packet.c, tpacket_rcv). Its fields are an older packet's. It is counted,
never read.
"""

from collections.abc import Iterator
from struct import Struct
from struct import error as StructError

BLOCK_HEADER_BYTES = 48
"""sizeof(struct tpacket_block_desc); the private area, if any, follows, then the first record."""
BLOCK_HEADER = Struct("<8xIIIIQIIII")
"""status, record count, offset of the first record, used bytes, kernel sequence, first sec, nsec, last sec, nsec."""
BLOCK_STATUS_OFFSET_BYTES = 8

STATUS_USER = 0x01
STATUS_CSUM_NOT_READY = 0x08
STATUS_VLAN_VALID = 0x10
STATUS_VLAN_TPID_VALID = 0x40

PACKET_HOST = 0
PACKET_OUTGOING = 4
"""sockaddr_ll.sll_pkttype (linux/if_packet.h): 0 to us, 1 broadcast, 2 multicast, 3 to another host, 4 outgoing."""

VIRTIO = Struct("<BBHHHH")
"""struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
VIRTIO_CSUM = Struct("<HH")
"""Its last two fields, alone."""
VIRTIO_NEEDS_CSUM = 1

LAYOUT_VIRTIO = "tpacket3+virtio"
LAYOUT_PLAIN = "tpacket3"
LAYOUTS = (LAYOUT_VIRTIO, LAYOUT_PLAIN)
"""Names of the record layouts, as a hello declares them; they differ in the 10 bytes before the frame."""

FRAME_OFFSET_BYTES = 92
"""Where the kernel puts an Ethernet frame with PACKET_VNET_HDR: align16(68 + 16) + 10 - 14."""

GLANCE = Struct("<IIIIIIH32xB")
"""The fields of a record that a look takes: next offset, sec, nsec, snaplen, len, status, mac, packet type."""
_RECORD = Struct("<IIIIIIH6xIH20xB")
_RECORD_BYTES = _RECORD.size
_STEP = Struct("<I")
_STEP_AND_STATUS = Struct("<I16xI")
_LEAST_FRAME_OFFSET_BYTES = 68
"""tpacket3_hdr and sockaddr_ll; a frame can't begin inside them."""
_ALIGNMENT_BYTES = 8
NANOSECONDS = 1_000_000_000

Record = tuple[int, int, int, int, int, int, int, int, int]
"""time in ns, captured bytes, original bytes, status, frame start, frame stop, vlan tci, vlan tpid, packet type."""


class MalformedBlock(ValueError):
    """The bytes are no run of records: a length or an offset points outside; whoever sent them is at fault."""


def walk(records: bytes | bytearray | memoryview, count: int) -> Iterator[Record | None]:
    """Yield each of `count` records of a run; None stands for a stale one. Trusts no length in it.

    Raises MalformedBlock as soon as a record would reach outside the run or into its neighbour.
    """
    unpack, end, offset = _RECORD.unpack_from, len(records), 0
    for remaining in range(count - 1, -1, -1):
        try:
            step, sec, nsec, captured, original, status, mac, tci, tpid, kind = unpack(records, offset)
        except StructError:
            raise MalformedBlock(f"record at byte {offset} of {end} lies outside the run") from None
        if status & STATUS_USER:
            start = offset + mac
            stop = start + captured
            if (
                mac < _LEAST_FRAME_OFFSET_BYTES
                or stop > end
                or captured > original
                or nsec >= NANOSECONDS
                or (remaining and step < stop - offset)
            ):
                shape = f"frame {mac}+{captured} of {original}, next {step}"
                raise MalformedBlock(f"record at byte {offset} of {end}: {shape}")
            yield sec * NANOSECONDS + nsec, captured, original, status, start, stop, tci, tpid, kind
        else:
            if remaining and step < _RECORD_BYTES:
                raise MalformedBlock(f"stale record at byte {offset} of {end}: next {step}")
            yield None
        offset += step


def cut(memory: memoryview, start: int, end: int, count: int, *, most_bytes: int, most_records: int) -> tuple[int, int]:
    """Where to end a run that begins at `start`, so that it keeps both bounds, and its records: one at least.

    `count` records lie between `start` and `end`; the kernel wrote them, so their lengths are believed.
    """
    at, taken = start, 0
    while taken < count:
        following = at + _STEP.unpack_from(memory, at)[0] if taken < count - 1 else end
        if taken and (taken >= most_records or following - start > most_bytes):
            break
        at, taken = following, taken + 1
    return at, taken


def stale_count(memory: memoryview, start: int, count: int) -> int:
    """How many of the `count` records from `start` on are stale; the kernel wrote them, so their lengths are believed.

    In half the time that `walk` takes: the agent's loop waits while a part of the ring is given up.
    """
    unpack, at, stale = _STEP_AND_STATUS.unpack_from, start, 0
    for _ in range(count):
        step, status = unpack(memory, at)
        stale += not status & STATUS_USER
        at += step
    return stale


class BlockWriter:
    """Fills one block with records as the kernel would, for engines without a ring and for tests."""

    def __init__(self, block: bytearray | memoryview, private_bytes: int) -> None:
        self._block = block
        self.start = BLOCK_HEADER_BYTES + private_bytes
        self.end = self.start
        self.count = 0
        self.first_ns = 0
        self._last = 0

    def add(
        self,
        frame: bytes | memoryview,
        time_ns: int,
        *,
        original_bytes: int | None = None,
        packet_type: int = PACKET_HOST,
        interface_index: int = 0,
        vlan: tuple[int, int] | None = None,
        virtio: bytes = bytes(VIRTIO.size),
        status: int = STATUS_USER,
    ) -> bool:
        """Append one record; False, and nothing written, where the block has no room. `vlan` is (tci, tpid)."""
        size = (FRAME_OFFSET_BYTES + len(frame) + _ALIGNMENT_BYTES - 1) & -_ALIGNMENT_BYTES
        at = self.end
        if at + size > len(self._block):
            return False
        if vlan:
            status |= STATUS_VLAN_VALID | STATUS_VLAN_TPID_VALID
        tci, tpid = vlan or (0, 0)
        original = len(frame) if original_bytes is None else original_bytes
        sec, nsec = divmod(time_ns, NANOSECONDS)
        self._block[at : at + FRAME_OFFSET_BYTES] = bytes(FRAME_OFFSET_BYTES)
        _RECORD.pack_into(
            self._block, at, 0, sec, nsec, len(frame), original, status, FRAME_OFFSET_BYTES, tci, tpid, packet_type
        )
        self._block[at + 52 : at + 56] = interface_index.to_bytes(4, "little")
        self._block[at + FRAME_OFFSET_BYTES - VIRTIO.size : at + FRAME_OFFSET_BYTES] = virtio
        self._block[at + FRAME_OFFSET_BYTES : at + FRAME_OFFSET_BYTES + len(frame)] = frame
        if self.count:
            self._block[self._last : self._last + 4] = (at - self._last).to_bytes(4, "little")
        else:
            self.first_ns = time_ns
        self._last, self.end, self.count = at, at + size, self.count + 1
        return True
