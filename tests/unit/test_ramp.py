"""How frames enter the socket."""

import socket

from guestagent.links.ramp import MOST_WRITE_BYTES, Ramp

MSG_MORE = 0x8000
"""linux/socket.h"""


class Told(socket.socket):
    """One end of a pair that remembers how much each write offered, and whether it said that more follows."""

    writes: list[tuple[int, bool]]

    def send(self, data: memoryview, flags: int = 0) -> int:  # type: ignore[override]
        """As the kernel does."""
        self.writes.append((len(data), bool(flags & MSG_MORE)))
        return super().send(data, flags)


def told() -> tuple[Told, socket.socket]:
    """A connected pair, of which the first end tells."""
    ours, theirs = socket.socketpair()
    told = Told(fileno=ours.detach())
    told.writes = []
    told.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return told, theirs


def test_a_block_enters_the_socket_in_quarters() -> None:
    """No write keeps the core for a whole block, and none but the last lets the kernel send what fills no segment."""
    ramp = Ramp()
    ramp.load(bytes(16), bytes(4 * MOST_WRITE_BYTES))
    ours, theirs = told()
    with ours, theirs:
        while ramp:
            ramp.push(ours, float("inf"))
        assert ours.writes == [(16, True), *[(MOST_WRITE_BYTES, True)] * 3, (MOST_WRITE_BYTES, False)]


def test_what_a_cap_lets_through_leaves_at_once() -> None:
    """A piece that a cap cut off waits for no more of it: the next may leave in a while only."""
    ramp = Ramp()
    ramp.load(bytes(4 * MOST_WRITE_BYTES))
    ours, theirs = told()
    with ours, theirs:
        count = ramp.push(ours, 10_000.0)
        assert ours.writes == [(count, False)]
        assert 0 < count < 10_000
