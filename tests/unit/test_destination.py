"""Names of sensors: copies go where the name server says, never to a public address, never into the capture again."""

import errno
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from guestagent.encap.segment import NO_OFFLOAD
from guestagent.endpoint import Endpoint
from guestagent.links import resolve
from guestagent.links.destination import GONE_RESOLVE_SECONDS, RESOLVE_SECONDS, Destination
from guestagent.links.stream import StreamLink
from guestagent.loop import Loop
from guestagent.model import Exclusion
from tests.fakes import FakeOwner

PUBLIC = "8.8.8.8"
NO_WAY = "255.255.255.255"
"""connect(2) is refused (EACCES): broadcasting was not asked for."""


class Names:
    """The name server: what `sensor.example` is at the moment, the address that was asked for last first."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.port = 4789

    def look_up(self, host: str, port: int, flags: int = 0) -> list[resolve.Address]:
        """In the place of getaddrinfo."""
        if not self.addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, (address, port)) for address in self.addresses]


class Captures:
    """Remembers what is left out."""

    def __init__(self) -> None:
        self.exclusions: list[Exclusion] = []

    def exclude(self, exclusion: Exclusion) -> None:
        """One more."""
        self.exclusions.append(exclusion)

    def readmit(self, exclusion: Exclusion) -> None:
        """One less."""
        self.exclusions.remove(exclusion)

    def hosts(self) -> set[str]:
        """To whom."""
        return {one.remote_address for one in self.exclusions}


class Scene:
    """A destination by name, the loop, the clock."""

    def __init__(self, names: Names) -> None:
        self.names, self.loop, self.captures = names, Loop(), Captures()
        self.now = 100.0
        self.destination: Destination | None = None

    def open(self, **options: Any) -> Destination:
        """Make it."""
        check = options.pop("check", 0)
        endpoint = Endpoint("vxlan", "sensor.example", self.names.port, key=7, check=check)
        self.destination = Destination(endpoint, "split", self.loop, self.captures, **options)
        return self.destination

    def tick(self, seconds: float = 1.0) -> None:
        """Time passes, and a name server has time to answer."""
        assert self.destination is not None
        self.now += seconds
        self.destination.tick(self.now)
        end = time.monotonic() + 2
        while self.destination._resolver._busy and time.monotonic() < end:
            self.loop.run_once(0.02)

    def send(self) -> None:
        """One frame."""
        assert self.destination is not None
        assert self.destination.way is not None
        way = self.destination.way
        way.add((memoryview(bytes(60)), NO_OFFLOAD, 60, None), way.lanes[0], 7)
        way.flush()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """In the place of the system's resolver."""
    made = Names()
    monkeypatch.setattr(resolve, "look_up", made.look_up)
    return made


@pytest.fixture
def scene(names: Names) -> Iterator[Scene]:
    """Nothing open yet."""
    made = Scene(names)
    yield made
    if made.destination:
        made.destination.close()
    made.loop.close()


@pytest.fixture
def sensor(names: Names) -> Iterator[Callable[[str], socket.socket]]:
    """Opens sensors on addresses of lo, all on one port."""
    opened: list[socket.socket] = []

    def begin(address: str) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((address, names.port if opened else 0))
        one.settimeout(0.2)
        names.port = one.getsockname()[1]
        opened.append(one)
        return one

    yield begin
    for one in opened:
        one.close()


def heard(one: socket.socket) -> int:
    """How many datagrams wait there."""
    count = 0
    while True:
        try:
            one.recv(2000)
        except TimeoutError:
            return count
        count += 1


def test_a_name_of_a_public_address_is_refused(scene: Scene, names: Names) -> None:
    """Without allow_cleartext nothing is opened, and the trouble is a sentence that says what to do."""
    names.addresses = [PUBLIC]
    destination = scene.open()
    scene.tick()
    assert destination.way is None
    assert f"vxlan://sensor.example:4789?vni=7 at {PUBLIC} is not a private address" in destination.trouble
    assert "allow_cleartext" in destination.trouble
    assert [] == scene.captures.exclusions


def test_with_leave_copies_go_to_a_public_address(scene: Scene, names: Names) -> None:
    """`allow_cleartext` holds for names as for addresses."""
    names.addresses = [PUBLIC]
    destination = scene.open(allow_cleartext=True)
    scene.tick()
    assert destination.way is not None or "no way leads there" in destination.trouble


def test_tries_that_fail_leave_nothing_out(scene: Scene, names: Names) -> None:
    """While no way leads to a sensor each second's try is forgotten: what is left out does not grow with the outage."""
    names.addresses = [NO_WAY]
    destination = scene.open(allow_cleartext=True)
    for _ in range(3):
        scene.tick()
        assert "no way leads there: Permission denied" in destination.trouble
    assert [] == scene.captures.exclusions


def test_a_move_that_fails_leaves_the_old_way_out(
    scene: Scene, names: Names, sensor: Callable[[str], socket.socket]
) -> None:
    """Copies go on to the address before, so that stays left out of the capture, and the other is in it."""
    first = sensor("127.0.0.1")
    names.addresses = ["127.0.0.1"]
    scene.open(allow_cleartext=True, check=9)
    scene.tick()
    before = list(scene.captures.exclusions)
    names.addresses = [NO_WAY]
    for _ in range(3):
        scene.tick(RESOLVE_SECONDS)
    scene.send()
    assert 1 == heard(first)
    assert before == scene.captures.exclusions


def test_copies_follow_the_name(
    scene: Scene, names: Names, sensor: Callable[[str], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """A sensor that moves is found again off the loop; counters go on, and the old address is captured again."""
    first, second = sensor("127.0.0.1"), sensor("127.0.0.2")
    names.addresses = ["127.0.0.1"]
    destination = scene.open()
    scene.tick()
    assert destination.way is not None
    before = destination.way
    scene.send()
    names.addresses = ["127.0.0.2"]
    scene.tick(1.0)
    scene.send()
    assert {"127.0.0.1"} == scene.captures.hosts(), "an answer is not asked for every second"
    scene.tick(RESOLVE_SECONDS)
    scene.send()
    scene.send()

    assert (2, 2) == (heard(first), heard(second))
    assert destination.way is before
    assert (4, 4) == (before.frames, before.sender.calls)
    assert {"127.0.0.2"} == scene.captures.hosts()
    assert "127.0.0.2" == destination.describe()["address"]
    assert "is at 127.0.0.2 now" in caplog.text


@pytest.mark.parametrize("answer", [[], [PUBLIC]], ids=["no answer", "public"])
def test_a_bad_answer_changes_nothing(
    scene: Scene,
    names: Names,
    sensor: Callable[[str], socket.socket],
    answer: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A name server that is gone, or that points to a public address all at once, does not move the copies."""
    first = sensor("127.0.0.1")
    names.addresses = ["127.0.0.1"]
    destination = scene.open()
    scene.tick()
    names.addresses = answer
    scene.tick(RESOLVE_SECONDS)
    scene.send()
    assert 1 == heard(first)
    assert destination.is_well
    assert {"127.0.0.1"} == scene.captures.hosts()
    assert (PUBLIC in caplog.text) == bool(answer)


def test_the_next_address_of_a_name_serves_while_one_is_gone(
    scene: Scene, names: Names, sensor: Callable[[str], socket.socket]
) -> None:
    """Of several addresses the public one is passed over, and one whose companion port is closed is left."""
    sensor("127.0.0.1")
    second = sensor("127.0.0.2")
    with socket.create_server(("127.0.0.2", 0)) as companion:
        names.addresses = [PUBLIC, "127.0.0.1", "127.0.0.2"]
        destination = scene.open(check=companion.getsockname()[1])
        for _ in range(3):
            scene.tick()
        assert destination.is_unreachable
        scene.tick(GONE_RESOLVE_SECONDS)
        for _ in range(3):
            scene.tick()
        assert destination.is_well
        scene.send()
        assert 1 == heard(second)
        assert {"127.0.0.2"} == scene.captures.hosts()


def test_without_a_descriptor_the_companion_port_is_not_asked(
    scene: Scene, names: Names, sensor: Callable[[str], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is out of files sends on and judges nobody by a port that it could not ask."""
    sensor("127.0.0.1")
    names.addresses = ["127.0.0.1"]
    with socket.create_server(("127.0.0.1", 0)) as companion:
        destination = scene.open(check=companion.getsockname()[1])
        scene.tick()
        full = OSError(errno.EMFILE, "Too many open files")
        with monkeypatch.context() as context:
            context.setattr("guestagent.links.destination.socket.socket", mock.Mock(side_effect=full))
            for _ in range(3):
                scene.tick()
        assert destination.is_well
        for _ in range(2):
            scene.tick()
        assert destination.is_well


def test_a_collectors_name_is_never_a_public_address(names: Names) -> None:
    """tcp:// by name: each answer is judged when it is connected to, also one that came while the link was down."""
    owner, loop = FakeOwner(), Loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        names.addresses = [PUBLIC]
        link = StreamLink([Endpoint("tcp", "sensor.example", listener.getsockname()[1])], owner, loop)

        def turn(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                link.tick(loop.now())
                loop.run_once(0.01)

        turn(0.3)
        assert f"tcp://sensor.example:{listener.getsockname()[1]} at {PUBLIC} is not a private" in link.state.text
        assert [] == owner.exclusions
        names.addresses = ["127.0.0.1"]
        turn(1.0)
        assert {"127.0.0.1"} == {one.remote_address for one in owner.exclusions}
        link.close()
    loop.close()
