"""JSON objects, one a line, over a socket between a worker and the process above it; neither ever blocks."""

import json
import socket
from contextlib import suppress
from typing import Any

MOST_UNSENT_BYTES = 4 * 1024 * 1024
"""Beyond, the other end stands still: what is said to it is dropped, since it would be old when it wakes."""
_READ_BYTES = 256 * 1024


class Lines:
    """One end. Both are trusted: they are forks of one process."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._received, self._unsent = b"", b""
        self.is_ended = False
        """The other end is gone."""

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def say(self, value: dict[str, Any]) -> None:
        """Queue an object and send what can be sent."""
        if len(self._unsent) < MOST_UNSENT_BYTES:
            self._unsent += json.dumps(value).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what can be sent."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""  # it is gone, which the next read tells

    def say_all(self, value: dict[str, Any], seconds: float) -> None:
        """The last words: wait until they are out, so long at most."""
        self._socket.settimeout(seconds)
        with suppress(OSError):
            self._socket.sendall(self._unsent + json.dumps(value).encode() + b"\n")
        self._unsent = b""

    def heard(self) -> list[dict[str, Any]]:
        """Every object that has come whole."""
        try:
            while data := self._socket.recv(_READ_BYTES):
                self._received += data
            self.is_ended = True
        except BlockingIOError:
            pass
        except OSError:
            self.is_ended = True
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Give the descriptor back; idempotent."""
        self._socket.close()
