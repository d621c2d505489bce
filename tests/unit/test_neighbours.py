"""Agents on one host hear of each other's connections, and believe no stranger."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent import neighbours
from guestagent.model import Exclusion
from guestagent.neighbours import FORGOTTEN_SECONDS, MOST_TOLD, SLOTS, Neighbours

STREAM = Exclusion(6, "192.0.2.1", 4795, 40_000)
TUNNEL = Exclusion(17, "2001:db8::1", 4789, 49_152, 49_215)
GRE = Exclusion(47, "192.0.2.9", 0, 0)
GOOD = [6, "192.0.2.1", 4795, 40_000, 0]


class Host:
    """A place for agents, with a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.known: dict[int, tuple[Exclusion, ...]] = {}
        self.agents: list[Neighbours] = []

    def agent(self) -> Neighbours:
        """One more; what it leaves out is known under its number."""
        number = len(self.agents)
        self.agents.append(Neighbours(lambda others: self.known.update({number: others}), lambda: self.now))
        return self.agents[-1]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Host]:
    """Names that no agent of this machine has."""
    monkeypatch.setattr(neighbours, "_NAME", f"\0guestagent-test-{os.getpid()}-{id(request)}-{{}}")
    made = Host()
    yield made
    for one in made.agents:
        one.close()


def test_neighbours_know_each_others_connections(host: Host) -> None:
    """What one tells the others leave out: streams, tunnels, protocols without ports; nobody hears itself."""
    one, two, three = host.agent(), host.agent(), host.agent()
    one.announce((STREAM, TUNNEL))
    two.announce((GRE,))
    for each in (one, two, three):
        each.hear()

    assert host.known == {0: (GRE,), 1: (STREAM, TUNNEL), 2: (STREAM, TUNNEL, GRE)}


def test_a_latecomer_is_told_back(host: Host) -> None:
    """Who starts later is told back at its first word; the latest word counts."""
    one = host.agent()
    one.announce((STREAM,))
    two = host.agent()
    two.announce(())
    one.hear()
    two.hear()
    assert host.known[1] == (STREAM,)
    one.announce((GRE,))
    two.hear()

    assert host.known[1] == (GRE,)


def test_who_is_gone_is_forgotten(host: Host) -> None:
    """One that says no more is forgotten after a while, for its kernel may still send; one that ticks is not."""
    one, two, three = host.agent(), host.agent(), host.agent()
    one.announce((STREAM,))
    two.announce((GRE,))
    three.announce((TUNNEL,))
    three.hear()
    one.close()
    three.hear()
    assert host.known[2] == (STREAM, GRE)
    host.now += FORGOTTEN_SECONDS + 0.1
    three.tick()
    assert host.known[2] == ()
    two.tick()
    three.hear()

    assert host.known[2] == (GRE,)


def test_only_the_latest_are_told(host: Host) -> None:
    """An agent with more connections than a neighbour's filter should bear tells its latest."""
    many = tuple(Exclusion(6, "192.0.2.1", 4795, port) for port in range(40_000, 40_000 + 2 * MOST_TOLD))
    one, two = host.agent(), host.agent()
    one.announce(many)
    two.hear()

    assert host.known[1] == many[-MOST_TOLD:]


def test_one_agent_too_many_says_so(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the slots an agent runs, says that copies will be copied, and disturbs nobody."""
    agents = [host.agent() for _ in range(SLOTS + 1)]
    agents[-1].announce((STREAM,))
    agents[0].hear()

    assert "agents run here already" in caplog.text
    assert host.known[0] == ()


WAITS = """
import json, socket, sys
own, to, text = json.loads(sys.stdin.readline())
one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
one.bind(own)
one.sendto(text.encode(), to)
print("sent", flush=True)
sys.stdin.read()
"""


@pytest.mark.root
@pytest.mark.parametrize("is_service", [False, True])
def test_a_stranger_is_not_believed(host: Host, monkeypatch: pytest.MonkeyPatch, is_service: bool) -> None:
    """Another user can hide no connection, whatever capabilities its process shows; the packages' user can."""
    if is_service:
        monkeypatch.setattr(neighbours, "SERVICE_USER", "nobody")
    one = host.agent()
    keep = ["--inh-caps=+net_raw", "--ambient-caps=+net_raw"]
    process = subprocess.Popen(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *keep, sys.executable, "-c", WAITS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    with process:
        assert process.stdin
        assert process.stdout
        words = [neighbours._NAME.format(5), neighbours._NAME.format(0), json.dumps([GOOD])]
        print(json.dumps(words), file=process.stdin, flush=True)
        assert process.stdout.readline() == "sent\n"
        one.hear()
        process.stdin.close()

    assert host.known[0] == ((STREAM,) if is_service else ())


def told(host: Host, data: bytes, name: str) -> tuple[Exclusion, ...]:
    """What an agent makes of a neighbour's bytes."""
    one = host.agents[0] if host.agents else host.agent()
    host.known.clear()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(name)
        peer.sendto(data, neighbours._NAME.format(0))
        one.hear()
    return host.known[0]


def changed(at: int, value: object) -> list[object]:
    """A row with one value that is none."""
    return [*GOOD[:at], value, *GOOD[at + 1 :]]


@pytest.mark.parametrize(
    "rows",
    [
        b"",
        b"{",
        b"7",
        b"\xff",
        b"[7]",
        [GOOD[:4]],
        [changed(0, 0)],
        [changed(0, True)],
        [changed(1, "nowhere")],
        [changed(1, None)],
        [changed(2, 0)],
        [changed(2, 65_536)],
        [changed(3, -1)],
        [changed(4, "0")],
        b"[" * 4000,
    ],
)
def test_nonsense_is_ignored(host: Host, rows: bytes | list[object]) -> None:
    """What is no list of exclusions changes nothing."""
    data = rows if isinstance(rows, bytes) else json.dumps(rows).encode()

    assert told(host, data, neighbours._NAME.format(3)) == ()


def test_a_name_that_is_no_slot_is_ignored(host: Host) -> None:
    """Only a holder of a slot is heard."""
    data = json.dumps([GOOD]).encode()

    assert told(host, data, neighbours._NAME.format("x")) == ()
    assert told(host, data, neighbours._NAME.format(3)) == (STREAM,)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=30).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_any_bytes_are_exclusions_or_refused(data: bytes) -> None:
    """Decoding raises ValueError alone, whatever comes."""
    decode: Callable[[bytes], tuple[Exclusion, ...]] = neighbours._decode
    try:
        assert all(isinstance(one, Exclusion) for one in decode(data))
    except ValueError:
        pass
