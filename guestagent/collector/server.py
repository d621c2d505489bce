"""The collector's desk: listeners, connections, fair turns, ACKs.

One loop, level-triggered: a connection with data gets one turn of at most 1 MB, then the next one has its turn, so a
flooding agent can't starve the others. What a turn brought is written before it is acknowledged.
"""

import logging
import socket
from typing import TYPE_CHECKING, Any

from guestagent.capture.block import LAYOUTS, MalformedBlock
from guestagent.collector.connection import Connection, Lessor, accept, most_connections, open_listener
from guestagent.collector.registry import Agent, Registry
from guestagent.collector.run import Run
from guestagent.errors import GuestagentError
from guestagent.loop import READABLE, WRITABLE, Loop
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Frame, Kind, ProtocolError
from guestagent.tapstream.hello import decode_agent_hello, encode_collector_hello

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

log = logging.getLogger("guestagent.collector")

TURN_BYTES = 1024 * 1024
LEAST_FRAME_COST_BYTES = 4096
"""What a frame, however small, counts of a turn: 256 of them take about 10 ms, marks of 64 interfaces included."""
GREETING_SECONDS = 5.0
SILENCE_SECONDS = 10.0
"""An agent pings every second when idle; one that is silent so long is gone, its run may come back."""
MOST_UNSENT_BYTES = 64 * 1024
"""ACKs that an agent does not read; beyond, it is cut off."""
RETRY_SECONDS = 0.05
"""How soon a full disk or a slow reader is tried again."""
KEEPALIVE_SECONDS = 1.0
"""While the sink is blocked, ACKs without progress tell the agent that we live, and why we wait."""


class Server:
    """Serves many agents into one registry."""

    def __init__(self, loop: Loop, registry: Registry) -> None:
        self._loop, self._registry = loop, registry
        self._listeners: list[socket.socket] = []
        self.connections: dict[int, Connection] = {}
        self._most_connections = most_connections()
        self._leases = Lessor()
        self.allowed: tuple[str, ...] = ()
        self.refused = 0
        """Connections closed before or for what they sent."""

    def listen(self, host: str, port: int, tls: "Credentials | None" = None) -> tuple[str, int]:
        """Open a listener; the address it got. Raises ConfigError where the port is taken or the address not ours."""
        listener = open_listener(host, port)
        self._listeners.append(listener)
        self._loop.watch(listener, READABLE, lambda _events: self._accept(listener, tls))
        name = listener.getsockname()
        return str(name[0]), int(name[1])

    def _accept(self, listener: socket.socket, tls: "Credentials | None") -> None:
        connection = accept(listener, self._loop.now(), tls)
        if connection is None:
            return
        if len(self.connections) >= self._most_connections:
            self.refused += 1
            connection.socket.close()
            return
        self.connections[connection.fileno()] = connection
        self._loop.watch(connection, READABLE, lambda events: self._ready(connection, events))

    # -- one turn of one connection -------------------------------------------------------------------------------

    def _ready(self, connection: Connection, events: int) -> None:
        if connection.fileno() < 0:
            return  # closed by another connection's turn, within the same wake-up
        now = self._loop.now()
        if events & WRITABLE:
            self._send(connection, b"")
        if not connection.waits_for_sink:
            if events & ~WRITABLE:
                self._guarded_turn(connection, now)
        elif events & ~(READABLE | WRITABLE):
            self._close(connection)  # it is gone, and would wake us again and again; what it sent is held

    def _guarded_turn(self, connection: Connection, now: float) -> None:
        """A turn that no peer can get more out of than its own end."""
        try:
            is_open = self._turn(connection, now)
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

    def _turn(self, connection: Connection, now: float) -> bool:
        budget = self._take_frames(connection, TURN_BYTES, now)
        is_open = True
        while budget > 0:
            space = connection.deframer.space()
            try:
                count = connection.socket.recv_into(space)
            except BlockingIOError:
                break
            if count == 0:
                is_open = False
                break
            budget -= count
            connection.heard_at = now
            connection.deframer.filled(count)
            budget = self._take_frames(connection, budget, now)
            if count < len(space):
                break
        connection.has_more = budget <= 0
        self._settle(connection, now)
        return is_open and not connection.is_finished

    def _take_frames(self, connection: Connection, budget: int, now: float) -> int:
        """Handle what was received while the turn's budget lasts; what is left of it. Small frames cost too."""
        if budget > 0:
            for frame in connection.deframer.frames():
                self._handle(connection, frame, now)
                budget -= LEAST_FRAME_COST_BYTES
                if budget <= 0:
                    break
        return budget

    def _handle(self, connection: Connection, frame: Frame, now: float) -> None:
        run = connection.run
        if frame.kind == Kind.PING:
            self._send(connection, connection.pong(now))
            if len(connection.unsent) > MOST_UNSENT_BYTES:
                raise ProtocolError("it does not read its answers")
        elif run is None:
            if frame.kind != Kind.HELLO:
                raise ProtocolError(f"a {Kind(frame.kind).name} frame came before the hello")
            self._greet(connection, frame)
        elif frame.kind == Kind.BYE:
            self._goodbye(connection, run, frame, now)
        elif frame.kind != Kind.PONG and not run.ended:
            run.frame(frame, now)

    def _greet(self, connection: Connection, frame: Frame) -> None:
        hello = connection.vouched(decode_agent_hello(frames.decode_json(frame), LAYOUTS), self.allowed)
        for other in list(self.connections.values()):
            if other.run and (other.run.hello.run_id, other.run.hello.agent_id) == (hello.run_id, hello.agent_id):
                other.run = None
                self._close(other)
        try:
            run, answer = self._registry.open(hello)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        connection.run = run
        connection.deframer.welcome()
        self._send(connection, connection.preface() + frames.encode_json(Kind.HELLO, encode_collector_hello(answer)))
        names = ", ".join(one.name for one in hello.interfaces)
        log.info("agent %s at %s streams %s", hello.agent_id, connection.peer, frames.printable(names))

    def _goodbye(self, connection: Connection, run: Run, frame: Frame, now: float) -> None:
        reason = frames.printable(str(frames.decode_json(frame).get("reason", ""))[:200])
        self._settle(connection, now)
        if run.track.output.blocked_by:
            return  # the agent hears no ACK; whoever comes back gets the rest
        connection.run, connection.is_finished = None, True
        self._registry.said_goodbye(run, f"the agent ended: {reason}")
        log.info("agent %s said goodbye: %s", run.hello.agent_id, reason)

    def _settle(self, connection: Connection, now: float) -> None:
        """Write what the turn brought; acknowledge it if it is time; wait where the sink is full."""
        run = connection.run
        if run is None or run.ended:
            return
        connection.waits_for_sink = not run.flush(now)
        if connection.waits_for_sink:
            self._watch(connection)
            return
        if run.acks.due_at is not None and run.acks.due_at <= now:
            self._acknowledge(connection, run, now)

    def _acknowledge(self, connection: Connection, run: Run, now: float) -> None:
        notes = run.notes()
        frame = frames.encode_json(Kind.ACK, notes, sequence=run.acknowledged_sequence)
        if not notes:
            frame = frames.encode(Kind.ACK, sequence=run.acknowledged_sequence)
        connection.acked_at = now
        if run.acknowledged_sequence == run.place.held_sequence:
            run.acks.sent()  # else it says only that we live, and the sink's progress is still to be told
        self._send(connection, frame)

    def _send(self, connection: Connection, data: bytes) -> None:
        connection.unsent += data
        try:
            while connection.unsent:
                connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            connection.unsent = b""  # the next read tells the same and closes
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """Ask for readable unless the sink is blocked, for writable only while something waits."""
        events = 0 if connection.waits_for_sink else READABLE
        self._loop.change(connection, events | (WRITABLE if connection.unsent else 0))

    # -- time -----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Send due ACKs and leases, retry blocked sinks, end silent connections."""
        for connection, lease in self._leases.due(self.connections.values(), now):
            self._send(connection, lease)
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
            elif now - connection.heard_at > SILENCE_SECONDS:
                log.warning("agent %s has been silent for %.0f s", run.hello.agent_id, SILENCE_SECONDS)
                self._close(connection)
            elif run.acks.due_at is not None and run.acks.due_at <= now:
                self._acknowledge(connection, run, now)

    def _retry(self, connection: Connection, run: Run, now: float) -> None:
        connection.heard_at = now
        try:
            self._settle(connection, now)
        except GuestagentError as error:
            log.error("%s", error)
            self._close(connection)
            return
        if not connection.waits_for_sink:
            self._watch(connection)
        elif now - connection.acked_at >= KEEPALIVE_SECONDS:
            self._acknowledge(connection, run, now)

    def deadline(self, now: float) -> float:
        """When `tick` is due."""
        due = now + 1.0
        for connection in self.connections.values():
            if connection.waits_for_sink:
                return now + RETRY_SECONDS
            if connection.has_more:
                return now
            if connection.run is not None and connection.run.acks.due_at is not None:
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
            log.warning("%s was refused: %s", connection.peer, text)
        connection.say_goodbye(text)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if self.connections.pop(connection.fileno(), None) is None:
            return
        self._loop.forget(connection)
        connection.socket.close()
        if connection.run is not None and not connection.run.ended:
            log.warning("agent %s is gone without goodbye; its run may come back", connection.run.hello.agent_id)
            self._registry.broke(connection.run)

    def close(self) -> None:
        """Say goodbye to everyone; agents keep what was not acknowledged."""
        for connection in list(self.connections.values()):
            run = connection.run
            if run is not None and not connection.waits_for_sink:
                self._acknowledge(connection, run, self._loop.now())
            connection.say_goodbye("the collector stops")
            connection.run = None
            self._close(connection)
        for listener in self._listeners:
            self._loop.forget(listener)
            listener.close()

    def status(self) -> dict[str, Any]:
        """What `guestagent status` shows of a collector."""
        return {"connections": len(self.connections), "refused": self.refused, **self._registry.report()}
