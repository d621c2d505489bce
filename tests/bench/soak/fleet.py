"""Many simulated agents in one process: real sockets, the real protocol, its window and its resume."""

import random
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from guestagent.tapstream import frames
from guestagent.tapstream.frames import Deframer, Kind
from guestagent.tapstream.hello import decode_collector_hello, encode_agent_hello
from guestagent.tapstream.session import SendWindow
from tests.fakes import agent_hello, run_of_records
from tests.lab.faults.strangers import LINGER_NOT

PACKETS_PER_BLOCK = 10
RECORDS, RECORD_COUNT = run_of_records([bytes([number]) * 200 for number in range(PACKETS_PER_BLOCK)])
BLOCK_SECONDS = 0.5
"""Of each agent; 200 send 400 blocks, 4,000 packets a second."""
TURN_SECONDS = 0.01
DRAIN_SECONDS = 15.0
AGAIN_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Sent:
    """What the fleet did."""

    records: dict[str, int]
    """By agent."""
    unacknowledged: int
    resets: int


class Member:
    """One agent."""

    def __init__(self, number: int, address: tuple[str, int], moments: random.Random) -> None:
        self.name, self._address = f"vm-{number:03}", address
        self._run_id = f"{moments.getrandbits(128):032x}"
        self._window = SendWindow()
        self.records = 0
        self.socket: socket.socket | None = None
        self.connect_at = self.block_at = moments.uniform(0.0, BLOCK_SECONDS)

    @property
    def unacknowledged(self) -> int:
        """Frames."""
        return len(self._window)

    def connect(self) -> socket.socket:
        """A new connection, with the hello of the run as it stands."""
        self.socket = socket.create_connection(self._address, 5.0)
        self.socket.setblocking(False)
        self._deframer, self._is_greeted, self._out = Deframer(), False, b""
        hello = agent_hello(self._run_id, agent_id=self.name, first_sequence=self._window.first_sequence)
        self._say(frames.PREFACE + frames.encode_json(Kind.HELLO, encode_agent_hello(hello)))
        return self.socket

    def block(self) -> None:
        """One more block of records."""
        payload = frames.BLOCK_PREFIX.pack(RECORD_COUNT) + RECORDS
        self._window.add(Kind.BLOCK, lambda sequence: frames.encode(Kind.BLOCK, payload, sequence=sequence))
        self.records += RECORD_COUNT

    def pump(self) -> None:
        """Send what waits."""
        while self._is_greeted and not self._out and (pending := self._window.send_next()):
            self._say(bytes(pending.frame))
        self._say(b"")

    def _say(self, data: bytes) -> None:
        assert self.socket is not None
        self._out += data
        with suppress(BlockingIOError):
            while self._out:
                self._out = self._out[self.socket.send(self._out) :]

    def hear(self) -> None:
        """Take what came. Raises OSError where the connection is over."""
        assert self.socket is not None
        try:
            count = self.socket.recv_into(self._deframer.space())
        except BlockingIOError:
            return
        if not count:
            raise ConnectionError
        self._deframer.filled(count)
        for frame in self._deframer.frames():
            if frame.kind == Kind.HELLO:
                held = decode_collector_hello(frames.decode_json(frame)).held_sequence
                self._window.acknowledge(held or 0)
                self._window.rewind()
                self._deframer.welcome()
                self._is_greeted = True
            elif frame.kind == Kind.ACK:
                self._window.acknowledge(frame.sequence)

    def reset(self) -> None:
        """Hang up with a RST; whatever was on its way is sent again."""
        assert self.socket is not None
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self.socket.close()
        self.socket = None

    def goodbye(self) -> None:
        """End the run."""
        if self.socket is not None:
            self._say(frames.encode_json(Kind.BYE, {"reason": "the soak is over"}))
            self.socket.close()


def fleet(port: int, count: int, seconds: float, resets_per_second: float, seed: int = 4795) -> Sent:
    """Be `count` agents for so long, of which some hang up every second, in storms; all that was sent is acknowledged
    at the end, or counted."""
    moments = random.Random(seed)
    members = [Member(number, ("127.0.0.1", port), moments) for number in range(count)]
    poller, by_descriptor = select.epoll(), {}
    start, resets, storm_at = time.monotonic(), 0, 5.0
    while (now := time.monotonic() - start) < seconds + DRAIN_SECONDS:
        is_over = now >= seconds
        if is_over and not any(member.unacknowledged for member in members):
            break
        if not is_over and resets_per_second and now >= storm_at:
            storm_at += 5.0
            for member in moments.sample(members, min(count, int(5.0 * resets_per_second))):
                if member.socket is not None:
                    by_descriptor.pop(member.socket.fileno())
                    member.reset()
                    member.connect_at, resets = now + moments.uniform(0.0, AGAIN_SECONDS), resets + 1
        for member in members:
            if member.socket is None and now >= member.connect_at:
                by_descriptor[member.connect().fileno()] = member
                poller.register(member.socket, select.EPOLLIN)
            if not is_over and now >= member.block_at:
                member.block_at += BLOCK_SECONDS
                member.block()
            if member.socket is not None:
                member.pump()
        for descriptor, _ in poller.poll(TURN_SECONDS):
            member = by_descriptor[descriptor]
            try:
                member.hear()
            except OSError:
                by_descriptor.pop(descriptor)
                member.reset()
                member.connect_at = now + AGAIN_SECONDS
    for member in members:
        member.goodbye()
    return Sent(
        {member.name: member.records for member in members}, sum(member.unacknowledged for member in members), resets
    )
