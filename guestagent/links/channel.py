"""One connection to one collector: connect, greet, send frames, hear ACKs; or only ping it and hear that it is well.

               writable               collector's hello
    CONNECTING ────────► GREETING ──────────────────────► STREAMING
         │                  ▲
         └────► WATCHING ───┘ greet: the link takes this one, it answered often enough

The local port is chosen before the connection is made (bind), so the capture filter can leave out exactly this
connection from its first packet on: nothing wider is ever excluded.
"""

import os
import socket
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from guestagent.errors import PeerError
from guestagent.links.collectors import Patience
from guestagent.links.inbox import Inbox
from guestagent.links.owner import LinkOwner, LinkState
from guestagent.links.pulse import Pulse, Sign
from guestagent.links.ramp import Ramp, abort, bulk_socket, queued_bytes, segment_of, total_retransmitted
from guestagent.links.resolve import Address
from guestagent.loop import EDGE, READABLE, WRITABLE, Loop
from guestagent.model import Exclusion
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Frame, Kind, ProtocolError
from guestagent.tapstream.hello import CollectorHello, decode_collector_hello, encode_agent_hello
from guestagent.tapstream.lease import decode_lease

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

MOST_BYTES_PER_TURN = 4 * 1024 * 1024
"""One turn of the loop sends no more, so that ticks, signals and status keep their time at 40 Gbit/s (0.8 ms)."""


class Phase(Enum):
    """Where the connection is; see the picture above."""

    CONNECTING = "connecting"
    WATCHING = "watching"
    GREETING = "greeting"
    STREAMING = "streaming"


class ChannelOwner(Protocol):
    """The link behind a channel."""

    def answered(self, channel: "Channel", now: float) -> None:
        """A watched collector is well."""

    def welcomed(self, channel: "Channel", answer: CollectorHello, now: float) -> None:
        """The collector takes the run."""

    def broke(self, channel: "Channel", reason: str) -> None:
        """The connection is over; the channel is closed already."""


class Channel:
    """A connection that is being made, or stands. After `broke` or `close` it is of no more use."""

    def __init__(
        self, name: str, link: ChannelOwner, owner: LinkOwner, loop: Loop, state: LinkState, *, patience: Patience
    ) -> None:
        self.name = name
        self.phase = Phase.CONNECTING
        self.pongs = 0
        self.is_blocked = self.is_leaving = False
        self.exclusion: Exclusion | None = None
        self._link, self._owner, self._loop, self._state, self.patience = link, owner, loop, state, patience
        self._host, self._collector_id, self._is_watch = "", "", False
        self._tls: Credentials | None = None
        self._socket: socket.socket | None = None
        self._inbox, self._ramp = Inbox(name), Ramp()
        self._control: deque[bytes] = deque()
        self._pulse = Pulse(patience.silence_seconds)
        self._due_at = 0.0
        self.is_swallowed = False
        """It ended because large packets, perhaps, do not get through."""
        self._sent_bytes = self._sent_sequence = self.acked_sequence = 0

    def open(
        self, address: Address, now: float, *, host: str, tls: "Credentials | None", watch: bool, segment_bytes: int = 0
    ) -> None:
        """Begin to connect, with no longer segments where a length is given. Raises OSError; then it is closed."""
        self._host, self._tls, self._is_watch = host, tls, watch
        self._due_at = now + self.patience.connect_seconds
        family, place = address
        self._socket = bulk_socket(family, segment_bytes)
        remote = str(place[0]).partition("%")[0]
        self.exclusion = Exclusion(socket.IPPROTO_TCP, remote, int(place[1]), self._socket.getsockname()[1])
        self._owner.exclude(self.exclusion)
        try:
            self._socket.connect(place)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            raise
        self._loop.watch(self._socket, READABLE | WRITABLE | EDGE, self._ready, is_patient=True)

    # -- time ---------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """When `tick` is due."""
        return self._pulse.due_at if self.phase in (Phase.STREAMING, Phase.WATCHING) else self._due_at

    def tick(self, now: float) -> None:
        """Give up a silent attempt, or ping."""
        if now < self.deadline():
            return
        if self.phase in (Phase.STREAMING, Phase.WATCHING):
            self._check_silence(now)
        else:
            # Of a hello, or of a certificate that was too long for the path, no word came back.
            self.is_swallowed = self.phase is Phase.GREETING and (self._tls is not None or self._queued_bytes() > 0)
            self.end(f"{self.name} did not answer within {self.patience.connect_seconds:.1f} s ({self.phase.value})")

    def _queued_bytes(self) -> int:
        return 0 if self._socket is None else queued_bytes(self._socket)

    def _check_silence(self, now: float) -> None:
        sign = self._pulse.look(now, self._sent_bytes, self._queued_bytes())
        if sign is Sign.SWALLOWED:
            self.is_swallowed = True
            self.end(f"large packets do not get through to {self.name}, trying smaller ones")
        elif sign is Sign.SILENT:
            self.end(f"{self.name} has been silent for {self.patience.silence_seconds:g} s")
        elif sign is Sign.QUIET:
            self._control.append(frames.encode(Kind.PING))
            self._pulse.asked(self._sent_bytes + self._ramp.waiting_bytes + frames.HEADER_BYTES)
            self.pump(now, fresh=False)

    # -- coming up ----------------------------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        now = self._loop.now()
        assert self._socket is not None
        if self.phase is Phase.CONNECTING:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self.end(f"no connection to {self.name}: {os.strerror(error)}")
                return
            if not events & WRITABLE:
                return
            self._connected(self._socket, now)
        # Nothing is sent here: the turn pumps after it looked at the blocks, and the governor knows no others.
        if events & ~WRITABLE:
            self._read(now)

    def _connected(self, plain: socket.socket, now: float) -> None:
        self._ramp.segment = segment_of(plain)._replace(is_secure=self._tls is not None)
        if self._tls is not None:
            try:
                self._socket = self._tls.wrap(plain, self._host)
            except OSError as error:  # it is gone again, and with it what ssl made of it
                self._socket = None
                self._link.broke(self, f"the connection to {self.name} broke: {error.strerror}")
                return
        self._control.append(frames.PREFACE)
        if self._is_watch:
            self.phase = Phase.WATCHING
            self._pulse.heard(now)
            self._control.append(frames.encode(Kind.PING))
        else:
            self.greet(now)

    def greet(self, now: float) -> None:
        """Offer the run to this collector."""
        hello = encode_agent_hello(self._owner.hello())
        self._control.append(frames.encode_json(Kind.HELLO, hello))
        self.phase = Phase.GREETING
        self._due_at = now + self.patience.connect_seconds
        self.pump(now)

    # -- receiving ----------------------------------------------------------------------------------------------

    def _read(self, now: float) -> None:
        if self._socket is None:  # what went out first broke it
            return
        self._pulse.heard(now)
        try:
            for frame in self._inbox.turn(self._socket):
                self._handle(frame, now)
        except OSError as error:
            self.end(f"the connection to {self.name} broke: {error.strerror or error}")
        except PeerError as goodbye:
            self.end(str(goodbye))
        except ProtocolError as error:
            self.end(f"{self.name} is no collector of ours: {error}")

    def _handle(self, frame: Frame, now: float) -> None:
        if frame.kind == Kind.BYE:
            reason = str(frames.decode_json(frame).get("reason", ""))[:200]
            raise PeerError(f"{self.name} said goodbye: {frames.printable(reason)}")
        if frame.kind == Kind.PING:
            if (pong := frames.encode(Kind.PONG)) not in self._control:  # one answers all pings that wait
                self._control.append(pong)
        elif frame.kind == Kind.PONG:
            self.pongs += 1
            if self.phase is Phase.WATCHING:
                self._link.answered(self, now)
        elif self.phase is not Phase.STREAMING:
            if self.phase is not Phase.GREETING or frame.kind != Kind.HELLO:
                raise ProtocolError("no hello came first")
            answer = decode_collector_hello(frames.decode_json(frame))
            self._collector_id, self.acked_sequence = answer.collector_id, answer.held_sequence or 0
            self._inbox.welcome()
            self.phase = Phase.STREAMING
            self._pulse.welcomed(now, self._sent_bytes, now - self._due_at + self.patience.connect_seconds)
            self._link.welcomed(self, answer, now)
        elif frame.kind == Kind.ACK:
            self.acked_sequence = frame.sequence
            self._owner.acknowledged(frame.sequence, self._collector_id, frames.decode_json(frame))
        elif frame.kind == Kind.LEASE:
            self._owner.leased(decode_lease(frames.decode_json(frame)), now)

    # -- sending ------------------------------------------------------------------------------------------------

    def pump(self, now: float, *, fresh: bool = True) -> bool:
        """Read what the last turn left, then send; True where more could come or go at once."""
        if self._inbox.has_more:
            self._read(now)
        return self._send(now, fresh) or self._inbox.has_more

    def _send(self, now: float, fresh: bool) -> bool:
        """Until the socket is full, nothing is left or allowed, or the turn's share is used up (then True)."""
        left_bytes, self.is_blocked = MOST_BYTES_PER_TURN, False
        if self._socket is None or self.phase is Phase.CONNECTING:
            return False
        self._ramp.pace(self._socket, self._owner.cap_bytes_per_second)
        while left_bytes > 0:
            if not self._ramp and not self._load(now, fresh):
                return False
            allowance = self._owner.allowance(now)
            if allowance <= 0:
                return False
            try:
                count = self._ramp.push(self._socket, allowance)
            except BlockingIOError:
                self.is_blocked = True
                return False
            except OSError as error:
                if not isinstance(error, ProtocolError):  # of TLS, which says it all
                    self._read(now)  # the peer may have said why before it closed
                self.end(f"the connection to {self.name} broke: {error.strerror or error}")
                return False
            left_bytes -= count
            self._sent_bytes += count
            self._state.sent_bytes += count
            self._owner.spent(self._ramp.segment.wire_bytes(count))
        return True

    def _load(self, now: float, fresh: bool) -> bool:
        """Put the next frame on the ramp: control frames first; `fresh` ones where the governor has seen the block."""
        if self._control:
            self._ramp.load(self._control.popleft())
            return True
        if not fresh or self.phase is not Phase.STREAMING or self.is_leaving:
            return False
        pending = self._owner.next_frame(now)
        if pending is None:
            return False
        self._sent_sequence = pending.sequence
        self._ramp.load(pending.frame, pending.body)
        return True

    @property
    def is_settled(self) -> bool:
        """Was everything that went out acknowledged?"""
        return not self._ramp and self.acked_sequence >= self._sent_sequence

    def retransmitted(self) -> int | None:
        """Segments that the kernel sent again on this connection."""
        return None if self._socket is None else total_retransmitted(self._socket)

    def finish(self, reason: str) -> None:
        """Send a BYE behind whatever is being sent."""
        if self.phase is Phase.STREAMING:
            self._control.append(frames.encode_json(Kind.BYE, {"reason": reason}))
            self.is_leaving = True
            self.pump(self._loop.now())

    # -- going down ---------------------------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """The connection is over; what is queued is forgotten."""
        if self._socket is not None:
            abort(self._socket)
            self.close()
            self._link.broke(self, reason)

    def close(self) -> None:
        """Give the descriptor back; idempotent."""
        if self._socket is not None:
            self._loop.forget(self._socket)
            self._socket.close()
            self._socket = None
