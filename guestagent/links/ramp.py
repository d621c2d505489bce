"""A TCP connection for bulk: its socket, the frames on their way into it, and what the kernel makes of their bytes."""

import fcntl
import socket
import struct
import termios
from collections import deque
from math import ceil, inf
from typing import NamedTuple

ETHERNET_BYTES = 14
IP_BYTES = {socket.AF_INET: 20, socket.AF_INET6: 40}
TCP_BYTES = 32
"""With the timestamps that Linux uses where the peer does."""
USUAL_PAYLOAD_BYTES = 1448
RECORD_BYTES = 16 * 1024
RECORD_OVERHEAD_BYTES = 22
"""Of a TLS 1.3 record: header, content type and tag (RFC 8446, section 5.2)."""
MOST_WRITE_BYTES = 64 * 1024
"""A write keeps the core until the kernel has copied it, and sent it where there is no pace; whoever wakes there waits.
So it is a quarter of a block. Over TLS what was offered once can't be taken back for anything more urgent."""

LEAST_PACE_BYTES_PER_SECOND = 125_000_000
"""A packet of 64 KB each half millisecond. The kernel makes a packet of what a pace brings in a millisecond,
so a slower one would mean more of them, each of which costs as much (net/ipv4/tcp_output.c, tcp_tso_autosize)."""
PACE_SHARE = 1.25
"""Of the cap, which shall be what holds back: this only spreads what it lets out."""
_MOST_PACE_BYTES_PER_SECOND = 2**31 - 1
"""As much as setsockopt(2) takes in an int; -1 is none."""
_NO_PACE = -1
_SO_MAX_PACING_RATE = 47
"""asm-generic/socket.h."""
_TC_PRIO_BULK = 2
"""linux/pkt_sched.h: pfifo_fast sends production traffic of the default class before copies."""
_MSG_MORE = 0x8000
"""linux/socket.h: the rest of the frame follows, do not send a small packet for its header."""
_LINGER_NOT = struct.pack("@ii", 1, 0)
"""struct linger: on, for no time."""
_TOTAL_RETRANS = struct.Struct("@100xI")
"""tcpi_total_retrans in struct tcp_info (include/uapi/linux/tcp.h)."""


class Segment(NamedTuple):
    """The largest packet of a connection: bytes of ours in it, and of headers around them."""

    payload_bytes: int = USUAL_PAYLOAD_BYTES
    header_bytes: int = ETHERNET_BYTES + IP_BYTES[socket.AF_INET6] + TCP_BYTES
    is_secure: bool = False

    def wire_bytes(self, payload_bytes: int) -> int:
        """What a write of so many bytes takes on the wire, as interfaces count: Ethernet header, no checksum."""
        if self.is_secure:
            payload_bytes += ceil(payload_bytes / RECORD_BYTES) * RECORD_OVERHEAD_BYTES
        return payload_bytes + ceil(payload_bytes / self.payload_bytes) * self.header_bytes


def bulk_socket(family: int, segment_bytes: int = 0) -> socket.socket:
    """A socket with a local port, not connected yet; where a length is given, neither end sends longer segments."""
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _TC_PRIO_BULK)
    if segment_bytes:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
    connection.bind(("" if family == socket.AF_INET else "::", 0))
    return connection


def abort(connection: socket.socket) -> None:
    """Have close(2) forget what is queued: it is sent again on another connection, and an orphan of the kernel's would
    go on sending it for minutes, long after the capture has ceased to leave it out."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)


def segment_of(connection: socket.socket) -> Segment:
    """The segment of an established connection."""
    payload_bytes = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    return Segment(
        max(1, payload_bytes), ETHERNET_BYTES + IP_BYTES[socket.AddressFamily(connection.family)] + TCP_BYTES
    )


def total_retransmitted(connection: socket.socket) -> int:
    """Segments sent again since the connection was made (TCP_INFO)."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOTAL_RETRANS.size)
    return int(_TOTAL_RETRANS.unpack(info)[0]) if len(info) == _TOTAL_RETRANS.size else 0


def queued_bytes(connection: socket.socket) -> int:
    """Bytes that the peer's kernel has not acknowledged (SIOCOUTQ)."""
    return int(struct.unpack("@i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0])


class Ramp:
    """Pieces of memory that leave in order; what the socket did not take is offered again from the same byte."""

    def __init__(self) -> None:
        self.segment = Segment()
        self._pieces: deque[memoryview] = deque()
        self._cap_bytes_per_second = inf

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def waiting_bytes(self) -> int:
        """Of the pieces."""
        return sum(map(len, self._pieces))

    def load(self, *pieces: memoryview | bytes | None) -> None:
        """Put a frame behind what is there."""
        self._pieces.extend(memoryview(piece) for piece in pieces if piece is not None)

    def pace(self, connection: socket.socket, cap_bytes_per_second: float) -> None:
        """Have the kernel spread in time what leaves under a cap, by its timer and not within our writes.

        What became ready while a packet leaves within a write waits until we are back in user mode, and that is most of
        what others wait for us.
        """
        if cap_bytes_per_second != self._cap_bytes_per_second:
            self._cap_bytes_per_second = cap_bytes_per_second
            pace = max(LEAST_PACE_BYTES_PER_SECOND, PACE_SHARE * cap_bytes_per_second)
            value = int(pace) if pace <= _MOST_PACE_BYTES_PER_SECOND else _NO_PACE
            connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, value)

    def push(self, connection: socket.socket, allowed_bytes: float) -> int:
        """Write the next piece, or as much of it as may leave; how much was written. Raises OSError as send does."""
        piece = self._pieces[0][:MOST_WRITE_BYTES]
        has_more = len(self._pieces) > 1 or len(piece) < len(self._pieces[0])
        if allowed_bytes < len(piece) + self.segment.header_bytes:
            piece, has_more = piece[: max(1, int(allowed_bytes) - self.segment.header_bytes)], len(self._pieces) > 1
        count = connection.send(piece, _MSG_MORE if has_more else 0)
        if count < len(self._pieces[0]):
            self._pieces[0] = self._pieces[0][count:]
        else:
            self._pieces.popleft()
        return count
