"""Several workers behind one port: an agent belongs to one of them, and whoever accepts its connection hands it over.

The kernel spreads connections over the workers, so an agent that comes back may knock at another door. Its name decides
which worker holds its runs and writes its files, so each file has one writer, whatever happened to the connection.

A plain connection goes over whole (SCM_RIGHTS, unix(7)) and costs nothing from then on. The keys of a TLS connection
live in the process that made them: there the worker at the door keeps it and passes the plain bytes on (bridge.py).
"""

import json
import socket
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from guestagent.collector.bridge import Bridge
from guestagent.collector.connection import Connection
from guestagent.loop import Loop
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.hello import AgentHello, encode_agent_hello

MOST_MESSAGE_BYTES = 192 * 1024
"""A hello of 64 KB and what came behind it; what a stranger has been sent is less than that again."""


def owner_of(agent_id: str, workers: int) -> int:
    """The number of the worker that an agent belongs to."""
    return zlib.crc32(agent_id.encode()) % workers


class Mail(NamedTuple):
    """Where workers send each other connections: made once, before any of them starts, so none is lost with one."""

    inboxes: tuple[socket.socket, ...]
    outboxes: tuple[socket.socket, ...]
    """By number of the worker whose inbox it leads to."""

    def close(self) -> None:
        """Give all back; idempotent."""
        for one in (*self.inboxes, *self.outboxes):
            one.close()


def open_mail(workers: int) -> Mail:
    """An inbox for each worker. A message is delivered whole or not at all."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers)]
    for one in (end for pair in pairs for end in pair):
        one.setblocking(False)
    return Mail(*zip(*pairs, strict=True))


class Handover:
    """One worker's side of it."""

    def __init__(self, number: int, inbox: socket.socket, outboxes: Sequence[socket.socket], loop: Loop) -> None:
        self._number, self._inbox, self._outboxes, self._loop = number, inbox, outboxes, loop
        self.bridges: set[Bridge] = set()
        self.given = self.taken = 0

    def fileno(self) -> int:
        """Readable when a connection has come."""
        return self._inbox.fileno()

    def is_ours(self, agent_id: str) -> bool:
        """Does the agent belong to this worker?"""
        return owner_of(agent_id, len(self._outboxes)) == self._number

    def give(self, connection: Connection, hello: AgentHello) -> bool:
        """Hand an agent's connection over, and all that it has said; False where the other worker has no room.

        The socket is this function's to close, or the bridge's.
        """
        said = frames.PREFACE + frames.encode_json(Kind.HELLO, encode_agent_hello(hello)) + connection.deframer.rest()
        ours = theirs = None
        unsent = connection.unsent
        if connection.is_vouched:
            ours, theirs = socket.socketpair()
            unsent = b""  # the bridge sends it
        head = {
            "peer": connection.peer,
            "vouched": connection.is_vouched,
            "greeted": not connection.preface(),
            "unsent": len(unsent),
        }
        message = json.dumps(head).encode() + b"\n" + unsent + said
        try:
            outbox = self._outboxes[owner_of(hello.agent_id, len(self._outboxes))]
            socket.send_fds(outbox, [message], [(theirs or connection.socket).fileno()])
        except OSError:
            if ours:
                ours.close()
            connection.socket.close()
            return False
        finally:
            if theirs:
                theirs.close()
        if ours:
            bridge = Bridge(connection.socket, ours, connection.unsent, self._loop, self.bridges.discard)
            self.bridges.add(bridge)
            bridge.start()
        else:
            connection.socket.close()
        self.given += 1
        return True

    def take(self, now: float) -> tuple[Connection | None, bytes]:
        """A connection that came, and what its peer had said; None where none is there after all."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._inbox, MOST_MESSAGE_BYTES, 1)
        except OSError:
            return None, b""
        if not descriptors:  # this process may open no more files
            return None, b""
        sock = socket.socket(fileno=descriptors[0])
        sock.setblocking(False)
        head, _, rest = message.partition(b"\n")
        facts = json.loads(head)
        connection = Connection(sock, facts["peer"], now)
        connection.is_vouched = facts["vouched"]
        if facts["greeted"]:
            connection.preface()
        connection.unsent = rest[: facts["unsent"]]
        self.taken += 1
        return connection, rest[facts["unsent"] :]

    def close(self) -> None:
        """End the bridges; the mail is everybody's."""
        self._loop.forget(self._inbox)
        for bridge in list(self.bridges):
            bridge.close()
