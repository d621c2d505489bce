"""pcapng blocks as bytes (draft-ietf-opsawg-pcapng): section, interfaces, packets, statistics, our own marks. Pure.

Why not a library: in one run on one core, 512-byte packets cost scapy's PcapNgWriter 2.8 times and python-pcapng's
writer 20 times the CPU of this file (`python -m tests.bench --only writers`), and 400,000 packets/s are the goal.

Our own blocks have a type of the range that the draft reserves for local use (the highest bit is set), which readers
skip. Custom blocks (0x00000BAD) are the other way, but Wireshark 4.0 lists each as a packet of its own.

    mark     "gaM1", run_id (16 bytes), sequence u64, offset of this block in its file u64, interfaces described in the
             file so far u32, 0 u32; then for each interface of the run: id u16, tag of its description u16, index in
             the file u32, stale records u64, packets written under that index u64
    report   "gaR1", run_id (16 bytes), JSON of a REPORT frame

Everything before a mark is complete: a collector that was killed inside a write cuts its file after the last mark and
tells the agent to go on behind that sequence. The offset tells a mark from a picture of one inside a captured packet.
The tag tells whether an interface is still what the file says; it is 0 where files of earlier versions have none.
"""

import json
import zlib
from struct import Struct
from typing import Any

from guestagent.capture.block import (
    STATUS_CSUM_NOT_READY,
    STATUS_VLAN_TPID_VALID,
    STATUS_VLAN_VALID,
    VIRTIO,
    VIRTIO_CSUM,
    VIRTIO_NEEDS_CSUM,
    walk,
)
from guestagent.encap.checksum import SCTP_CHECKSUM_OFFSET, unfinished_checksum
from guestagent.encap.segment_cut import WireFrame
from guestagent.model import Interface

SECTION, INTERFACE, STATISTICS, PACKET, OURS = 0x0A0D0D0A, 1, 5, 6, 0x80006761
BYTE_ORDER_MAGIC = 0x1A2B3C4D
MARK_MAGIC, REPORT_MAGIC = b"gaM1", b"gaR1"
RUN_ID_BYTES = 16

BLOCK_HEAD = Struct("<II")
"""Type and total length, which is repeated at the end of every block."""
LEAST_BLOCK_BYTES = 12
OURS_HEAD = Struct("<4s16s")
MARK_PLACE = Struct("<QQI4x")
MARK_INTERFACE = Struct("<HHIQQ")

OPTION_END, OPTION_COMMENT = 0, 1
_SECTION_USER_APPLICATION, _SECTION_OS = 4, 3
_IF_NAME, _IF_DESCRIPTION, _IF_MAC, _IF_SPEED, _IF_TSRESOL = 2, 3, 6, 8, 9
_STATS_RECEIVED, _STATS_FILTER_ACCEPTED, _STATS_OS_DROPPED, _STATS_DELIVERED = 4, 6, 7, 8
_NANOSECOND_RESOLUTION = b"\x09"
_ENTIRE_PACKET = 0
_UNKNOWN_SECTION_LENGTH = 0xFFFFFFFFFFFFFFFF

_PACKET_HEAD = Struct("<IIIIIII")
_PACKET_FIXED_BYTES = _PACKET_HEAD.size + 12 + 4
"""Head, the flags option with its end, the trailing length."""
_OPTIONS_END_BYTES = 4 + 4
"""The end of the options, the trailing length."""
_LENGTH = Struct("<I")
_MOST_LENGTH = 0xFFFFFFFF
_VLAN_TAG = Struct(">HH")
_MAC_ADDRESSES_BYTES = 12
_ETHERTYPE_VLAN = 0x8100

_DIRECTION = {0: 0b00101, 1: 0b01101, 2: 0b01001, 3: 0b10001, 4: 0b00010}
"""epb_flags by sockaddr_ll packet type: bits 0-1 say inbound or outbound, bits 2-4 unicast, multicast and so on."""
_TAILS = [
    [bytes(pad) + Struct("<HHIHH").pack(2, 4, _DIRECTION.get(kind, 0), OPTION_END, 0) for pad in range(4)]
    for kind in range(256)
]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) & 3)


def _option(code: int, value: bytes) -> bytes:
    return Struct("<HH").pack(code, len(value)) + _padded(value)


def block(kind: int, body: bytes) -> bytes:
    """A whole block around a body of full 32-bit words."""
    total = LEAST_BLOCK_BYTES + len(body)
    return BLOCK_HEAD.pack(kind, total) + body + _LENGTH.pack(total)


def section(comment: str, application: str, system: str) -> bytes:
    """A section header; its length is left unknown, as for any file that grows."""
    body = Struct("<IHHQ").pack(BYTE_ORDER_MAGIC, 1, 0, _UNKNOWN_SECTION_LENGTH)
    body += _option(OPTION_COMMENT, comment.encode()) + _option(_SECTION_OS, system.encode())
    body += _option(_SECTION_USER_APPLICATION, application.encode()) + _option(OPTION_END, b"")
    return block(SECTION, body)


def interface(facts: Interface, agent_id: str, host: str, run_id: bytes) -> bytes:
    """An interface description in nanoseconds, saying whose interface it is."""
    body = Struct("<HHI").pack(facts.link_type, 0, _ENTIRE_PACKET)
    description = f"agent {agent_id} on {host}, run {run_id.hex()}, MTU {facts.mtu}"
    body += _option(_IF_NAME, facts.name.encode()) + _option(_IF_DESCRIPTION, description.encode())
    if facts.mac:
        body += _option(_IF_MAC, bytes.fromhex(facts.mac.replace(":", "")))
    if facts.speed_mbit:
        body += _option(_IF_SPEED, (facts.speed_mbit * 1_000_000).to_bytes(8, "little"))
    body += _option(_IF_TSRESOL, _NANOSECOND_RESOLUTION)
    return block(INTERFACE, body + _option(OPTION_END, b""))


def tag_of(description: bytes) -> int:
    """16 bits that change when the description of an interface does; never 0."""
    return zlib.crc32(description) & 0xFFFF or 1


def statistics(index: int, now_ns: int, counters: dict[str, int], written: int, comment: str) -> bytes:
    """What an interface counted by the end: records accepted, dropped by the ring, written here."""
    values = (
        (_STATS_RECEIVED, counters.get("captured", written)),
        (_STATS_FILTER_ACCEPTED, counters.get("captured", written)),
        (_STATS_OS_DROPPED, counters.get("dropped_by_ring", 0) + counters.get("unsupported_gso", 0)),
        (_STATS_DELIVERED, written),
    )
    body = Struct("<III").pack(index, now_ns >> 32, now_ns & 0xFFFFFFFF) + _option(OPTION_COMMENT, comment.encode())
    body += b"".join(_option(code, value.to_bytes(8, "little")) for code, value in values)
    return block(STATISTICS, body + _option(OPTION_END, b""))


def mark(
    run_id: bytes, sequence: int, offset: int, described: int, interfaces: list[tuple[int, int, int, int, int]]
) -> bytes:
    """Everything of this run up to `sequence` stands before this block.

    `interfaces` holds (id, tag, index in the file, stale records, packets written) of each interface of the run.
    """
    body = OURS_HEAD.pack(MARK_MAGIC, run_id) + MARK_PLACE.pack(sequence, offset, described)
    return block(OURS, body + b"".join(MARK_INTERFACE.pack(*one) for one in interfaces))


def report(run_id: bytes, value: dict[str, Any]) -> bytes:
    """An agent's REPORT, for readers of ours; spaces pad the JSON."""
    text = json.dumps(value, separators=(",", ":")).encode()
    return block(OURS, OURS_HEAD.pack(REPORT_MAGIC, run_id) + text + b" " * (-len(text) & 3))


def commented(packets: bytes, comment: str) -> bytes:
    """The same packet blocks, with a comment on the first packet that any reader shows; one at least.

    Comments on statistics, or on an interface in mid-file, are shown neither by tshark nor by capinfos (4.0).
    """
    kind, total = BLOCK_HEAD.unpack_from(packets)
    option = _option(OPTION_COMMENT, comment.encode())
    end = total - _OPTIONS_END_BYTES
    longer = total + len(option)
    first = BLOCK_HEAD.pack(kind, longer) + packets[BLOCK_HEAD.size : end] + option
    return first + _option(OPTION_END, b"") + _LENGTH.pack(longer) + packets[total:]


def packet_block(index: int, time_ns: int, kind: int, frame: WireFrame) -> tuple[bytes | memoryview, ...]:
    """The pieces of one packet block around a frame of encap; `kind` is the packet type of sockaddr_ll."""
    head, payload, original_bytes = frame
    captured = len(head) + len(payload)
    pad = -captured & 3
    total = _PACKET_FIXED_BYTES + captured + pad
    original = min(original_bytes, _MOST_LENGTH)
    fields = _PACKET_HEAD.pack(PACKET, total, index, time_ns >> 32, time_ns & 0xFFFFFFFF, captured, original)
    return fields, head, payload, _TAILS[kind][pad], _LENGTH.pack(total)


class PacketEncoder:
    """Turns runs of ring records into packet blocks; counts what it did."""

    def __init__(self, *, has_virtio: bool) -> None:
        self._has_virtio = has_virtio
        self.checksums_completed = 0
        self.checksums_left = 0
        """Partial checksums of frames that were cut short, or that the record does not describe."""

    def encode(self, records: memoryview, count: int, index: int) -> tuple[bytes, int, int]:
        """(packet blocks, packets, stale records) of one run, for the interface with this index in the file.

        Raises MalformedBlock; then nothing of the run may be written.
        """
        parts: list[bytes | memoryview] = []
        append, pack_head, pack_length, fixed = parts.append, _PACKET_HEAD.pack, _LENGTH.pack, _PACKET_FIXED_BYTES
        needs_care = STATUS_CSUM_NOT_READY | STATUS_VLAN_VALID
        stale = 0
        for record in walk(records, count):
            if record is None:
                stale += 1
                continue
            time_ns, captured, original, status, start, stop, _, _, kind = record
            pieces: list[bytes | memoryview] = [records[start:stop]]
            if status & needs_care:
                added = self._finish(pieces, records, record)
                captured += added
                original = min(original + added, _MOST_LENGTH)
            pad = -captured & 3
            total = fixed + captured + pad
            append(pack_head(PACKET, total, index, time_ns >> 32, time_ns & 0xFFFFFFFF, captured, original))
            parts += pieces
            append(_TAILS[kind][pad])
            append(pack_length(total))
        return b"".join(parts), count - stale, stale

    def _finish(self, pieces: list[bytes | memoryview], records: memoryview, record: tuple[int, ...]) -> int:
        """Make the frame, given as one piece, what it was on the wire, without a copy of it; bytes that were added.

        First the checksum, whose place is counted without the tag; then the tag.
        """
        _, captured, original, status, start, stop, tci, tpid, _ = record
        if status & STATUS_CSUM_NOT_READY:
            done = False
            if self._has_virtio and captured == original and records[start - VIRTIO.size] & VIRTIO_NEEDS_CSUM:
                csum_start, csum_offset = VIRTIO_CSUM.unpack_from(records, start - VIRTIO_CSUM.size)
                covered = start + csum_start
                place = covered + csum_offset
                if place + 2 <= stop and csum_offset != SCTP_CHECKSUM_OFFSET:
                    checksum = unfinished_checksum(records[covered:stop], csum_offset).to_bytes(2, "big")
                    pieces[:] = [records[start:place], checksum, records[place + 2 : stop]]
                    done = True
            self.checksums_completed += done
            self.checksums_left += not done
        head = pieces[0]
        if not status & STATUS_VLAN_VALID or len(head) < _MAC_ADDRESSES_BYTES:
            return 0
        protocol = tpid if status & STATUS_VLAN_TPID_VALID else _ETHERTYPE_VLAN
        tag = _VLAN_TAG.pack(protocol, tci & 0xFFFF)
        pieces[:1] = [head[:_MAC_ADDRESSES_BYTES], tag, head[_MAC_ADDRESSES_BYTES:]]
        return _VLAN_TAG.size
