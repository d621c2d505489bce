"""A stream link beside a collector that answers as the test says."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from guestagent.endpoint import Endpoint
from guestagent.links.stream import StreamLink
from guestagent.loop import Loop
from guestagent.tapstream import frames
from guestagent.tapstream.frames import PREFACE, Deframer, Kind
from guestagent.tapstream.hello import CollectorHello, encode_collector_hello
from guestagent.tapstream.session import Backoff
from tests.fakes import PATIENCE_SECONDS, FakeOwner

UNPACED = 2**32 - 1
_SO_MAX_PACING_RATE = 47
"""asm-generic/socket.h"""


def max_pacing_rate(connection: socket.socket) -> int:
    """Bytes a second, as the kernel has it; UNPACED where it spreads nothing."""
    return connection.getsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE) & UNPACED


class SkewedLoop(Loop):
    """A loop whose clock the test may advance."""

    skew = 0.0

    def now(self) -> float:
        """Monotonic seconds and the skew."""
        return super().now() + self.skew


class FakeCollector:
    """A listener that answers as the test says."""

    def __init__(self, receive_bytes: int = 0) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_bytes:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.port = self.listener.getsockname()[1]
        self.socket: socket.socket | None = None
        self.heard: list[tuple[Kind, int, bytes]] = []

    def accept(self) -> tuple[str, int]:
        """Take the next connection; where it comes from."""
        self.close_connection()
        self.socket, address = self.listener.accept()
        self.socket.setblocking(False)
        self.deframer = Deframer()
        self.deframer.welcome()
        self.heard.clear()
        return address

    def hear(self, most: int = 1 << 20) -> None:
        """Take what has arrived, or a part of it."""
        assert self.socket is not None
        try:
            while most > 0:
                count = self.socket.recv_into(self.deframer.space()[:most])
                most -= count
                self.deframer.filled(count)
                for frame in self.deframer.frames():
                    self.heard.append((Kind(frame.kind), frame.sequence, bytes(frame.payload)))
                if not count:
                    return
        except BlockingIOError:
            pass

    def say(self, data: bytes) -> None:
        """Send."""
        assert self.socket is not None
        self.socket.setblocking(True)
        self.socket.sendall(data)
        self.socket.setblocking(False)

    def greet(self, held: int | None = None) -> None:
        """Answer a hello."""
        hello = CollectorHello("collector-1", "0.1", held, {})
        self.say(PREFACE + frames.encode_json(Kind.HELLO, encode_collector_hello(hello)))

    def acknowledge(self, sequence: int, **notes: Any) -> None:
        """Send an ACK."""
        self.say(frames.encode_json(Kind.ACK, notes, sequence=sequence))

    def sequences(self) -> list[int]:
        """The numbered frames heard."""
        return [sequence for kind, sequence, _ in self.heard if kind in frames.SEQUENCED]

    def close_connection(self) -> None:
        """Close the connection, if there is one."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Bench:
    """A link, its loop, its owner and the other end."""

    def __init__(self, receive_bytes: int = 0) -> None:
        self.loop = SkewedLoop()
        self.owner = FakeOwner()
        self.collector = FakeCollector(receive_bytes)
        self.link = StreamLink(
            [Endpoint("tcp", "127.0.0.1", self.collector.port)], self.owner, self.loop, None, Backoff(lambda: 0.0)
        )

    def turn(self, seconds: float = 0.002) -> None:
        """One turn of the agent's loop."""
        self.link.tick(self.loop.now())
        self.loop.run_once(seconds)
        self.link.pump(self.loop.now())

    def until(self, condition: Callable[[], Any]) -> None:
        """Turn until something holds."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end, f"not within {PATIENCE_SECONDS:.0f} s; {self.link.state}"
            self.turn()

    def connect(self, held: int | None = None) -> None:
        """Up to a streaming link."""
        self.loop.skew += 6.0
        self.until(lambda: self.owner.exclusions and self._accepted())
        self.until(lambda: self._heard(Kind.HELLO))
        self.collector.greet(held)
        self.until(lambda: self.link.state.connected)

    def _accepted(self) -> bool:
        self.collector.listener.settimeout(0.01)
        with suppress(TimeoutError):
            self.address = self.collector.accept()
            return True
        return False

    def _heard(self, kind: Kind) -> bool:
        self.collector.hear()
        return any(one is kind for one, _, _ in self.collector.heard)

    def close(self) -> None:
        """Give everything back."""
        self.link.close()
        self.collector.close_connection()
        self.collector.listener.close()
        self.loop.close()
