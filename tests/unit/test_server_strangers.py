"""Hostile and broken peers: each gets a sentence and the door, and nobody else notices."""

import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestagent.collector.connection import LATE_SECONDS, SILENCE_SECONDS
from guestagent.collector.server import GREETING_SECONDS
from guestagent.tapstream import frames
from guestagent.tapstream.frames import PREFACE, Kind
from guestagent.tapstream.hello import encode_agent_hello
from tests.captures import OTHER_RUN, packet
from tests.fakes import agent_hello, block_frame, greeting, interface, packets_frame, run_of_records
from tests.serving import Rig
from tests.unit.test_run import BAD_FRAMES
from tests.unit.test_server import healthy, written

HELLO_JSON = encode_agent_hello(agent_hello())
STALE, STALE_COUNT = run_of_records([packet(1)] * 3, status=0)


def hello_frame(**changes: Any) -> bytes:
    """A preface and a hello with other fields."""
    return PREFACE + frames.encode_json(Kind.HELLO, {**HELLO_JSON, **changes})


def header(kind: int, length: int) -> bytes:
    """A frame header of any type and length."""
    return struct.pack("<BBHIQ", kind, 0, 0, length, 1)


STRANGERS = [
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "no tapstream preface", id="http"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01" + bytes(500), "no tapstream preface", id="tls"),
    pytest.param(b"tapstrm\x02", "tapstream version 2 is not spoken here", id="version 2"),
    pytest.param(PREFACE + header(1, 2**32 - 1), "over the bound", id="hello of 4 GB"),
    pytest.param(PREFACE + header(99, 0), "unknown frame type 99", id="unknown type"),
    pytest.param(PREFACE + packets_frame(1, [packet(1)]), "BLOCK frame came before the hello", id="block first"),
    pytest.param(PREFACE + frames.encode_json(Kind.BYE, {}), "BYE frame came before the hello", id="bye first"),
    pytest.param(PREFACE + frames.encode(Kind.HELLO, b"[" * 60_000), "no JSON object", id="deep hello"),
    pytest.param(hello_frame(agent_id="../../etc"), "agent_id must be 1 to 64", id="name that climbs"),
    pytest.param(hello_frame(agent_id=".."), "agent_id must be 1 to 64", id="dots"),
    pytest.param(hello_frame(agent_id="a\n"), "agent_id must be 1 to 64", id="newline"),
    pytest.param(hello_frame(agent_id="x" * 65), "agent_id must be 1 to 64", id="long name"),
    pytest.param(hello_frame(host="\x1b[2J"), "host must be 1 to 64", id="escape sequence"),
    pytest.param(hello_frame(first_sequence=0), "first_sequence is out of range", id="sequence before the first"),
    pytest.param(
        hello_frame(interfaces=[{**HELLO_JSON["interfaces"][0], "speed_mbit": 2**62}]), "speed_mbit", id="speed"
    ),
]


@pytest.mark.parametrize("data, reason", STRANGERS)
def test_strangers_get_a_sentence_and_the_door(rig: Rig, tmp_path: Path, data: bytes, reason: str) -> None:
    """Whoever can't greet is told why and is gone; no file, no agent and no memory of it stays."""
    peer = rig.peer(data)
    peer.wait_for_end()

    assert reason in next(value["reason"] for kind, _, value in peer.heard if kind is Kind.BYE)
    assert (1, {}) == (rig.server.refused, rig.server.connections)
    assert {} == rig.registry.report()["agents"]
    assert [] == list((tmp_path / "captures").rglob("*.pcapng"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captures"]
    healthy(rig)


@pytest.mark.parametrize("data, reason", BAD_FRAMES)
def test_a_hostile_agent_is_cut_off_and_named(rig: Rig, data: bytes, reason: str) -> None:
    """An agent that sends what can't be is told why, cut off and counted under its name; others go on."""
    peer = rig.peer(greeting() + data)
    peer.wait_for_end()

    assert (1, 0, 0) == tuple(rig.report()[key] for key in ("refused", "received", "written"))
    assert any(kind is Kind.BYE and value["reason"] for kind, _, value in peer.heard)
    assert reason.split(maxsplit=1)[0] in str(peer.heard)
    healthy(rig)


def test_a_hostile_block_is_counted(rig: Rig, tmp_path: Path) -> None:
    """A malformed block is counted under its agent; what was good before it is written and held."""
    bad = block_frame(2, run_of_records([packet(2)])[0], 2)
    rig.peer(greeting() + packets_frame(1, [packet(1)]) + bad + packets_frame(3, [packet(3)])).wait_for_end()
    assert (1, 1, 1) == tuple(rig.report()[key] for key in ("malformed", "refused", "received"))

    again = rig.peer(greeting())
    assert 1 == again.wait_for(Kind.HELLO)["held_sequence"]
    assert [1] == written(tmp_path)


@pytest.mark.parametrize("data", [b"", PREFACE[:4], PREFACE, PREFACE + header(1, 60_000) + b"{"])
def test_a_stranger_without_a_hello_is_gone_in_time(rig: Rig, data: bytes) -> None:
    """Whoever connects and does not finish a hello is cut off after five seconds, however its bytes trickle."""
    peer = rig.peer(data)
    rig.until(lambda: rig.server.connections)
    born = next(iter(rig.server.connections.values())).born_at
    rig.server.tick(born + GREETING_SECONDS - 0.1)
    assert 1 == len(rig.server.connections)
    rig.server.tick(born + GREETING_SECONDS + 0.1)
    assert {} == rig.server.connections
    peer.wait_for_end()
    healthy(rig)


def test_strangers_give_way_to_agents(rig: Rig) -> None:
    """Where there is no room, who has been there longest without a hello goes, also one that pings; agents stay."""
    rig.server._most_connections = 3
    agent = rig.peer(greeting())
    agent.wait_for(Kind.HELLO)
    oldest = rig.peer(PREFACE + frames.encode(Kind.PING))
    oldest.wait_for(Kind.PONG)
    younger = rig.peer(PREFACE)
    rig.until(lambda: 3 == len(rig.server.connections))
    healthy(rig)
    oldest.wait_for_end()

    assert 1 == rig.server.refused
    agent.say(packets_frame(1, [packet(1)]))
    agent.wait_for(Kind.ACK, 1)
    younger.say(frames.encode(Kind.PING))
    younger.wait_for(Kind.PONG)


def test_where_all_are_agents_one_more_is_refused(rig: Rig) -> None:
    """Nobody who streams gives way to a newcomer."""
    rig.server._most_connections = 1
    agent = rig.peer(greeting())
    agent.wait_for(Kind.HELLO)
    rig.peer(greeting(agent_hello(OTHER_RUN, agent_id="vm-2"))).wait_for_end()
    agent.say(packets_frame(1, [packet(1)]))
    agent.wait_for(Kind.ACK, 1)

    assert 1 == rig.server.refused


def test_a_silent_agent_is_late_then_gone_and_may_come_back(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """An agent that says nothing for three seconds is told of once, after ten it is closed; its run goes on later."""
    peer = rig.peer(greeting() + packets_frame(1, [packet(1)]))
    peer.wait_for(Kind.ACK, 1)
    heard = next(iter(rig.server.connections.values())).heard_at
    for after in (LATE_SECONDS - 0.1, LATE_SECONDS + 0.1, SILENCE_SECONDS - 0.1):
        rig.server.tick(heard + after)
    assert caplog.text.count("has been silent for 3 s") == 1
    assert 1 == len(rig.server.connections)
    rig.server.tick(heard + SILENCE_SECONDS + 0.1)
    assert {} == rig.server.connections
    assert 1 == rig.peer(greeting()).wait_for(Kind.HELLO)["held_sequence"]


def flood(rig: Rig, data: bytes, most_turn_seconds: float) -> None:
    """Send and never read, until cut off; no turn of the collector takes long, and another agent is served then."""
    peer = rig.peer(greeting(), receive_bytes=4096)
    rig.until(lambda: "vm-1" in rig.registry.agents)
    view = memoryview(data * (1_000_000 // len(data)))
    slowest, end = 0.0, time.monotonic() + 8
    while rig.server.connections and time.monotonic() < end:
        try:
            peer.socket.send(view)
        except BlockingIOError:
            pass
        except OSError:
            break
        start = time.monotonic()
        rig.turn(0.001)
        slowest = max(slowest, time.monotonic() - start)
    rig.until(lambda: not rig.server.connections)

    assert 1 == rig.report()["refused"]
    assert slowest < most_turn_seconds
    healthy(rig)


def test_an_agent_that_never_reads_its_pongs_is_cut_off(rig: Rig) -> None:
    """A flood of pings whose answers nobody reads ends, in bounded memory and without long turns."""
    flood(rig, frames.encode(Kind.PING), 1.0)


def test_an_agent_that_never_reads_its_acks_is_cut_off(rig: Rig) -> None:
    """ACKs that pile up unread, sent by the clock and not by a turn, end the connection and nothing else."""
    interfaces = tuple(interface(at, f"eth{at}") for at in range(64))
    stale = b"".join(block_frame(1 + at, STALE, STALE_COUNT, interface_id=at) for at in range(64))
    peer = rig.peer(greeting(agent_hello(interfaces=interfaces)) + stale, receive_bytes=4096)
    rig.until(lambda: rig.server.connections)
    connection = next(iter(rig.server.connections.values()))
    rig.until(lambda: connection.run and connection.run.received == 64 * STALE_COUNT)
    sequence = 64
    while rig.server.connections:
        sequence += 1
        peer.socket.send(frames.encode(Kind.REPORT, b"{}", sequence=sequence))
        rig.loop.run_once(0.05)
        rig.server.tick(rig.loop.now() + 0.03)
        assert len(connection.unsent) < 200_000
        assert sequence < 20_000

    assert 1 == rig.report()["refused"]
    healthy(rig)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.booleans(), st.lists(st.binary(max_size=300), max_size=5), st.sampled_from(list(Kind)))
def test_fuzzed_peers_harm_nobody(rig: Rig, is_agent: bool, pieces: list[bytes], kind: Kind) -> None:
    """Any bytes, as a stranger or behind a hello, in frames or not, leave the collector serving."""
    peer = rig.peer(greeting() if is_agent else PREFACE)
    for at, piece in enumerate(pieces):
        peer.say(frames.encode(kind, piece, sequence=at) if at % 2 else piece)
        rig.turn()
    peer.socket.close()
    rig.until(lambda: not rig.server.connections)
    assert rig.report()["written"] == 0 if "vm-1" in rig.registry.agents else True


def test_a_reset_is_no_surprise(rig: Rig) -> None:
    """A connection that is reset with data under way is closed; the run may come back."""
    peer = rig.peer(greeting() + packets_frame(1, [packet(1)]))
    peer.wait_for(Kind.ACK, 1)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    peer.say(frames.encode(Kind.PING) * 1000)
    peer.socket.close()
    rig.until(lambda: not rig.server.connections)
    assert 1 == rig.peer(greeting()).wait_for(Kind.HELLO)["held_sequence"]
    healthy(rig)
