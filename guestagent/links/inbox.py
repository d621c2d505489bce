"""What a collector says on one connection, a turn's worth at a time: it can't keep the agent from its ring."""

import socket
from collections.abc import Iterator

from guestagent.errors import PeerError
from guestagent.tapstream.frames import Deframer, Frame

TURN_BYTES = 256 * 1024
LEAST_FRAME_COST_BYTES = 4096
"""What a frame, however small, counts of a turn: 64 of them. A collector says some 50 in a second, 200 at 10 Gbit/s."""


class Inbox:
    """Of one connection, to the peer of this name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._deframer = Deframer()
        self.has_more = False
        """The last turn ended before what there is did: the socket, which is watched for edges, won't tell again."""

    def welcome(self) -> None:
        """The hello was accepted: every kind of frame may come now."""
        self._deframer.welcome()

    def turn(self, connection: socket.socket) -> Iterator[Frame]:
        """The frames of one turn, in order. Raises PeerError at the end of the stream, ProtocolError, OSError."""
        left_bytes = TURN_BYTES
        self.has_more = False
        while True:
            for frame in self._deframer.frames():
                yield frame
                left_bytes -= max(LEAST_FRAME_COST_BYTES, len(frame.payload))
                if left_bytes <= 0:
                    self.has_more = True
                    return
            try:
                count = connection.recv_into(self._deframer.space())
            except BlockingIOError:
                return
            if count == 0:
                raise PeerError(f"{self._name} closed the connection")
            self._deframer.filled(count)
