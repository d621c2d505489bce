"""Passes the bytes of a TLS connection on to the worker that its agent belongs to, and the answers back.

What is in flight here is bounded by one buffer each way; a side that takes nothing makes the other one wait.
"""

import socket
from collections.abc import Callable

from guestagent.loop import READABLE, WRITABLE, Loop

BUFFER_BYTES = 256 * 1024
MOST_ROUNDS = 4
"""Of one turn: 1 MB, as any connection may take."""


class Flow:
    """One direction."""

    def __init__(self, source: socket.socket, sink: socket.socket, first: bytes = b"") -> None:
        self._source, self._sink = source, sink
        self._buffer = memoryview(bytearray(max(BUFFER_BYTES, len(first))))
        self._buffer[: len(first)] = first
        self._start, self._end = 0, len(first)
        self.is_ended = False
        """The source says no more."""

    @property
    def waits(self) -> bool:
        """For the sink to take what is here."""
        return self._start < self._end

    def move(self) -> None:
        """Pass on what is there, one turn's worth. Raises OSError where a side is gone."""
        rounds = 0
        while self._send() and not self.is_ended and (rounds < MOST_ROUNDS or self._hides_more()):
            rounds += 1
            try:
                count = self._source.recv_into(self._buffer)
            except BlockingIOError:
                return
            self._start, self._end = 0, count
            self.is_ended = count == 0

    def _send(self) -> bool:
        """Is the sink given everything?"""
        while self.waits:
            try:
                self._start += self._sink.send(self._buffer[self._start : self._end])
            except BlockingIOError:
                return False
        return True

    def _hides_more(self) -> bool:
        """Inside OpenSSL, where epoll does not see it."""
        pending = getattr(self._source, "pending", None)
        return bool(pending and pending())


class Bridge:
    """Both directions between the agent and its worker; it ends with either."""

    def __init__(
        self,
        agent: socket.socket,
        worker: socket.socket,
        unsent: bytes,
        loop: Loop,
        ended: Callable[["Bridge"], None],
    ) -> None:
        worker.setblocking(False)
        self._agent, self._worker, self._loop, self._ended = agent, worker, loop, ended
        self._in, self._out = Flow(agent, worker), Flow(worker, agent, unsent)
        for one in (agent, worker):
            loop.watch(one, READABLE, self._ready)

    def start(self) -> None:
        """Pass on what is here already: OpenSSL may hold bytes that nothing will announce."""
        self._ready(0)

    def _ready(self, events: int) -> None:
        """Either side can do something."""
        is_lost = bool(events & ~(READABLE | WRITABLE)) and not events & READABLE
        try:
            self._in.move()
            self._out.move()
        except OSError:
            is_lost = True
        if is_lost or any(flow.is_ended and not flow.waits for flow in (self._in, self._out)):
            self.close()
            return
        self._ask(self._agent, self._in, self._out)
        self._ask(self._worker, self._out, self._in)

    def _ask(self, one: socket.socket, comes: Flow, goes: Flow) -> None:
        wants_more = not (comes.waits or comes.is_ended)
        self._loop.change(one, (READABLE if wants_more else 0) | (WRITABLE if goes.waits else 0))

    def close(self) -> None:
        """End both; idempotent."""
        for one in (self._agent, self._worker):
            if one.fileno() >= 0:
                self._loop.forget(one)
                one.close()
        self._ended(self)
