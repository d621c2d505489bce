"""Many datagrams with one system call (sendmmsg), at a pace.

One call for each costs 6 to 7 µs here, in batches 4 to 5: the difference is the load that a test wants to make.
"""

import ctypes
import errno
import os
import socket
import time
from collections.abc import Iterable
from itertools import islice

BATCH = 64
"""Where the system call no longer shows in the cost of a datagram."""
TICK_SECONDS = 0.0005
"""Pacing sleeps this long between bursts: near what sleep can do, and short beside any ring or queue here."""


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)


class BatchSender:
    """Sends messages over one connected or bound socket."""

    def __init__(self, over: socket.socket) -> None:
        self._descriptor = over.fileno()
        self._vectors = (_Vector * BATCH)()
        self._messages = (_Message * BATCH)()
        for message, vector in zip(self._messages, self._vectors, strict=True):
            message.header.vectors, message.header.vector_count = ctypes.pointer(vector), 1

    def send_paced(self, messages: Iterable[bytes], per_second: float | None) -> tuple[int, int, float]:
        """Send each message, none before its time; how many, their bytes, and the seconds it took."""
        source, sent, size, started = iter(messages), 0, 0, time.monotonic()
        while True:
            due = BATCH
            if per_second is not None:
                due = min(BATCH, int((time.monotonic() - started) * per_second) + 1 - sent)
                if due <= 0:
                    time.sleep(TICK_SECONDS)
                    continue
            batch = list(islice(source, due))
            self.send(batch)
            sent += len(batch)
            size += sum(map(len, batch))
            if len(batch) < due:
                return sent, size, time.monotonic() - started

    def send(self, batch: list[bytes]) -> None:
        """Send up to BATCH messages."""
        for vector, message in zip(self._vectors, batch, strict=False):
            vector.base, vector.length = message, len(message)
        done = 0
        while done < len(batch):
            rest = ctypes.byref(self._messages, done * ctypes.sizeof(_Message))
            sent = _libc.sendmmsg(self._descriptor, rest, len(batch) - done, 0)
            number = ctypes.get_errno()
            # Refused: an earlier datagram met a closed port; the one in hand has not left yet.
            if sent < 0 and number not in (errno.ECONNREFUSED, errno.EINTR):
                raise OSError(number, os.strerror(number))
            done += max(sent, 0)
