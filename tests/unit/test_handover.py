"""What workers do among themselves: hand a connection over, pass TLS bytes on, talk in lines, add up what they know."""

import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestagent.collector.bridge import BUFFER_BYTES, Bridge
from guestagent.collector.handover import Handover, Mail, open_mail, owner_of
from guestagent.collector.lessor import DistantLessor
from guestagent.collector.lines import MOST_UNSENT_BYTES, Lines
from guestagent.collector.server import Server
from guestagent.collector.summed import summed
from guestagent.loop import Loop
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from tests.captures import numbers, packet
from tests.fakes import agent_hello, greeting, interface, packets_frame
from tests.serving import Rig

OURS, THEIRS = "vm-1", next(name for name in map(str, range(100)) if owner_of(name, 2) != owner_of("vm-1", 2))
LARGE = tuple(interface(number, "x" * 200) for number in range(64))


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A worker that others bring connections to; `peer` knocks at the wrong door."""
    mail = open_mail(2)
    made = Rig(tmp_path / "captures")
    made.server.close()
    made.server = Server(made.loop, made.registry, handover=handover(THEIRS, mail, made.loop))
    door = Server(made.loop, made.registry, handover=handover(OURS, mail, made.loop))
    made.address = door.listen("127.0.0.1", 0)
    yield made
    door.close()
    made.close()
    mail.close()


def handover(name: str, mail: Mail, loop: Loop) -> Handover:
    """That of the worker an agent belongs to."""
    number = owner_of(name, 2)
    return Handover(number, mail.inboxes[number], mail.outboxes, loop)


@pytest.mark.parametrize("interfaces", [(interface(),), LARGE], ids=["small", "large"])
@pytest.mark.parametrize("pings", [0, 3])
def test_a_connection_goes_over_with_all_that_was_said(
    rig: Rig, tmp_path: Path, interfaces: tuple[Any, ...], pings: int
) -> None:
    """A hello of any size, what stood before it and in one breath behind it: answered once, in order, nothing twice."""
    hello = greeting(agent_hello(agent_id=THEIRS, interfaces=interfaces))
    before = frames.PREFACE + pings * frames.encode(Kind.PING)
    peer = rig.peer(before + hello.removeprefix(frames.PREFACE) + packets_frame(1, [packet(1), packet(2)]))
    peer.wait_for(Kind.ACK, 1)
    peer.say(packets_frame(2, [packet(3)]))
    peer.wait_for(Kind.ACK, 2)

    assert [Kind.PONG] * pings + [Kind.HELLO] == [kind for kind, _, _ in peer.heard][: pings + 1]
    assert 1 == len(rig.server.connections)
    (path,) = (tmp_path / "captures" / THEIRS).iterdir()
    assert [1, 2, 3] == numbers(path)


def test_an_owner_without_room_is_no_trap(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the inbox is full the agent is let go, to come back; nobody keeps its socket."""

    def full(*_: Any) -> None:
        raise BlockingIOError

    monkeypatch.setattr(socket, "send_fds", full)
    peer = rig.peer(greeting(agent_hello(agent_id=THEIRS)))
    peer.wait_for_end()
    assert {} == rig.server.connections


@given(st.text(min_size=1, max_size=64), st.integers(1, 64))
def test_every_agent_has_one_owner(name: str, workers: int) -> None:
    """The same one wherever it is asked for."""
    assert 0 <= owner_of(name, workers) < workers
    assert owner_of(name, workers) == owner_of(name, workers)


def test_owners_are_spread() -> None:
    """Of a thousand agents each of four workers has its quarter, more or less."""
    counts = [0] * 4
    for number in range(1000):
        counts[owner_of(f"i-{number:017x}", 4)] += 1
    assert min(counts) > 180


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2 * BUFFER_BYTES), st.integers(0, 2 * BUFFER_BYTES), st.binary(max_size=100), st.integers())
def test_a_bridge_changes_no_byte(up: int, down: int, unsent: bytes, seed: int) -> None:
    """Both ways through small buffers, in pieces of any size, each byte arrives once, in order; both end together."""
    moments = random.Random(seed)
    loop, ended = Loop(), []
    agent, near = socket.socketpair()
    far, worker = socket.socketpair()
    for one in (agent, near, far, worker):
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    there, back = moments.randbytes(up), moments.randbytes(down)
    bridge = Bridge(near, far, unsent, loop, ended.append)
    bridge.start()
    to_worker, to_agent = memoryview(there), memoryview(back)
    got_there, got_back = b"", b""
    while len(got_there) < up or len(got_back) < down + len(unsent):
        to_worker = to_worker[sent(agent, to_worker[: moments.randrange(1, 30_000)]) :]
        to_agent = to_agent[sent(worker, to_agent[: moments.randrange(1, 30_000)]) :]
        loop.run_once(0)
        got_there += received(worker)
        got_back += received(agent)
    assert (there, unsent + back) == (got_there, got_back)
    (agent if seed % 2 else worker).close()
    loop.run_once(0)
    assert [bridge] == ended
    assert b"" == (worker if seed % 2 else agent).recv(1)
    for one in (agent, worker):
        one.close()
    loop.close()


def sent(one: socket.socket, data: memoryview) -> int:
    """How much went out now."""
    try:
        return one.send(data) if data else 0
    except BlockingIOError:
        return 0


def received(one: socket.socket) -> bytes:
    """What is there now."""
    try:
        return one.recv(1 << 16)
    except BlockingIOError:
        return b""


def test_lines_arrive_whole_and_old_news_is_dropped() -> None:
    """Objects in pieces come whole; behind an end that does not listen no more than the bound waits."""
    here, there = (Lines(one) for one in socket.socketpair())
    told = [{"number": number, "text": "x" * 5000} for number in range(100)]
    for one in told:
        here.say(one)
    heard: list[dict[str, Any]] = []
    while len(heard) < 100:
        heard += there.heard()
        here.flush()
    assert told == heard
    for _ in range(2000):
        here.say(told[0])
    assert len(here._unsent) <= MOST_UNSENT_BYTES + 6000
    here.close()
    while not there.is_ended:
        heard = there.heard()
    there.close()


BOOKS = st.fixed_dictionaries(
    {
        "connections": st.integers(0, 10),
        "collector_id": st.just("c"),
        "agents": st.dictionaries(st.text(max_size=3), st.fixed_dictionaries({"received": st.integers(0, 9)})),
        "rows": st.lists(st.integers(), max_size=3),
    }
)


@given(st.lists(BOOKS, min_size=1, max_size=4))
def test_sums_add_up(books: list[dict[str, Any]]) -> None:
    """Counts are added, agents kept with their counts, words said once; of one alone the sum is itself."""
    total = summed(books)
    assert summed(books[:1]) == books[0]
    assert "c" == total["collector_id"]
    assert sum(one["connections"] for one in books) == total["connections"]
    assert set(total["agents"]) == {name for one in books for name in one["agents"]}
    for key in ("received",):
        assert sum(row[key] for row in total["agents"].values()) == sum(
            row[key] for one in books for row in one["agents"].values()
        )
    assert [row for one in books for row in one["rows"]] == total["rows"]


def test_sensors_are_added_by_name() -> None:
    """Each worker's relay has the same sensors: their frames are added, and one is well where it is for all."""
    rows = [
        {"to": "vxlan://10.0.0.9?vni=1", "well": well, "frames": frames_, "room_bytes": room, "trouble": trouble}
        for well, frames_, room, trouble in ((True, 3, 1450, ""), (False, 4, 1400, "no route"))
    ]
    total = summed([{"relay": {"mode": "balance", "destinations": [row]}} for row in rows])
    (row,) = total["relay"]["destinations"]
    assert (False, 7, 1400, "no route") == tuple(row[key] for key in ("well", "frames", "room_bytes", "trouble"))
    assert "balance" == total["relay"]["mode"]


def test_only_changes_are_told(rig: Rig) -> None:
    """A worker says how its agents stand once, and again when it changes or they are gone."""
    told: list[dict[str, Any]] = []
    lessor = DistantLessor(told.append)
    peer = rig.peer(greeting(agent_hello(agent_id=THEIRS, dedupe="vpc")))
    peer.wait_for(Kind.HELLO)
    connections = list(rig.server.connections.values())
    for now in (1.0, 1.05, 1.2, 1.4):
        assert [] == lessor.due(connections, now)
    assert 1 == len(told)
    lessor.decided({agent_hello().run_id: [["10.0.0.1"], 5.0], "00" * 16: [["10.0.0.2"], 5.0]})
    ((connection, lease),) = lessor.due(connections, 1.41)
    assert connections == [connection]
    assert b'"peers":["10.0.0.1"]' in lease
    lessor.due([], 2.0)
    assert [agent_hello().run_id] == told[-1]["gone"]
