"""The collector on a socket: agents are served at once and fairly, and nobody gets more out of it than its own end."""

import os
import socket
import struct
import time
from pathlib import Path

import pytest

from guestagent.collector import dialogue, server
from guestagent.collector.server import Server
from guestagent.collector.sinks import pcapng
from guestagent.errors import ConfigError
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from tests.captures import OTHER_RUN, comments, numbers, packet, small_disk
from tests.fakes import agent_hello, greeting, packets_frame
from tests.serving import Rig


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
    assert {
        "collector_id": "collector-1",
        "version": "0.1",
        "held_sequence": None,
        "unsupported_gso": {},
        "taken_sequence": 0,
    } == peer.wait_for(Kind.HELLO)
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


def test_a_sink_that_is_full_delays_no_other_agent(rig: Rig) -> None:
    """While one agent's sink is tried again each 50 ms, the ACKs of the others keep their 20 ms."""
    full, other = rig.peer(greeting()), rig.peer(greeting(agent_hello(OTHER_RUN, agent_id="vm-2")))
    for peer in (full, other):
        peer.wait_for(Kind.HELLO)
    (connection,) = (one for one in rig.server.connections.values() if one.run and one.run.hello.agent_id == "vm-1")
    with open("/dev/full", "wb") as disk:
        os.dup2(disk.fileno(), connection.run.track.output._descriptor)
    full.say(packets_frame(1, [packet(1)]))
    rig.until(lambda: connection.waits_for_sink, "a sink that is full")
    other.say(packets_frame(1, [packet(1)]))
    rig.until(lambda: rig.report("vm-2")["received"])
    now = rig.loop.now()
    assert connection.waits_for_sink
    assert rig.server.deadline(now) - now <= 0.02


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
        assert "No space left on device" == rig.server.status()["blocked_by"]
    peer.wait_for(Kind.ACK, 49)
    assert "" == rig.server.status()["blocked_by"]
    assert list(range(1, 50)) == written(tmp_path)


def test_an_agent_that_dies_while_the_disk_is_full_costs_no_cpu(rig: Rig, tmp_path: Path) -> None:
    """A connection that was reset while the sink waits does not turn the loop over and over; and what it had brought is
    written once there is room, whether or not it comes back."""
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
        assert rig.registry.report()["blocked_by"]
    rig.until(lambda: not rig.registry.report()["blocked_by"])
    assert written(tmp_path) == [1, 2], "nobody came back for it"
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
