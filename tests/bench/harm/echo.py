"""The application whose users would notice: an epoll echo server, and a client that asks at its own pace."""

import ctypes
import gc
import os
import select
import socket
import time
from contextlib import ExitStack, suppress
from math import inf

from tests.bench.harm.book import MESSAGE_BYTES, Answers, Book

ECHO_PORT = 7007
CONNECTIONS = 16
PATIENCE_SECONDS = 2.0
"""After the last request; longer than a retransmission or any queue here."""
_HEAD_START_SECONDS = 0.05
_READ_BYTES = 1 << 16
_PR_SET_TIMERSLACK = 29
_LEAST_SLACK_NS = 1
"""The kernel may let a sleeper oversleep by 50 µs otherwise, which is as much as an answer takes here."""


def serve_echo() -> None:
    """Send back whatever comes over any number of connections, until terminated."""
    streams: dict[int, socket.socket] = {}
    with socket.create_server(("", ECHO_PORT), backlog=CONNECTIONS) as server, select.epoll() as ready:
        ready.register(server, select.EPOLLIN)
        while True:
            for descriptor, _ in ready.poll():
                if descriptor == server.fileno():
                    stream = _at_once(server.accept()[0])
                    streams[stream.fileno()] = stream
                    ready.register(stream, select.EPOLLIN)
                elif not _echo(streams[descriptor]):
                    streams.pop(descriptor).close()


def _echo(stream: socket.socket) -> bool:
    with suppress(ConnectionError):
        if data := stream.recv(_READ_BYTES):
            stream.sendall(data)
            return True
    return False


def ask(address: str, per_second: float, seconds: float) -> Answers:
    """Ask for so long at this rate, and wait for the last answers."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _LEAST_SLACK_NS, 0, 0, 0)
    with suppress(PermissionError):  # a control group may have no real time to give
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # what else the world does is not the VM's delay
    gc.disable()  # its pauses would be taken for the server's
    with ExitStack() as stack:
        ready = stack.enter_context(select.epoll())
        streams = [
            stack.enter_context(_at_once(socket.create_connection((address, ECHO_PORT)))) for _ in range(CONNECTIONS)
        ]
        for stream in streams:
            ready.register(stream, select.EPOLLIN)
        start, count = time.monotonic() + _HEAD_START_SECONDS, int(per_second * seconds)
        book = Book(start, per_second, count, len(streams))
        return _converse(streams, ready, book, start + count / per_second + PATIENCE_SECONDS)


def _converse(streams: list[socket.socket], ready: select.epoll, book: Book, end: float) -> Answers:
    clock, request = time.monotonic, bytes(MESSAGE_BYTES)
    places = {stream.fileno(): at for at, stream in enumerate(streams)}
    while not book.is_over and (now := clock()) < end:
        for connection in book.take(now):
            streams[connection].sendall(request)
        due = book.next_due
        # select sleeps to the microsecond, epoll to the millisecond.
        select.select([ready], [], [], max(0.0, (due if due < inf else end) - clock()))
        for descriptor, _ in ready.poll(0):
            size = len(streams[places[descriptor]].recv(_READ_BYTES))
            book.received(places[descriptor], size, clock())
            if not size:
                raise ConnectionResetError("the echo server is gone")
    return book.close(clock())


def _at_once(stream: socket.socket) -> socket.socket:
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream
