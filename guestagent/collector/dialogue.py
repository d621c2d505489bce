"""What is said on one connection: frames in turns, the hello and its answer, ACKs, the goodbye."""

import logging
from collections.abc import Callable

from guestagent.capture.block import LAYOUTS
from guestagent.collector.connection import Connection
from guestagent.collector.registry import Registry
from guestagent.collector.run import Run
from guestagent.loop import Loop
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Frame, Kind, ProtocolError
from guestagent.tapstream.hello import AgentHello, decode_agent_hello, encode_collector_hello

log = logging.getLogger("guestagent.collector")

TURN_BYTES = 1024 * 1024
LEAST_FRAME_COST_BYTES = 4096
"""What a frame, however small, counts of a turn: 256 of them take about 10 ms, marks of 64 interfaces included."""
MOST_UNSENT_BYTES = 64 * 1024
"""ACKs that an agent does not read; beyond, it is cut off."""


class Dialogue:
    """Leads the talk with every peer; `arrives` decides what becomes of a connection when its agent is known."""

    def __init__(self, loop: Loop, registry: Registry, arrives: Callable[[Connection, AgentHello], bool]) -> None:
        self._loop, self._registry, self._arrives = loop, registry, arrives
        self.allowed: tuple[str, ...] = ()
        """Agents that a certificate may name; none: all."""

    def turn(self, connection: Connection, now: float) -> bool:
        """Take one turn's worth; False where that was the end. It raises what a hostile peer provokes."""
        budget = self._take_frames(connection, TURN_BYTES, now)
        is_open = True
        while budget > 0 and connection.takes_frames:
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
        connection.has_more = budget <= 0 or connection.waits_for_sink
        self.settle(connection, now)
        return is_open and not connection.is_finished

    def _take_frames(self, connection: Connection, budget: int, now: float) -> int:
        """Handle what was received while the turn's budget lasts; what is left of it. Small frames cost too."""
        if budget > 0:
            for frame in connection.deframer.frames():
                self._handle(connection, frame, now)
                budget -= LEAST_FRAME_COST_BYTES
                if budget <= 0 or not connection.takes_frames:
                    break
        return budget

    def _handle(self, connection: Connection, frame: Frame, now: float) -> None:
        run = connection.run
        if frame.kind == Kind.PING:
            connection.send(self._loop, connection.pong(now))
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
        if not self._arrives(connection, hello):
            connection.is_finished = True
            return
        try:
            run, answer = self._registry.open(hello)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        connection.run, connection.copy = run, hello.copy
        connection.waits_for_sink = bool(run.track.output.blocked_by)
        connection.deframer.welcome()
        answered = frames.encode_json(Kind.HELLO, encode_collector_hello(answer))
        connection.send(self._loop, connection.preface() + answered)
        names = ", ".join(one.name for one in hello.interfaces)
        log.info("agent %s at %s streams %s", hello.agent_id, connection.peer, frames.printable(names))

    def _goodbye(self, connection: Connection, run: Run, frame: Frame, now: float) -> None:
        reason = frames.printable(str(frames.decode_json(frame).get("reason", ""))[:200])
        self.settle(connection, now)
        if run.track.output.blocked_by:
            return  # the agent hears no ACK; whoever comes back gets the rest
        connection.run, connection.is_finished = None, True
        self._registry.said_goodbye(run, f"the agent ended: {reason}")
        log.info("agent %s said goodbye: %s", run.hello.agent_id, reason)

    def settle(self, connection: Connection, now: float) -> None:
        """Write what the turn brought; acknowledge it if it is time; wait where the sink is full."""
        run = connection.run
        if run is None or run.ended:
            return
        connection.waits_for_sink = not run.flush(now)
        if connection.waits_for_sink:
            connection.watch(self._loop)
            return
        if run.acks.due_at is not None and run.acks.due_at <= now:
            self.acknowledge(connection, run, now)

    def acknowledge(self, connection: Connection, run: Run, now: float) -> None:
        """Tell how far its run is safe."""
        notes = run.notes()
        frame = frames.encode_json(Kind.ACK, notes, sequence=run.acknowledged_sequence)
        if not notes:
            frame = frames.encode(Kind.ACK, sequence=run.acknowledged_sequence)
        connection.acked_at = now
        if run.acknowledged_sequence == run.place.held_sequence:
            run.acks.sent()  # else it says only that we live, and the sink's progress is still to be told
        connection.send(self._loop, frame)
