"""The collector on a socket: agents are served at once and fairly, and nobody gets more out of it than its own end."""

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestagent.collector import dialogue, server
from guestagent.collector.connection import LATE_SECONDS, SILENCE_SECONDS
from guestagent.collector.server import GREETING_SECONDS, Server
from guestagent.errors import ConfigError
from guestagent.tapstream import frames
from guestagent.tapstream.frames import PREFACE, Kind
from guestagent.tapstream.hello import encode_agent_hello
from tests.fakes import Rig, agent_hello, block_frame, greeting, interface, packets_frame, run_of_records
from tests.unit.test_run import BAD_FRAMES
from tests.unit.test_sinks import OTHER_RUN, comments, numbers, packet, pcapng, small_disk

STALE, STALE_COUNT = run_of_records([packet(1)] * 3, status=0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A collector that writes below `captures`."""
    made = Rig(tmp_path / "captures")
    yield made
    made.close()


def written(tmp_path: Path, agent_id: str = "vm-1") -> list[int]:
    """The numbers of all packets of an agent."""
    return sorted(number for path in (tmp_path / "captures" / agent_id).glob("*.pcapng") for number in numbers(path))


def healthy(rig: Rig) -> None:
    """Another agent is served as if nothing had happened."""
    name, run_id = f"good-{time.monotonic_ns()}", f"{time.monotonic_ns():032x}"
    peer = rig.peer(greeting(agent_hello(run_id, agent_id=name)) + packets_frame(1, [packet(1)] * 3))
    peer.wait_for(Kind.ACK, 1)
    assert 3 == rig.report(name)["written"]
    peer.socket.close()
    rig.until(lambda: all(one.peer != peer for one in rig.server.connections.values()))


def test_an_agent_is_greeted_and_acknowledged(rig: Rig, tmp_path: Path) -> None:
    """Hello, answer, frames, ACK, BYE: the packets are in the file, with statistics at its end."""
    peer = rig.peer(greeting())
    assert {"collector_id": "collector-1", "version": "0.1", "held_sequence": None, "unsupported_gso": {}} == (
        peer.wait_for(Kind.HELLO)
    )
    peer.say(packets_frame(1, [packet(1), packet(2)]) + packets_frame(2, [packet(3)]))
    peer.wait_for(Kind.ACK, 2)
    assert [1, 2, 3] == written(tmp_path)
    peer.say(frames.encode_json(Kind.BYE, {"reason": "stopped\x1b[2J by a signal"}))
    peer.wait_for_end()

    (path,) = (tmp_path / "captures" / "vm-1").iterdir()
    assert ["the agent ended: stopped\\x1b[2J by a signal"] == comments(path, pcapng.STATISTICS, 12)
    report = rig.report()
    assert (3, 3, 0, 0) == tuple(report[key] for key in ("received", "written", "gaps", "duplicates"))
    assert [] == report["unclean_ends"]


def test_an_ack_comes_within_20_ms(rig: Rig) -> None:
    """A single frame is acknowledged within 20 ms and the time of a turn, whatever else the loop waits for."""
    peer = rig.peer(greeting())
    peer.wait_for(Kind.HELLO)
    times = []
    for sequence in range(1, 11):
        start = time.monotonic()
        peer.say(packets_frame(sequence, [packet(sequence)]))
        while not any(number >= sequence for kind, number, _ in peer.heard if kind is Kind.ACK):
            rig.loop.run_once(rig.server.deadline(rig.loop.now()) - rig.loop.now())
            rig.server.tick(rig.loop.now())
            peer.hear()
        times.append(time.monotonic() - start)

    assert sorted(times)[5] < 0.03, times


def test_an_eighth_of_the_ring_is_acknowledged_at_once(rig: Rig) -> None:
    """A burst of an eighth of the ring is acknowledged in the turn that brought it, not 20 ms later."""
    peer = rig.peer(greeting(agent_hello(ring_bytes=80_000)))
    peer.wait_for(Kind.HELLO)
    peer.say(packets_frame(1, [bytes(1000)] * 12))
    now = rig.loop.now()
    while not rig.report()["received"]:
        rig.loop.run_once(0.1)
    peer.hear()

    assert [(Kind.ACK, 1, {})] == peer.heard[1:]
    assert rig.loop.now() - now < 0.5


def test_pings_are_answered(rig: Rig) -> None:
    """Each PING has its PONG, in order with nothing lost."""
    peer = rig.peer(greeting() + frames.encode(Kind.PING) * 100)
    rig.until(lambda: peer.hear() or 100 == sum(kind is Kind.PONG for kind, _, _ in peer.heard))


def test_a_reconnected_agent_is_told_what_is_held(rig: Rig, tmp_path: Path) -> None:
    """After a break the hello answers with the held sequence; what comes again is not written again."""
    first = rig.peer(greeting() + packets_frame(1, [packet(1)]) + packets_frame(2, [packet(2)]))
    first.wait_for(Kind.ACK, 2)
    first.socket.close()
    rig.until(lambda: not rig.server.connections)
    second = rig.peer(greeting(agent_hello(first_sequence=2)))

    assert 2 == second.wait_for(Kind.HELLO)["held_sequence"]
    second.say(packets_frame(2, [packet(2)]) + packets_frame(3, [packet(3)]))
    second.wait_for(Kind.ACK, 3)
    assert [1, 2, 3] == written(tmp_path)
    assert 1 == rig.report()["duplicates"]


def test_a_second_hello_of_a_run_closes_the_older_connection(rig: Rig, tmp_path: Path) -> None:
    """A half-open connection that the agent has given up does not keep its run; nothing is written twice."""
    first = rig.peer(greeting() + packets_frame(1, [packet(1)]))
    first.wait_for(Kind.ACK, 1)
    second = rig.peer(greeting())
    assert 1 == second.wait_for(Kind.HELLO)["held_sequence"]
    first.wait_for_end()
    second.say(packets_frame(2, [packet(2)]))
    second.wait_for(Kind.ACK, 2)

    assert [1, 2] == written(tmp_path)
    assert 1 == len(rig.server.connections)
    assert [] == rig.report()["unclean_ends"]


def test_frames_in_one_breath_with_the_hello(rig: Rig) -> None:
    """An agent need not wait for the answer to its hello."""
    peer = rig.peer(greeting() + b"".join(packets_frame(at, [packet(at)]) for at in range(1, 200)))
    peer.wait_for(Kind.ACK, 199)
    assert 199 == rig.report()["written"]


def test_one_byte_at_a_time(rig: Rig) -> None:
    """An agent whose bytes come one by one is served like any other."""
    peer = rig.peer()
    for byte in greeting() + packets_frame(1, [packet(1)]):
        peer.say(bytes([byte]))
        rig.turn()
    peer.wait_for(Kind.ACK, 1)


# -- hostile peers ---------------------------------------------------------------------------------------------------

HELLO_JSON = encode_agent_hello(agent_hello())


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


# -- the sink and other agents ---------------------------------------------------------------------------------------


def test_a_full_disk_delays_and_loses_nothing(rig: Rig, tmp_path: Path) -> None:
    """While the disk is full nothing is acknowledged beyond it, the agent hears why, and later all of it is written."""
    peer = rig.peer(greeting() + packets_frame(1, [packet(1)]))
    peer.wait_for(Kind.ACK, 1)
    with small_disk(100):
        peer.say(b"".join(packets_frame(at, [packet(at)]) for at in range(2, 50)))
        rig.until(lambda: any(one.waits_for_sink for one in rig.server.connections.values()))
        connection = next(iter(rig.server.connections.values()))
        now = connection.acked_at + server.KEEPALIVE_SECONDS + 0.01
        rig.server.tick(now)
        assert rig.server.deadline(now) <= now + server.RETRY_SECONDS
        rig.until(lambda: peer.hear() or peer.heard[-1][2].get("note"))
        assert (Kind.ACK, 1, {"note": "the collector can't write: No space left on device"}) == peer.heard[-1]
        assert "No space left on device" == rig.registry._sink.blocked_by()
    peer.wait_for(Kind.ACK, 49)
    assert list(range(1, 50)) == written(tmp_path)


def test_an_agent_that_dies_while_the_disk_is_full_costs_no_cpu(rig: Rig) -> None:
    """A connection that was reset while the sink waits does not turn the loop over and over."""
    peer = rig.peer(greeting() + packets_frame(1, [packet(1)]))
    peer.wait_for(Kind.ACK, 1)
    with small_disk(0):
        peer.say(packets_frame(2, [packet(2)]))
        rig.until(lambda: any(one.waits_for_sink for one in rig.server.connections.values()))
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        peer.socket.close()
        time.sleep(0.02)
        turns, end = 0, time.monotonic() + 0.2
        while time.monotonic() < end:
            rig.loop.run_once(0.1)
            turns += 1
        assert turns < 20
    again = rig.peer(greeting())
    assert 2 == again.wait_for(Kind.HELLO)["held_sequence"]


def test_a_flooding_agent_does_not_starve_another(rig: Rig) -> None:
    """While one agent sends all it can, another's single frames are acknowledged within a few turns."""
    busy = rig.peer(greeting(agent_hello(agent_id="busy")))
    busy.wait_for(Kind.HELLO)
    calm = rig.peer(greeting(agent_hello(OTHER_RUN, agent_id="calm")))
    calm.wait_for(Kind.HELLO)
    sequence, waits = 0, []
    payload = [bytes(1400)] * 150
    for number in range(1, 6):
        calm.say(packets_frame(number, [packet(number)]))
        start = time.monotonic()
        while not any(kind is Kind.ACK and one >= number for kind, one, _ in calm.heard):
            sequence += 1
            busy.say(packets_frame(sequence, payload))
            rig.turn()
            calm.hear()
            busy.hear()
        waits.append(time.monotonic() - start)

    assert sorted(waits)[2] < 0.25, waits
    assert rig.report("busy")["received"] > 0


def test_one_turn_is_bounded(rig: Rig) -> None:
    """However much waits in the socket, a turn takes 1 MB and one read at most."""
    peer = rig.peer(greeting())
    peer.wait_for(Kind.HELLO)
    frame = packets_frame(1, [bytes(1400)] * 600)
    data = memoryview(b"".join(packets_frame(1 + at, [bytes(1400)] * 600) for at in range(8)))
    view = data
    try:
        while view:
            view = view[peer.socket.send(view) :]
    except BlockingIOError:
        pass
    before = rig.report()["received_bytes"]
    rig.loop.run_once(0.1)
    taken = rig.report()["received_bytes"] - before

    assert taken <= dialogue.TURN_BYTES + 2 * len(frame)


def test_the_collector_says_goodbye(rig: Rig) -> None:
    """When the collector stops, each agent hears its last ACK and BYE, and its run is not called unclean."""
    peer = rig.peer(greeting() + packets_frame(1, [packet(1)]))
    peer.wait_for(Kind.HELLO)
    rig.until(lambda: rig.report()["received"])
    rig.server.close()
    peer.hear()
    rig.registry.close()
    report = rig.report()
    rig.registry._sink = type(rig.registry._sink).__new__(type(rig.registry._sink))
    rig.registry._sink.close = lambda: None  # type: ignore[method-assign]
    rig.server._listeners.clear()

    assert (Kind.ACK, 1) == peer.heard[-2][:2]
    assert (Kind.BYE, {"reason": "the collector stops"}) == peer.heard[-1][::2]
    assert [] == report["unclean_ends"]


def test_a_port_in_use_is_one_sentence(rig: Rig) -> None:
    """A listener that can't be opened is a ConfigError that names address, reason and flag."""
    host, port = rig.address
    other = Server(rig.loop, rig.registry)
    with pytest.raises(ConfigError, match=rf"can't listen on {host}:{port}: .* choose another --listen"):
        other.listen(host, port)
    with pytest.raises(ConfigError, match=r"can't listen on 192\.0\.2\.77:4795"):
        other.listen("192.0.2.77", 4795)


def test_ipv6_is_served_too(rig: Rig) -> None:
    """Without a host, one listener takes IPv4 and IPv6."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this kernel has no IPv6")
    _, port = rig.server.listen("", 0)
    for address in ("127.0.0.1", "::1"):
        with socket.create_connection((address, port)) as sock:
            sock.sendall(greeting())
            rig.until(lambda: any(one.run for one in rig.server.connections.values()))
        rig.until(lambda: not rig.server.connections)
