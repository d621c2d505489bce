"""One connection of the collector: who it is, what waits to go out to it."""

import logging
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase

from guestagent.collector.run import Run
from guestagent.loop import READABLE, WRITABLE, Loop
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Deframer, Kind, ProtocolError
from guestagent.tapstream.hello import AgentHello

log = logging.getLogger("guestagent.collector")

LATE_SECONDS = 3.0
SILENCE_SECONDS = 10.0
"""An agent reports every second; one that is silent so long is late, then gone, and its run may come back."""


class Connection:
    """One peer: a stranger until its hello, then the bearer of a run."""

    def __init__(self, sock: socket.socket, peer: str, now: float) -> None:
        self.socket, self.peer = sock, peer
        self._preface = frames.PREFACE
        self.deframer = Deframer()
        self.run: Run | None = None
        self.copy = 0
        """Of the run, as its hello says."""
        self.unsent = b""
        self.born_at = self.heard_at = self.acked_at = now
        self.waits_for_sink = False
        self.has_more = False
        """Its turn ended before its frames did."""
        self.is_finished = False
        """Nothing more is taken from it here."""
        self.is_vouched = hasattr(sock, "agent_id")
        """Its name stands in a certificate."""
        self._is_late = False

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.socket.fileno()

    @property
    def takes_frames(self) -> bool:
        """May more be taken from it in this turn?"""
        return not (self.is_finished or self.waits_for_sink)

    @property
    def host(self) -> str:
        """Where it comes from, without the port: the same words for each of a stranger's connections."""
        return self.peer.rpartition(":")[0]

    def preface(self) -> bytes:
        """What goes out before our first frame; empty from then on."""
        preface, self._preface = self._preface, b""
        return preface

    def pong(self, now: float) -> bytes:
        """The answer to a PING; a stranger may ask, too, for it wants to know whether we are well before it comes."""
        if self.run is None:
            self.born_at = now
        return self.preface() + frames.encode(Kind.PONG)

    def vouched(self, hello: AgentHello, allowed: Sequence[str]) -> AgentHello:
        """The hello in the name that the certificate vouches for, where there is one. Raises ProtocolError."""
        vouch = getattr(self.socket, "agent_id", None)
        if vouch is None:  # plain, or another worker has asked already
            return hello
        agent_id = vouch(hello.agent_id)
        if not is_allowed(agent_id, allowed):
            raise ProtocolError(f"agent {agent_id} is not on the list of tls.allow")
        return replace(hello, agent_id=agent_id)

    def send(self, loop: Loop, data: bytes) -> None:
        """Send what can be sent; the rest waits for the socket."""
        self.unsent += data
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent = b""  # the next read tells the same and closes
        self.watch(loop)

    def watch(self, loop: Loop) -> None:
        """Ask for readable unless the sink is blocked, for writable only while something waits."""
        events = 0 if self.waits_for_sink else READABLE
        loop.change(self, events | (WRITABLE if self.unsent else 0))

    def is_silent(self, now: float) -> bool:
        """Has its agent said nothing for so long that it is gone? Before that it is late, which is said once."""
        seconds = now - self.heard_at
        was_late, self._is_late = self._is_late, seconds > LATE_SECONDS
        limit = SILENCE_SECONDS if seconds > SILENCE_SECONDS else LATE_SECONDS
        if self.run is not None and (limit == SILENCE_SECONDS or (self._is_late and not was_late)):
            log.warning("agent %s has been silent for %.0f s", self.run.hello.agent_id, limit)
        return limit == SILENCE_SECONDS

    def say_goodbye(self, reason: str) -> None:
        """Tell the peer why, if it can be told at once; never behind a frame that is half out."""
        if not self.unsent:
            with suppress(OSError):
                self.socket.send(self.preface() + frames.encode_json(Kind.BYE, {"reason": reason}))


def oldest_stranger(connections: Iterable[Connection]) -> Connection | None:
    """Who has been there longest without a hello, and gives way where there is no room: agents greet at once."""
    strangers = (one for one in connections if one.run is None)
    return min(strangers, key=lambda one: one.born_at, default=None)


def is_allowed(agent_id: str, allowed: Sequence[str]) -> bool:
    """Is the agent on the list? An empty one has everybody."""
    return not allowed or any(fnmatchcase(agent_id, pattern) for pattern in allowed)
