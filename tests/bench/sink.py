"""A collector that speaks tapstream and forgets: what the stream costs without what anyone does with it.

It reads every byte into one buffer, as `nc > /dev/null` does at the other end of tcpdump, and acknowledges as the
real one: every 20 ms, or every 8 MB.
"""

import select
import socket
import time

from guestagent.tapstream import frames
from guestagent.tapstream.frames import BLOCK_PREFIX, HEADER, HEADER_BYTES, PREFACE, Kind
from guestagent.tapstream.hello import CollectorHello, encode_collector_hello
from guestagent.tapstream.session import ACK_SECONDS

ACK_BYTES = 8 << 20


def discard(address: str, port: int = frames.DEFAULT_PORT) -> None:
    """Serve one agent after the other until terminated."""
    with socket.create_server((address, port)) as server:
        while True:
            stream, _ = server.accept()
            with stream:
                try:
                    _serve(stream)
                except ConnectionError:
                    pass


def _serve(stream: socket.socket) -> None:
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(frames.MOST_BLOCK_BYTES + BLOCK_PREFIX.size))
    readable = select.poll()
    readable.register(stream, select.POLLIN)
    _fill(stream, buffer[: len(PREFACE)])
    held, unsaid, said_at = 0, 0, 0.0
    while True:
        while held and unsaid and not readable.poll(ACK_SECONDS * 1000):
            stream.sendall(frames.encode(Kind.ACK, sequence=held))
            unsaid = 0
        _fill(stream, buffer[:HEADER_BYTES])
        kind, _, _, length, sequence = HEADER.unpack_from(buffer)
        _fill(stream, buffer[:length])
        if kind == Kind.HELLO:
            hello = encode_collector_hello(CollectorHello("bench", "0", None, {}))
            stream.sendall(PREFACE + frames.encode_json(Kind.HELLO, hello))
        elif kind == Kind.PING:
            stream.sendall(frames.encode(Kind.PONG))
        elif kind == Kind.BYE:
            return
        held, unsaid = max(held, sequence), unsaid + HEADER_BYTES + length
        if held and (unsaid >= ACK_BYTES or time.monotonic() - said_at >= ACK_SECONDS):
            stream.sendall(frames.encode(Kind.ACK, sequence=held))
            unsaid, said_at = 0, time.monotonic()


def _fill(stream: socket.socket, space: memoryview) -> None:
    if len(space) and stream.recv_into(space, len(space), socket.MSG_WAITALL) < len(space):
        raise ConnectionResetError("the agent is gone")
