"""The far ends of the taps: they read, count what arrived, and forget it; the taps are never asked what they sent."""

import mmap
import socket
from collections.abc import Callable
from select import POLLIN, poll
from struct import Struct
from time import monotonic

from guestagent.capture.engine import DEFAULT_RING_BYTES
from guestagent.standback import stand_back
from guestagent.tapstream import frames
from guestagent.tapstream.frames import BLOCK_PREFIX_BYTES, HEADER, HEADER_BYTES, MOST_BLOCK_BYTES, PREFACE, Kind
from guestagent.tapstream.hello import CollectorHello, encode_collector_hello
from guestagent.tapstream.session import AckClock

_COUNTS = Struct("=QQ")
_RECORD = Struct("<I8xI")
"""struct tpacket3_hdr: offset of the next record, two words of time, captured bytes."""
_PCAP_FILE_HEADER_BYTES = 24
_PCAP_RECORD = Struct("<8xI4x")
"""Two words of time, captured bytes, original bytes."""
_READ_BYTES = 16 * 1024
"""The kernel copies to the end of a read before others run on that core; a whole block takes as long as an answer."""


class Tally:
    """Packets and bytes that arrived, in memory that a sensor's process shares with ours."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _COUNTS.size)

    def add(self, packets: int, size: int) -> None:
        """So many more; one process alone may do this."""
        before = self.read()
        _COUNTS.pack_into(self._memory, 0, before[0] + packets, before[1] + size)

    def read(self) -> tuple[int, int]:
        """(packets, bytes) so far."""
        packets, size = _COUNTS.unpack_from(self._memory)
        return int(packets), int(size)


def count_run(records: memoryview) -> tuple[int, int]:
    """(packets, bytes) of a run of ring records: from one to the next, whatever number the agent named."""
    at = packets = size = 0
    while at + _RECORD.size <= len(records):
        step, captured = _RECORD.unpack_from(records, at)
        packets, size = packets + 1, size + captured
        if not step:  # the kernel names no successor of a block's last record
            break
        at += step
    return packets, size


class PcapCounter:
    """Counts the records of a pcap file that comes in pieces cut anywhere."""

    def __init__(self) -> None:
        self._skip, self._rest = _PCAP_FILE_HEADER_BYTES, b""

    def feed(self, piece: bytes) -> tuple[int, int]:
        """(packets, bytes) whose header ends in this piece."""
        data = self._rest + piece if self._rest else piece
        at, packets, size = self._skip, 0, 0
        while at + _PCAP_RECORD.size <= len(data):
            (captured,) = _PCAP_RECORD.unpack_from(data, at)
            packets, size, at = packets + 1, size + captured, at + _PCAP_RECORD.size + captured
        self._rest, self._skip = data[at:], max(0, at - len(data))
        return packets, size


def count_pcap(address: str, port: int, tally: Tally) -> None:
    """Take what tcpdump writes, as `nc -l > /dev/null` would."""

    def serve(stream: socket.socket) -> None:
        counter = PcapCounter()
        while piece := stream.recv(_READ_BYTES):
            tally.add(*counter.feed(piece))

    _serve(address, port, serve)


def count_stream(address: str, port: int, tally: Tally) -> None:
    """Take tapstream, and acknowledge as the real collector does."""
    _serve(address, port, lambda stream: _converse(stream, tally))


def _serve(address: str, port: int, talk: Callable[[socket.socket], None]) -> None:
    stand_back()  # it shares the world's core with those who ask the application
    with socket.create_server((address, port)) as server:
        while True:
            stream, _ = server.accept()
            with stream:
                try:
                    talk(stream)
                except ConnectionError:
                    pass


def _converse(stream: socket.socket, tally: Tally) -> None:
    """Into one buffer, as the sink of tests.bench."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(MOST_BLOCK_BYTES + BLOCK_PREFIX_BYTES))
    acks, held, readable = AckClock(DEFAULT_RING_BYTES), 0, poll()
    readable.register(stream, POLLIN)
    _fill(stream, buffer[: len(PREFACE)])
    while True:
        while acks.due_at is not None:
            wait_ms = 1000 * (acks.due_at - monotonic())
            if wait_ms > 0 and readable.poll(wait_ms):
                break
            if wait_ms <= 0:
                stream.sendall(frames.encode(Kind.ACK, sequence=held))
                acks.sent()
        _fill(stream, buffer[:HEADER_BYTES])
        kind, _, _, length, sequence = HEADER.unpack_from(buffer)
        _fill(stream, buffer[:length])
        if kind == Kind.BLOCK:
            tally.add(*count_run(buffer[BLOCK_PREFIX_BYTES:length]))
        elif kind in _ANSWERS:
            stream.sendall(_ANSWERS[kind])
        if sequence:
            held = sequence
            acks.received(length, monotonic())


def _fill(stream: socket.socket, space: memoryview) -> None:
    for at in range(0, len(space), _READ_BYTES):
        piece = space[at : at + _READ_BYTES]
        if stream.recv_into(piece, len(piece), socket.MSG_WAITALL) < len(piece):
            raise ConnectionResetError("the agent is gone")


_HELLO = frames.encode_json(Kind.HELLO, encode_collector_hello(CollectorHello("bench", "0", None, {})))
_ANSWERS = {Kind.HELLO: PREFACE + _HELLO, Kind.PING: frames.encode(Kind.PONG)}
