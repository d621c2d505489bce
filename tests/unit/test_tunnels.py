"""Foreign tunnels on a socket: what comes while the sink takes nothing waits in a bound, or is counted as lost."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from guestagent.collector.registry import Registry
from guestagent.collector.sinks.shared import SharedSink, standard_output
from guestagent.collector.tunnels import Tunnels
from guestagent.encap import vxlan
from guestagent.endpoint import Endpoint
from guestagent.errors import ConfigError
from guestagent.loop import Loop
from tests.captures import packet
from tests.fakes import PATIENCE_SECONDS

ROUNDS, ROUND = 20, 25


class Scene:
    """A listener for VXLAN whose copies go into a pipe, and a mirror that sends there."""

    def __init__(self, write_end: int) -> None:
        self.loop = Loop()
        self.sink: SharedSink = standard_output(write_end)
        self.registry = Registry(self.sink, "collector-1", "0.1")
        self.tunnels = Tunnels(self.loop, self.registry)
        (name,) = self.tunnels.listen(Endpoint("vxlan", "127.0.0.1", 0))
        self.mirror = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.mirror.connect(("127.0.0.1", int(name.rpartition(":")[2])))

    @property
    def taken(self) -> int:
        """Datagrams that were read."""
        return int(self.tunnels.describe()["tunnels"]["listeners"][0]["datagrams"])

    def copy(self, count: int) -> None:
        """Send so many copies."""
        for number in range(count):
            self.mirror.send(vxlan.header(7) + packet(number))

    def fill(self) -> None:
        """Send copies until the sink takes no more."""
        while not self.tunnels._blocked:
            before = self.taken
            self.copy(ROUND)
            self.until(lambda wanted=before + ROUND: self.taken == wanted)  # type: ignore[misc]

    def until(self, condition: Callable[[], bool]) -> None:
        """Turn the loop until something holds."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end
            self.tunnels.tick(self.loop.now())
            self.loop.run_once(0.002)


@contextmanager
def scene_into(write_end: int) -> Iterator[Scene]:
    """A scene that is cleared away."""
    scene = Scene(write_end)
    yield scene
    scene.mirror.close()
    scene.tunnels.close()
    scene.loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(read end, write end); the test may close the first."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    yield read_end, write_end
    os.close(write_end)


def test_copies_for_a_reader_that_left_are_counted_and_not_kept(pipe: tuple[int, int]) -> None:
    """However many come after the pipe's reader is gone, each is counted as lost, and no more wait than at first."""
    os.close(pipe[0])
    with scene_into(pipe[1]) as scene:
        waiting = set()
        for number in range(1, ROUNDS + 1):
            scene.copy(ROUND)
            scene.until(lambda wanted=number * ROUND: scene.taken == wanted)  # type: ignore[misc]
            waiting.add(len(scene.sink._output._pending))
        assert len(waiting) == 1
        scene.tunnels.close()
        assert scene.tunnels.lost == {"sink_broken": ROUNDS * ROUND}


def test_copies_that_wait_for_a_reader_are_safe_or_counted(pipe: tuple[int, int]) -> None:
    """What waits for a slow reader is lost where that leaves, and no earlier; what it has taken is not."""
    with scene_into(pipe[1]) as scene:
        scene.fill()
        assert not scene.tunnels.lost
        os.close(pipe[0])
        scene.until(lambda: not scene.tunnels._blocked)
        assert not scene.tunnels.lost
        scene.tunnels.close()
        assert scene.tunnels.lost == {"sink_broken": ROUND}


def test_copies_that_wait_at_the_end_are_counted(pipe: tuple[int, int]) -> None:
    """A collector that ends while its reader takes nothing says how many copies that reader never got."""
    with scene_into(pipe[1]) as scene:
        scene.fill()
        scene.tunnels.close()
        assert scene.tunnels.lost == {"sink_full": ROUND}
        os.close(pipe[0])


def test_a_sender_whose_file_can_not_be_made_is_not_one_too_many(caplog: pytest.LogCaptureFixture) -> None:
    """Copies of a sender for whom the disk has no file are lost to the sink, by that name, and the log says why."""
    with scene_into(os.open("/dev/null", os.O_WRONLY)) as scene:
        refusal = ConfigError("captures can't be written to x: No space left on device; choose another --write")
        with mock.patch.object(scene.sink, "open_run", side_effect=refusal):
            for number in (1, 2):
                scene.copy(ROUND)
                scene.until(lambda wanted=number * ROUND: scene.taken == wanted)  # type: ignore[misc]
        assert scene.tunnels.lost == {"sink_broken": 2 * ROUND}
        scene.copy(1)
        scene.until(lambda: scene.taken == 2 * ROUND + 1)
        assert scene.tunnels.lost == {"sink_broken": 2 * ROUND}
    assert "vxlan-127.0.0.1-7 can't be taken: captures can't be written to x: No space left on device" in caplog.text
