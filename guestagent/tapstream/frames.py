"""tapstream version 1 on the wire: preface, frame header, the kinds of frame and their payloads. Little-endian.

    preface   "tapstrm" and the version byte, once in each direction
    frame     type u8, flags u8, interface u16, payload bytes u32, sequence u64; then the payload

    HELLO   JSON     first frame of each side; sequence 0
    BLOCK   binary   record count u32, reserved u32, then a run of whole ring records (capture/block.py); sequenced
    REPORT  JSON     counters, limits, clock pair; sequenced
    INFO    JSON     facts that changed after the hello; sequenced
    ACK     JSON     collector to agent: everything up to `sequence` is safe; payload, if any, carries counts
    LEASE   JSON     collector to agent: peers whose packets their own agents copy (lease.py)
    PING    empty    either side; answered by PONG
    BYE     JSON     the sender ends; `reason`

One sequence per run counts BLOCK, REPORT and INFO from 1. No bytes are looked at beyond the bound of their type.
"""

import json
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple

VERSION = 1
PREFACE = b"tapstrm" + bytes([VERSION])
DEFAULT_PORT = 4795

HEADER = Struct("<BBHIQ")
HEADER_BYTES = HEADER.size
BLOCK_PREFIX = Struct("<I4x")
BLOCK_PREFIX_BYTES = BLOCK_PREFIX.size

FLAG_LAST_OF_BLOCK = 0x01
_TLS_HANDSHAKE = 22
"""The first byte of a TLS connection (RFC 8446, section 5.1)."""


class Kind(IntEnum):
    """The frame types."""

    HELLO = 1
    BLOCK = 2
    REPORT = 3
    INFO = 4
    ACK = 5
    LEASE = 6
    PING = 7
    PONG = 8
    BYE = 9


SEQUENCED = frozenset((Kind.BLOCK, Kind.REPORT, Kind.INFO))
BEFORE_THE_HELLO = frozenset((Kind.HELLO, Kind.PING, Kind.PONG, Kind.BYE))
"""An agent that is served elsewhere pings to see whether we are well."""

MOST_JSON_BYTES = 64 * 1024
"""A hello of 64 interfaces with ten addresses each takes 30 KB."""
MOST_BLOCK_BYTES = 1024 * 1024
"""Four of our own ring blocks; an agent that asks for more is refused before a byte is allocated."""

MOST_PAYLOAD_BYTES: dict[int, int] = {
    Kind.HELLO: MOST_JSON_BYTES,
    Kind.BLOCK: MOST_BLOCK_BYTES,
    Kind.REPORT: MOST_JSON_BYTES,
    Kind.INFO: MOST_JSON_BYTES,
    Kind.ACK: MOST_JSON_BYTES,
    Kind.LEASE: MOST_JSON_BYTES,
    Kind.PING: 0,
    Kind.PONG: 0,
    Kind.BYE: MOST_JSON_BYTES,
}


class ProtocolError(ValueError):
    """The peer's bytes are no tapstream; the text is one sentence about what came."""


class Frame(NamedTuple):
    """One frame as received; `payload` is a view that lives until the next read into the buffer."""

    kind: int
    flags: int
    interface: int
    sequence: int
    payload: memoryview


def encode(kind: Kind, payload: bytes = b"", *, interface: int = 0, sequence: int = 0, flags: int = 0) -> bytes:
    """One whole frame."""
    return HEADER.pack(kind, flags, interface, len(payload), sequence) + payload


def encode_json(kind: Kind, value: dict[str, Any], *, interface: int = 0, sequence: int = 0) -> bytes:
    """One whole frame with a JSON object in it."""
    return encode(kind, json.dumps(value, separators=(",", ":")).encode(), interface=interface, sequence=sequence)


def decode_json(frame: Frame) -> dict[str, Any]:
    """The JSON object of a frame, {} where the payload is empty. Raises ProtocolError for anything else."""
    if not len(frame.payload):
        return {}
    try:
        value = json.loads(bytes(frame.payload))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProtocolError(f"the {Kind(frame.kind).name} frame holds no JSON object")
    return value


def write_block_header(
    memory: memoryview, start: int, end: int, *, interface: int, sequence: int, records: int, flags: int
) -> memoryview:
    """Put frame header and block prefix right before the records at `start`; the view to send, header included."""
    at = start - HEADER_BYTES - BLOCK_PREFIX_BYTES
    HEADER.pack_into(memory, at, Kind.BLOCK, flags, interface, BLOCK_PREFIX_BYTES + end - start, sequence)
    BLOCK_PREFIX.pack_into(memory, at + HEADER_BYTES, records)
    return memory[at:end]


def encode_block_header(*, size: int, interface: int, sequence: int, records: int, flags: int) -> bytes:
    """Frame header and block prefix of a run of `size` bytes that has no room in front of it."""
    header = HEADER.pack(Kind.BLOCK, flags, interface, BLOCK_PREFIX_BYTES + size, sequence)
    return header + BLOCK_PREFIX.pack(records)


def decode_block(frame: Frame) -> tuple[int, memoryview]:
    """(record count, records) of a BLOCK frame. Raises ProtocolError where the prefix is not there."""
    if len(frame.payload) < BLOCK_PREFIX_BYTES:
        raise ProtocolError(f"a BLOCK frame of {len(frame.payload)} bytes is too short")
    (count,) = BLOCK_PREFIX.unpack_from(frame.payload)
    return count, frame.payload[BLOCK_PREFIX_BYTES:]


class Deframer:
    """Bytes in, frames out, without a socket. The caller reads into `space()`, says `filled(n)`, then takes `frames()`.

    Memory: `FIRST_BYTES` until the first frame is accepted, then as much as the largest announced frame needs, bounded
    by MOST_PAYLOAD_BYTES. `welcome` opens the larger bounds after the hello.
    """

    FIRST_BYTES = 4 * 1024
    READ_BYTES = 256 * 1024
    """Least space offered to one read once a hello was accepted."""

    def __init__(self) -> None:
        self._buffer = bytearray(self.FIRST_BYTES)
        self._start = self._end = 0
        self._preface_seen = False
        self._welcomed = False

    def welcome(self) -> None:
        """The hello was accepted: every kind of frame may come now."""
        self._welcomed = True

    def space(self) -> memoryview:
        """Where the next bytes of the peer go; never empty."""
        wanted = self._needed_bytes()
        if (self._start and len(self._buffer) - self._start < wanted) or self._end == len(self._buffer):
            kept = bytes(memoryview(self._buffer)[self._start : self._end])
            size = max(wanted, len(kept) + self.FIRST_BYTES)
            if size > len(self._buffer):
                self._buffer = bytearray(size)
            self._buffer[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        if len(self._buffer) < wanted:
            grown = bytearray(wanted)
            grown[: self._end] = memoryview(self._buffer)[: self._end]
            self._buffer = grown
        return memoryview(self._buffer)[self._end :]

    def _needed_bytes(self) -> int:
        least = self.READ_BYTES if self._welcomed else self.FIRST_BYTES
        if self._preface_seen and self._end - self._start >= HEADER_BYTES:
            least = max(least, HEADER_BYTES + self._checked_length())
        return least

    def filled(self, count: int) -> None:
        """`count` bytes were read into the last `space()`."""
        self._end += count

    def feed(self, data: bytes) -> None:
        """Take bytes that somebody else received."""
        while data:
            space = self.space()
            count = min(len(space), len(data))
            space[:count] = data[:count]
            self.filled(count)
            data = data[count:]

    def rest(self) -> bytes:
        """What was received behind the last frame that was taken."""
        return bytes(memoryview(self._buffer)[self._start : self._end])

    def _checked_length(self) -> int:
        kind, _, _, length, _ = HEADER.unpack_from(self._buffer, self._start)
        if kind not in MOST_PAYLOAD_BYTES:
            raise ProtocolError(f"unknown frame type {kind}")
        if not self._welcomed and kind not in BEFORE_THE_HELLO:
            raise ProtocolError(f"a {Kind(kind).name} frame came before the hello")
        if length > MOST_PAYLOAD_BYTES[kind]:
            most = MOST_PAYLOAD_BYTES[kind]
            raise ProtocolError(f"a {Kind(kind).name} frame of {length} bytes is over the bound of {most}")
        return int(length)

    def frames(self) -> Iterator[Frame]:
        """Every whole frame received so far. Raises ProtocolError at the first byte that can't be tapstream."""
        if not self._preface_seen and not self._take_preface():
            return
        while self._end - self._start >= HEADER_BYTES:
            length = self._checked_length()
            body = self._start + HEADER_BYTES
            if self._end - body < length:
                return
            kind, flags, interface, _, sequence = HEADER.unpack_from(self._buffer, self._start)
            self._start = body + length
            yield Frame(kind, flags, interface, sequence, memoryview(self._buffer)[body : body + length])
        if self._start == self._end:
            self._start = self._end = 0

    def _take_preface(self) -> bool:
        got = bytes(memoryview(self._buffer)[self._start : min(self._end, len(PREFACE))])
        if got[:7] != PREFACE[: min(len(got), 7)]:
            speaks = ": they are TLS, which this end does not speak" if got[0] == _TLS_HANDSHAKE else ""
            raise ProtocolError(f"the first bytes are no tapstream preface{speaks}")
        if len(got) < len(PREFACE):
            return False
        if got != PREFACE:
            raise ProtocolError(f"tapstream version {got[7]} is not spoken here, only {VERSION}")
        self._start = len(PREFACE)
        self._preface_seen = True
        return True


def printable(text: str) -> str:
    """Text of a peer as it may appear in a log or on a terminal: control characters escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
