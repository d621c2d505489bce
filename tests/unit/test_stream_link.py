"""The stream link: bytes go out once and whole over sockets that take little at a time, break and come back."""

import os
import select
import socket
import threading
import time

from guestagent.links import channel
from guestagent.links.collectors import FIRST_RETURN_SECONDS
from guestagent.links.pulse import PING_SECONDS
from guestagent.loop import READABLE
from guestagent.tapstream import frames
from guestagent.tapstream.frames import PREFACE, Kind
from guestagent.tapstream.hello import decode_agent_hello
from tests.captures import packet
from tests.fakes import PATIENCE_SECONDS, packets_frame
from tests.streams import Bench


def test_a_link_comes_up(bench: Bench) -> None:
    """Exclusion before the connection, hello with this run, answer to the owner, state in a sentence."""
    bench.connect()
    (exclusion,) = bench.owner.exclusions
    hello = decode_agent_hello(frames.json.loads(bench.collector.heard[0][2]), (bench.owner.hello().layout,))

    assert (6, "127.0.0.1", bench.collector.port, bench.address[1]) == (
        exclusion.protocol,
        exclusion.remote_address,
        exclusion.remote_port,
        exclusion.local_port,
    )
    assert bench.owner.hello() == hello
    assert [None] == [answer.held_sequence for answer in bench.owner.answers]
    assert [(True, f"connected to collector collector-1 at 127.0.0.1:{bench.collector.port}")] == bench.owner.changes


def test_a_return_that_is_refused_at_the_hello_did_not_last(bench: Bench) -> None:
    """A collector that answers pings and takes no hello would else be returned to every five seconds, for ever."""
    bench.link._rota.returned(0, bench.loop.now())
    bench.until(lambda: bool(select.select([bench.collector.listener], [], [], 0)[0]))
    bench.collector.accept()
    bench.until(lambda: bench.collector.hear() or bench.collector.heard)
    bench.collector.say(PREFACE + frames.encode_json(Kind.BYE, {"reason": "not on the list"}))
    bench.until(lambda: bench.owner.changes)

    assert bench.link._rota._return_seconds == 2 * FIRST_RETURN_SECONDS


def test_frames_go_and_acks_come(bench: Bench) -> None:
    """Frames are sent in order, byte for byte; ACKs settle them with their notes."""
    bench.connect()
    for number in range(1, 6):
        bench.owner.queue([packet(number)])
    bench.until(lambda: bench.collector.hear() or 5 == len(bench.collector.sequences()))
    bench.collector.acknowledge(3, unsupported_gso={"0": 2}, note="x")
    bench.until(lambda: bench.owner.settled)
    expected = [packets_frame(number, [packet(number)])[frames.HEADER_BYTES :] for number in range(1, 6)]

    assert expected == [payload for kind, _, payload in bench.collector.heard if kind is Kind.BLOCK]
    assert [1, 2, 3] == bench.owner.settled
    assert [{"unsupported_gso": {"0": 2}, "note": "x"}] == bench.owner.notes
    assert bench.link.state.sent_bytes > sum(map(len, expected))


def test_blocks_leave_in_a_pump_alone(bench: Bench) -> None:
    """An ACK that comes in lets nothing out: the agent looks at each block before it pumps, for the governor."""
    bench.connect()
    bench.owner.queue([packet(1)])
    bench.until(lambda: bench.collector.hear() or bench.collector.sequences())
    bench.owner.queue([packet(2)])
    bench.collector.acknowledge(1)
    while not bench.owner.settled:
        bench.loop.run_once(PATIENCE_SECONDS)
    bench.collector.hear()
    assert [1] == bench.collector.sequences()
    bench.link.pump(bench.loop.now())
    bench.until(lambda: bench.collector.hear() or [1, 2] == bench.collector.sequences())


def test_a_socket_that_takes_little_gets_the_same_bytes() -> None:
    """Over tiny buffers every partial write goes on at the same byte; pings and frames never mix."""
    bench = Bench(receive_bytes=2048)
    try:
        bench.connect()
        bench.link._channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        body = os.urandom(150_000)
        for number in range(1, 9):
            bench.owner.queue([packet(number) + body])
        while len(bench.collector.sequences()) < 8:
            bench.collector.say(frames.encode(Kind.PING))
            bench.collector.hear(5000)
            bench.turn(0.0)
        expected = [packets_frame(number, [packet(number) + body])[frames.HEADER_BYTES :] for number in range(1, 9)]
        assert expected == [payload for kind, _, payload in bench.collector.heard if kind is Kind.BLOCK]
        assert any(kind is Kind.PONG for kind, _, _ in bench.collector.heard[:-1])
    finally:
        bench.close()


def test_a_reconnect_sends_again_from_the_first_unacknowledged(bench: Bench) -> None:
    """After a break in the middle of a frame, the new connection begins with what the collector does not hold."""
    bench.connect()
    for number in range(1, 6):
        bench.owner.queue([packet(number)])
    for _ in range(9):
        bench.owner.queue([bytes(900_000)])
    bench.until(lambda: bench.collector.hear(100_000) or 5 == len(bench.collector.sequences()))
    bench.collector.acknowledge(2)
    bench.until(lambda: bench.owner.settled)
    bench.collector.close_connection()
    bench.until(lambda: not bench.link.state.connected)
    assert 1 == bench.link.state.reconnects
    assert "reset" in bench.link.state.text or "closed" in bench.link.state.text or "broke" in bench.link.state.text

    bench.connect(held=3)
    bench.until(lambda: bench.collector.hear() or len(bench.collector.sequences()) == 11)
    assert list(range(4, 15)) == bench.collector.sequences()
    assert [1, 2, 3] == bench.owner.settled
    assert 2 == len(bench.owner.exclusions)


def test_a_held_sequence_is_not_sent_again(bench: Bench) -> None:
    """Frames that the collector's hello names as held are settled; the rest goes out in order, once."""
    bench.connect()
    for number in range(1, 8):
        bench.owner.queue([packet(number)])
    bench.until(lambda: bench.collector.hear() or 7 == len(bench.collector.sequences()))
    bench.collector.close_connection()
    bench.until(lambda: not bench.link.state.connected)
    bench.connect(held=4)
    bench.until(lambda: bench.collector.hear() or 3 == len(bench.collector.sequences()))

    assert [1, 2, 3, 4] == bench.owner.settled
    assert [5, 6, 7] == bench.collector.sequences()


def test_a_ping_takes_no_block_along(bench: Bench) -> None:
    """Time alone sends the ping; a block that came meanwhile waits for the turn, where the governor looks at it."""
    bench.connect()
    bench.owner.queue([bytes(60)])
    bench.loop.skew += PING_SECONDS + 0.01
    bench.link.tick(bench.loop.now())
    while not bench._heard(Kind.PING):
        pass
    assert ([], 1) == (bench.collector.sequences(), bench.owner.window.unsent)
    bench.until(lambda: bench._heard(Kind.BLOCK))


def test_a_goodbye_goes_behind_the_frames(bench: Bench) -> None:
    """finish says BYE with the reason, after the frame that is being sent."""
    bench.connect()
    bench.owner.queue([packet(1)])
    bench.turn()
    bench.link.finish("stopped by a signal")
    bench.until(lambda: bench._heard(Kind.BYE))

    assert (Kind.BYE, 0, b'{"reason":"stopped by a signal"}') == bench.collector.heard[-1]
    assert [1] == bench.collector.sequences()


def test_one_turn_is_bounded(bench: Bench) -> None:
    """pump answers True after its share, so that the loop gets its turn, and goes on where it was."""
    bench.connect()
    for _ in range(40):
        bench.owner.queue([bytes(200_000)])
    drain = threading.Thread(target=_read_all, args=(bench.collector.socket, 8_000_000), daemon=True)
    bench.collector.socket.setblocking(True)
    drain.start()
    more, largest, end = False, 0, time.monotonic() + PATIENCE_SECONDS
    while bench.owner.window.unsent and time.monotonic() < end:
        before = bench.link.state.sent_bytes
        more = bench.link.pump(bench.loop.now()) or more
        largest = max(largest, bench.link.state.sent_bytes - before)
        time.sleep(0.001)
    bench.link.pump(bench.loop.now())
    drain.join(PATIENCE_SECONDS)

    assert largest <= channel.MOST_BYTES_PER_TURN + 300_000
    assert 0 == bench.owner.window.unsent


def _read_all(sock: socket.socket, size: int) -> None:
    while size > 0 and (part := sock.recv(1 << 20)):
        size -= len(part)


def test_close_is_idempotent_and_touches_nothing_else(bench: Bench) -> None:
    """Closing twice leaves descriptors that were opened in between alone."""
    bench.connect()
    bench.link.close()
    one, other = socket.socketpair()
    many = [socket.socketpair() for _ in range(4)]
    called = []
    for pair in many:
        bench.loop.watch(pair[0], READABLE, called.append)
    bench.link.close()
    for pair in many:
        pair[1].send(b"x")
    bench.loop.run_once(0.1)

    assert 4 == len(called)
    for sock in (one, other, *(sock for pair in many for sock in pair)):
        sock.close()
