"""A collector on a socket, in the test's own loop, and raw peers that talk to it."""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guestagent.collector.registry import Registry
from guestagent.collector.server import Server
from guestagent.collector.sinks.directory import DirectorySink, Rotation
from guestagent.loop import Loop
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Deframer, Kind
from tests.fakes import PATIENCE_SECONDS


class Rig:
    """A collector on 127.0.0.1 whose loop the test turns; `peer` connects to it."""

    def __init__(self, root: Path, rotation: Rotation | None = None) -> None:
        self.loop = Loop()
        self.registry = Registry(DirectorySink(root, rotation or Rotation()), "collector-1", "0.1")
        self.server = Server(self.loop, self.registry)
        self.address = self.server.listen("127.0.0.1", 0)
        self._peers: list[Peer] = []

    def peer(self, say: bytes = b"", receive_bytes: int = 0) -> "Peer":
        """A connected peer that has said these bytes."""
        peer = Peer(self, receive_bytes)
        self._peers.append(peer)
        peer.say(say)
        return peer

    def turn(self, seconds: float = 0.0) -> None:
        """One turn of the collector's loop."""
        self.server.tick(self.loop.now())
        self.loop.run_once(seconds)

    def until(self, condition: Callable[[], Any], what: str = "it") -> None:
        """Turn the loop until something holds."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end, f"{what} did not happen within {PATIENCE_SECONDS:.0f} s"
            self.turn(0.002)

    def report(self, agent_id: str = "vm-1") -> dict[str, Any]:
        """What the collector's report says of one agent."""
        found: dict[str, Any] = self.registry.report()["agents"][agent_id]
        return found

    def close(self) -> None:
        """End everything."""
        for peer in self._peers:
            peer.socket.close()
        self.server.close()
        self.registry.close()
        self.loop.close()


class Peer:
    """The other end of a rig's connection: says raw bytes, hears frames."""

    def __init__(self, rig: Rig, receive_bytes: int) -> None:
        self._rig = rig
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect(rig.address)
        self.socket.setblocking(False)
        self._deframer = Deframer()
        self._deframer.welcome()
        self.heard: list[tuple[Kind, int, dict[str, Any]]] = []
        self.is_cut_off = False

    def say(self, data: bytes) -> None:
        """Send everything, turning the collector's loop as long as it takes; a peer cut off meanwhile stops."""
        view = memoryview(data)
        while view and not self.is_cut_off:
            try:
                view = view[self.socket.send(view) :]
            except BlockingIOError:
                self._rig.turn(0.001)
            except OSError:
                self.is_cut_off = True

    def hear(self) -> None:
        """Take what has arrived."""
        while not self.is_cut_off:
            try:
                count = self.socket.recv_into(self._deframer.space())
            except BlockingIOError:
                return
            except OSError:
                count = 0
            self.is_cut_off = not count
            self._deframer.filled(count)
            for frame in self._deframer.frames():
                self.heard.append((Kind(frame.kind), frame.sequence, frames.decode_json(frame)))

    def wait_for(self, kind: Kind, sequence: int = 0) -> dict[str, Any]:
        """The payload of the first frame of this kind that reaches this sequence."""

        def found() -> list[dict[str, Any]]:
            self.hear()
            return [value for one, number, value in self.heard if one is kind and number >= sequence]

        self._rig.until(found, f"a {kind.name} of at least {sequence}")
        return found()[0]

    def wait_for_end(self) -> None:
        """Until the collector has closed the connection."""

        def ended() -> bool:
            self.hear()
            return self.is_cut_off

        self._rig.until(ended, "the end of the connection")
