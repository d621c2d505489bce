"""The collector's desk: listeners, connections, whose turn it is, what time asks for.

One loop, level-triggered: a connection with data gets one turn of at most 1 MB, then the next one has its turn, so a
flooding agent can't starve the others. What a turn brought is written before it is acknowledged.
"""

import logging
import socket
from typing import TYPE_CHECKING, Any

from guestagent.capture.block import MalformedBlock
from guestagent.collector.connection import Connection, is_allowed, oldest_stranger
from guestagent.collector.dialogue import MOST_UNSENT_BYTES, Dialogue
from guestagent.collector.handover import Handover
from guestagent.collector.lessor import Lessor, LocalLessor
from guestagent.collector.listeners import accept, most_connections, open_listeners
from guestagent.collector.registry import Agent, Registry
from guestagent.collector.run import Run
from guestagent.errors import GuestagentError
from guestagent.loop import READABLE, WRITABLE, Loop
from guestagent.tapstream import frames
from guestagent.tapstream.frames import ProtocolError
from guestagent.tapstream.hello import AgentHello

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

log = logging.getLogger("guestagent.collector")

GREETING_SECONDS = 5.0
RETRY_SECONDS = 0.05
"""How soon a full disk or a slow reader is tried again."""
KEEPALIVE_SECONDS = 1.0
"""While the sink is blocked, ACKs without progress tell the agent that we live, and why we wait."""


class Server:
    """Serves many agents into one registry."""

    def __init__(
        self, loop: Loop, registry: Registry, lessor: Lessor | None = None, handover: Handover | None = None
    ) -> None:
        self._loop, self._registry = loop, registry
        self._listeners: list[socket.socket] = []
        self.connections: dict[int, Connection] = {}
        self._most_connections = most_connections()
        self._lessor = lessor or LocalLessor()
        self._handover = handover
        """To the other workers, where there are any."""
        if handover is not None:
            loop.watch(handover, READABLE, lambda _events: self._adopt(handover))
        self._dialogue = Dialogue(loop, registry, self._arrives)
        self.refused = 0
        """Connections closed before or for what they sent."""

    def listen(self, host: str, port: int, tls: "Credentials | None" = None) -> tuple[str, int]:
        """Open a listener; the address it got. Raises ConfigError where the port is taken or the address not ours."""
        (listener,) = open_listeners(host, port)
        self.serve(listener, tls)
        name = listener.getsockname()
        return str(name[0]), int(name[1])

    def serve(self, listener: socket.socket, tls: "Credentials | None" = None) -> None:
        """Take who comes to a listener, which is ours from now on."""
        self._listeners.append(listener)
        self._loop.watch(listener, READABLE, lambda _events: self._accept(listener, tls))

    def allow(self, patterns: tuple[str, ...]) -> None:
        """Serve these agents alone, of those who show a certificate; whoever is not on the list any more is cut off."""
        self._dialogue.allowed = patterns
        for connection in list(self.connections.values()):
            run = connection.run
            if run and connection.is_vouched and not is_allowed(run.hello.agent_id, patterns):
                self._refuse(connection, f"agent {run.hello.agent_id} is not on the list of tls.allow any more")

    def _accept(self, listener: socket.socket, tls: "Credentials | None") -> None:
        connection = accept(listener, self._loop.now(), tls)
        if connection is not None:
            self._welcome(connection)

    def _welcome(self, connection: Connection) -> bool:
        """One peer more, where there is room for it."""
        bridges = len(self._handover.bridges) if self._handover else 0
        if len(self.connections) + bridges >= self._most_connections:
            stranger = oldest_stranger(self.connections.values())
            if stranger is None:
                self.refused += 1
                connection.socket.close()
                return False
            self._refuse(stranger, "it gave no hello, and its place was needed")
        self.connections[connection.fileno()] = connection
        self._loop.watch(connection, READABLE, lambda events: self._ready(connection, events))
        return True

    def _adopt(self, handover: Handover) -> None:
        """Take the connection of an agent of ours that came to another worker, and what it had said there."""
        now = self._loop.now()
        connection, said = handover.take(now)
        if connection is not None and self._welcome(connection):
            connection.send(self._loop, b"")
            try:
                connection.deframer.feed(said)
            except ProtocolError as error:
                self._refuse(connection, str(error))
            else:
                self._guarded_turn(connection, now)

    # -- one turn of one connection -------------------------------------------------------------------------------

    def _ready(self, connection: Connection, events: int) -> None:
        if connection.fileno() < 0:
            return  # closed by another connection's turn, within the same wake-up
        now = self._loop.now()
        if events & WRITABLE:
            connection.send(self._loop, b"")
        if not connection.waits_for_sink:
            if events & ~WRITABLE:
                self._guarded_turn(connection, now)
        elif events & ~(READABLE | WRITABLE):
            self._close(connection)  # it is gone, and would wake us again and again; what it sent is held

    def _guarded_turn(self, connection: Connection, now: float) -> None:
        """A turn that no peer can get more out of than its own end."""
        try:
            is_open = self._dialogue.turn(connection, now)
        except (ProtocolError, MalformedBlock, MemoryError) as error:
            self._refuse(connection, str(error) or "the collector is out of memory")
            return
        except GuestagentError as error:
            self._refuse(connection, str(error))
            log.error("%s", error)
            return
        except OSError:
            is_open = False
        if not is_open:
            self._close(connection)

    def _arrives(self, connection: Connection, hello: AgentHello) -> bool:
        """An agent is known: its older connection goes. False where it belongs to another worker, which has it now.

        Raises ProtocolError where that is one of several copies, and this another: each would end the other for ever.
        """
        if self._handover and not self._handover.is_ours(hello.agent_id):
            del self.connections[connection.fileno()]
            self._loop.forget(connection)
            if not self._handover.give(connection, hello):
                self.refused += 1
                log.warning("agent %s at %s finds its worker busy, it may come back", hello.agent_id, connection.peer)
            return False
        for other in list(self.connections.values()):
            if other.run and (other.run.hello.run_id, other.run.hello.agent_id) == (hello.run_id, hello.agent_id):
                if other.copy != hello.copy:
                    raise ProtocolError(
                        "it has this run already, as another of its copies: two destinations in `to` lead here"
                    )
                other.run = None
                self._close(other)
        return True

    # -- time -----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Send due ACKs and leases, retry blocked sinks, end silent connections."""
        for connection, lease in self._lessor.due(self.connections.values(), now):
            connection.send(self._loop, lease)
        self._registry.retry(now)
        for connection in list(self.connections.values()):
            run = connection.run
            if len(connection.unsent) > MOST_UNSENT_BYTES:
                self._refuse(connection, "it does not read its acknowledgements")
            elif connection.has_more and not connection.waits_for_sink:
                self._guarded_turn(connection, now)
            elif connection.waits_for_sink and run is not None:
                self._retry(connection, run, now)
            elif run is None:
                if now - connection.born_at > GREETING_SECONDS:
                    self._refuse(connection, f"no hello within {GREETING_SECONDS:.0f} s")
            elif connection.is_silent(now):
                self._close(connection)
            elif run.acks.due_at is not None and run.acks.due_at <= now:
                self._dialogue.acknowledge(connection, run, now)

    def _retry(self, connection: Connection, run: Run, now: float) -> None:
        connection.heard_at = now
        try:
            self._dialogue.settle(connection, now)
        except GuestagentError as error:
            log.error("%s", error)
            self._close(connection)
            return
        if not connection.waits_for_sink:
            connection.watch(self._loop)
        elif now - connection.acked_at >= KEEPALIVE_SECONDS:
            self._dialogue.acknowledge(connection, run, now)

    def deadline(self, now: float) -> float:
        """When `tick` is due."""
        due = now + (RETRY_SECONDS if self._registry.unwritten else 1.0)
        for connection in self.connections.values():
            if connection.waits_for_sink:
                due = min(due, now + RETRY_SECONDS)
            elif connection.has_more:
                return now
            elif connection.run is not None and connection.run.acks.due_at is not None:
                due = min(due, connection.run.acks.due_at)
        return due

    # -- ends -----------------------------------------------------------------------------------------------------

    def _refuse(self, connection: Connection, reason: str) -> None:
        self.refused += 1
        text = frames.printable(reason)
        if connection.run is not None:
            name = connection.run.hello.agent_id
            self._registry.agents.setdefault(name, Agent()).refused += 1
            log.warning("agent %s at %s was cut off: %s", name, connection.peer, text)
        else:
            log.warning("%s was refused: %s", connection.host, text)
        connection.say_goodbye(text)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if self.connections.pop(connection.fileno(), None) is None:
            return
        self._loop.forget(connection)
        connection.socket.close()
        if connection.run is not None and not connection.run.ended:
            self._registry.broke(connection.run)

    def close(self) -> None:
        """Say goodbye to everyone; agents keep what was not acknowledged."""
        for connection in list(self.connections.values()):
            run = connection.run
            if run is not None and not connection.waits_for_sink:
                self._dialogue.acknowledge(connection, run, self._loop.now())
            connection.say_goodbye("the collector stops")
            connection.run = None
            self._close(connection)
        for listener in self._listeners:
            self._loop.forget(listener)
            listener.close()
        if self._handover:
            self._handover.close()

    def status(self) -> dict[str, Any]:
        """What `guestagent status` shows of a collector."""
        return {"connections": len(self.connections), "refused": self.refused, **self._registry.report()}
