"""How frames enter the socket."""

import socket
import threading
import time
from math import inf

import pytest

from guestagent.links.ramp import LEAST_PACE_BYTES_PER_SECOND, MOST_WRITE_BYTES, PACE_SHARE, Ramp, bulk_socket
from tests.streams import UNPACED, max_pacing_rate

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


@pytest.mark.parametrize(
    "cap, pace",
    [
        (1e6, LEAST_PACE_BYTES_PER_SECOND),
        (1e9, PACE_SHARE * 1e9),
        (1e10, UNPACED),
    ],
)
def test_the_kernel_paces_a_little_above_the_cap(cap: float, pace: float) -> None:
    """So the cap is what holds back, and large packets stay large. Without a cap, or with one that no NIC has, there is
    no pace."""
    ramp = Ramp()
    with bulk_socket(socket.AF_INET) as connection:
        ramp.pace(connection, inf)
        never = max_pacing_rate(connection)
        ramp.pace(connection, cap)
        capped = max_pacing_rate(connection)
        ramp.pace(connection, inf)

        assert (never, capped, max_pacing_rate(connection)) == (UNPACED, pace, UNPACED)


def test_what_is_written_at_once_under_a_cap_leaves_spread() -> None:
    """Eight megabytes in one go take the time that their pace gives them, less what TCP sends before it paces."""
    whole, before_pacing = 8_000_000, 10 * 65_536
    ramp = Ramp()
    ramp.load(bytes(whole))
    with socket.create_server(("127.0.0.1", 0)) as server, bulk_socket(socket.AF_INET) as ours:
        ours.setblocking(True)
        ours.connect(server.getsockname())
        theirs = server.accept()[0]
        with theirs:
            ramp.pace(ours, 1e6)
            reader = threading.Thread(target=lambda: theirs.recv(whole, socket.MSG_WAITALL))
            start = time.monotonic()
            reader.start()
            while ramp:
                ramp.push(ours, inf)
            reader.join()
            seconds = time.monotonic() - start

    assert seconds >= (whole - before_pacing) / LEAST_PACE_BYTES_PER_SECOND
