"""The agent's link over TCP: connect, greet, send frames, hear ACKs; and again, for ever, with back-off.

                 tick: retry is due                 writable             collector's hello
    WAITING ───────────────────► RESOLVING ──► CONNECTING ──► GREETING ──────────────► STREAMING
       ▲                             │              │             │                        │
       └─────────────────────────────┴──── broken: reason, back-off ──────────────────────┘

The local port is chosen before the connection is made (bind), so the capture filter can leave out exactly this
connection from its first packet on: nothing wider is ever excluded.

A frame that the socket took only in part is repeated from the same byte of the same memory before anything else is
sent: TLS demands it (a retried write must offer the same bytes), TCP does not mind.
"""

import os
import socket
from collections import deque
from enum import Enum

from guestagent.links.owner import LinkOwner, LinkState
from guestagent.links.ramp import Ramp, bulk_socket, queued_bytes, segment_of, total_retransmitted
from guestagent.links.resolve import Address, Resolver
from guestagent.loop import EDGE, READABLE, WRITABLE, Loop
from guestagent.model import Exclusion
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Deframer, Frame, Kind, ProtocolError
from guestagent.tapstream.hello import decode_collector_hello, encode_agent_hello
from guestagent.tapstream.lease import decode_lease
from guestagent.tapstream.session import Backoff

CONNECT_SECONDS = 3.0
SILENCE_SECONDS = 3.0
"""A collector that answers nothing for so long is gone; its successor is found within the ring's 25 s."""
PING_SECONDS = 1.0
MOST_BYTES_PER_TURN = 4 * 1024 * 1024
"""One turn of the loop sends no more, so that ticks, signals and status keep their time at 40 Gbit/s (0.8 ms)."""

_IPPROTO_TCP = 6


class State(Enum):
    """Where the connection is; see the picture above."""

    WAITING = "waiting"
    RESOLVING = "resolving"
    CONNECTING = "connecting"
    GREETING = "greeting"
    STREAMING = "streaming"


class _GoodbyeError(Exception):
    """The collector ends the connection; the text is the sentence."""


class StreamLink:
    """One collector, by host and port; see `links.owner.Link` for the contract."""

    def __init__(self, host: str, port: int, owner: LinkOwner, loop: Loop, backoff: Backoff | None = None) -> None:
        self.endpoint = f"{host}:{port}"
        self.state = LinkState(False, f"not yet connected to {self.endpoint}")
        self._owner, self._loop = owner, loop
        self._backoff = backoff or Backoff()
        self._resolver = Resolver(host, port)
        loop.watch(self._resolver, READABLE, self._resolved)
        self._phase = State.WAITING
        self._due_at = 0.0
        self._tries = 0
        self._socket: socket.socket | None = None
        self._collector_id = ""
        self._reset_connection()

    def _reset_connection(self) -> None:
        self._deframer = Deframer()
        self._control: deque[bytes] = deque()
        self._ramp = Ramp()
        self._heard_at = self._checked_at = 0.0
        self.is_blocked = False
        self._drained_bytes = self.state.sent_bytes

    # -- time ---------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """When `tick` is due."""
        if self._phase is State.STREAMING:
            return max(self._heard_at, self._checked_at) + PING_SECONDS
        return self._due_at

    def tick(self, now: float) -> None:
        """Retry, give up a silent attempt, or ping."""
        if self._phase is State.STREAMING:
            if now >= self.deadline():
                self._check_silence(now)
        elif now >= self._due_at:
            if self._phase is State.WAITING:
                self._resolve(now)
            elif self._phase is State.RESOLVING and self._resolver.addresses:
                self._connect(now)  # the name server is slow; the last good answer serves
            else:
                self._broken(f"{self.endpoint} did not answer within {CONNECT_SECONDS:.0f} s ({self._phase.value})")

    def _check_silence(self, now: float) -> None:
        self._checked_at = now
        if self._still_draining():
            self._heard_at = max(self._heard_at, now - PING_SECONDS)
        if now - self._heard_at >= SILENCE_SECONDS:
            self._broken(f"{self.endpoint} has been silent for {SILENCE_SECONDS:.0f} s")
        elif now - self._heard_at >= PING_SECONDS:
            self._control.append(frames.encode(Kind.PING))
            self.pump(now)

    def _still_draining(self) -> bool:
        """On a slow path a ping waits behind data; bytes that the peer's kernel takes are a sign of life meanwhile."""
        assert self._socket is not None
        queued = queued_bytes(self._socket)
        before, self._drained_bytes = self._drained_bytes, self.state.sent_bytes - queued
        return queued > 0 and self._drained_bytes > before

    # -- coming up ----------------------------------------------------------------------------------------------

    def _resolve(self, now: float) -> None:
        self._enter(State.RESOLVING, now)
        if not self._resolver.start():
            self._connect(now)

    def _resolved(self, _events: int) -> None:
        self._resolver.collect()
        if self._phase is State.RESOLVING:
            self._connect(self._loop.now())

    def _connect(self, now: float) -> None:
        if not self._resolver.addresses:
            self._broken(f"the name of {self.endpoint} could not be resolved: {self._resolver.error}")
            return
        family, address = self._resolver.addresses[self._tries % len(self._resolver.addresses)]
        self._tries += 1
        try:
            self._open(family, address)
        except OSError as error:
            self._broken(f"no connection to {self.endpoint}: {error.strerror}")
            return
        self._enter(State.CONNECTING, now)

    def _open(self, family: int, address: "Address | tuple[str, int]") -> None:
        self._socket = bulk_socket(family)
        local_port = self._socket.getsockname()[1]
        remote, port = address[0], address[1]
        self._owner.exclude(Exclusion(_IPPROTO_TCP, str(remote).partition("%")[0], int(port), local_port))
        try:
            self._socket.connect(address)
        except BlockingIOError:
            pass
        self._loop.watch(self._socket, READABLE | WRITABLE | EDGE, self._ready)

    def _enter(self, state: State, now: float) -> None:
        self._phase = state
        self._due_at = now + CONNECT_SECONDS

    def _ready(self, events: int) -> None:
        now = self._loop.now()
        assert self._socket is not None
        if self._phase is State.CONNECTING:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._broken(f"no connection to {self.endpoint}: {os.strerror(error)}")
                return
            if not events & WRITABLE:
                return
            self._ramp.segment = segment_of(self._socket)
            self._greet(now)
        if events & ~WRITABLE:
            self._read(now)
        if self._phase in (State.GREETING, State.STREAMING):
            self.pump(now)

    def _greet(self, now: float) -> None:
        hello = encode_agent_hello(self._owner.hello())
        self._control.append(frames.PREFACE + frames.encode_json(Kind.HELLO, hello))
        self._enter(State.GREETING, now)

    # -- receiving ----------------------------------------------------------------------------------------------

    def _read(self, now: float) -> None:
        try:
            while self._socket is not None:
                count = self._socket.recv_into(self._deframer.space())
                if count == 0:
                    self._broken(f"{self.endpoint} closed the connection")
                    return
                self._deframer.filled(count)
                self._heard_at = now
                for frame in self._deframer.frames():
                    self._handle(frame, now)
        except BlockingIOError:
            pass
        except OSError as error:
            self._broken(f"the connection to {self.endpoint} broke: {error.strerror}")
        except _GoodbyeError as goodbye:
            self._broken(str(goodbye))
        except ProtocolError as error:
            self._broken(f"{self.endpoint} is no collector of ours: {error}")

    def _handle(self, frame: Frame, now: float) -> None:
        if frame.kind == Kind.BYE:
            reason = str(frames.decode_json(frame).get("reason", ""))[:200]
            raise _GoodbyeError(f"{self.endpoint} said goodbye: {frames.printable(reason)}")
        if self._phase is State.GREETING:
            if frame.kind != Kind.HELLO:
                raise ProtocolError("no hello came first")
            answer = decode_collector_hello(frames.decode_json(frame))
            self._owner.resumed(answer)
            self._collector_id = answer.collector_id
            self._deframer.welcome()
            self._phase = State.STREAMING
            self._heard_at = now
            self._backoff.succeeded()
            self._change(True, f"connected to collector {answer.collector_id} at {self.endpoint}")
        elif frame.kind == Kind.ACK:
            self._owner.acknowledged(frame.sequence, self._collector_id, frames.decode_json(frame))
        elif frame.kind == Kind.LEASE:
            self._owner.leased(decode_lease(frames.decode_json(frame)), now)
        elif frame.kind == Kind.PING:
            self._control.append(frames.encode(Kind.PONG))

    # -- sending ------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> bool:
        """Send until the socket is full, nothing is left or allowed, or the turn's share is used up (then True)."""
        left_bytes = MOST_BYTES_PER_TURN
        self.is_blocked = False
        while left_bytes > 0:
            if not self._ramp and (self._socket is None or not self._load(now)):
                return False
            allowance = self._owner.allowance(now)
            if allowance <= 0:
                return False
            assert self._socket is not None
            try:
                count = self._ramp.push(self._socket, allowance)
            except BlockingIOError:
                self.is_blocked = True
                return False
            except OSError as error:
                self._broken(f"the connection to {self.endpoint} broke: {error.strerror}")
                return False
            left_bytes -= count
            self.state.sent_bytes += count
            self._owner.spent(self._ramp.segment.wire_bytes(count))
        return True

    def _load(self, now: float) -> bool:
        """Put the next frame on the ramp: control frames first, they are small."""
        if self._control:
            self._ramp.load(self._control.popleft())
            return True
        if self._phase is not State.STREAMING:
            return False
        pending = self._owner.next_frame(now)
        if pending is None:
            return False
        self._ramp.load(pending.frame, pending.body)
        return True

    def retransmitted(self) -> int | None:
        """Segments that the kernel sent again on this connection."""
        return None if self._socket is None else total_retransmitted(self._socket)

    def finish(self, reason: str) -> None:
        """Send a BYE behind whatever is being sent."""
        if self._phase is State.STREAMING:
            self._control.append(frames.encode_json(Kind.BYE, {"reason": reason}))
            self.pump(self._loop.now())

    # -- going down ---------------------------------------------------------------------------------------------

    def _change(self, connected: bool, text: str) -> None:
        self.state.connected, self.state.text = connected, text
        self._owner.link_changed(connected, text if connected else f"{text}; the ring holds on")

    def _broken(self, reason: str) -> None:
        was_streaming = self._phase is State.STREAMING
        self._close_socket()
        self._phase = State.WAITING
        self.state.reconnects += was_streaming
        now = self._loop.now()
        self._due_at = now + self._backoff.failed(now)
        self._change(False, reason)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._loop.forget(self._socket)
            self._socket.close()
            self._socket = None
        self._reset_connection()

    def close(self) -> None:
        """Give back both descriptors."""
        self._close_socket()
        if self._resolver.fileno() >= 0:
            self._loop.forget(self._resolver)
        self._resolver.close()
