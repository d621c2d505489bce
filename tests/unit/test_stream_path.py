"""The stream link on a bad path: silence, paths that swallow, slow ends, closed ports, name servers that fail."""

import socket
from pathlib import Path
from unittest import mock

import pytest

from guestagent.links import resolve
from guestagent.links.collectors import SILENCE_SECONDS
from guestagent.links.pulse import PING_SECONDS
from guestagent.links.stream import SMALL_SEGMENT_BYTES
from guestagent.tapstream import frames
from guestagent.tapstream.frames import PREFACE, Kind
from tests.captures import packet
from tests.streams import Bench


def test_a_silent_collector_is_pinged_then_left(bench: Bench) -> None:
    """A collector that says nothing is pinged each second and given up after three; answers keep it."""
    bench.connect()
    for _ in range(5):
        bench.loop.skew += PING_SECONDS + 0.01
        bench.turn()
        bench.until(lambda: bench._heard(Kind.PING))
        bench.collector.heard.clear()
        bench.collector.say(frames.encode(Kind.PONG))
        heard_at = bench.link._channel._pulse._heard_at
        bench.until(lambda heard_at=heard_at: bench.link._channel._pulse._heard_at > heard_at)
    assert bench.link.state.connected
    for _ in range(3):
        assert bench.link.state.connected
        bench.loop.skew += PING_SECONDS + 0.01
        bench.turn()
    assert not bench.link.state.connected
    assert f"has been silent for {SILENCE_SECONDS:.0f} s" in bench.link.state.text


def test_a_connection_that_broke_leaves_no_orphan() -> None:
    """What was queued for a collector that fell silent is forgotten at once: the kernel does not go on sending it."""
    bench = Bench(receive_bytes=4096)
    try:
        bench.connect()
        bench.owner.queue([bytes(900_000)])
        for _ in range(10):
            bench.turn()
        (exclusion,) = bench.owner.exclusions
        for _ in range(4):
            bench.loop.skew += PING_SECONDS
            bench.turn()
        assert not bench.link.state.connected
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert not [row for row in rows if int(row[1].partition(":")[2], 16) == exclusion.local_port]
    finally:
        bench.close()


def test_a_path_that_swallows_large_packets_gets_small_ones(bench: Bench) -> None:
    """After a connection that large packets did not get through, the next has short segments, and the one after a
    break of another kind has long ones again."""
    longest = []
    for swallowed in (True, False, False):
        bench.connect()
        longest.append(bench.collector.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
        bench.link._channel.is_swallowed = swallowed
        bench.collector.close_connection()
        bench.until(lambda: not bench.link.state.connected)

    assert longest[1] <= SMALL_SEGMENT_BYTES < min(longest[0], longest[2])


def test_a_name_server_that_fails_is_told_of(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Where an older answer serves instead of the name server's, the log says so, and the link comes up."""
    resolver = bench.link._collectors[0].resolver
    addresses = resolver.addresses
    with (
        mock.patch.object(resolve, "is_numeric", return_value=False),
        mock.patch.object(resolve, "look_up", side_effect=OSError(0, "it is broken")),
    ):
        bench.connect()

    assert addresses == resolver.addresses
    assert "it is broken" in caplog.text
    assert "last good address" in caplog.text


def test_silence_costs_no_turns(bench: Bench) -> None:
    """While a collector is silent the link asks to be called about once a second, not at once and again."""
    bench.connect()
    bench.loop.skew += PING_SECONDS + 0.01
    bench.turn()
    for _ in range(3):
        assert bench.link.deadline() > bench.loop.now() + 0.5
        bench.turn()


def test_a_slow_collector_is_not_silent() -> None:
    """While the peer's kernel takes bytes, however slowly, a link on which no ACK comes for long is alive."""
    bench = Bench(receive_bytes=4096)
    try:
        bench.connect()
        for _ in range(5):
            bench.owner.queue([bytes(900_000)])
        for _ in range(10):
            bench.turn()
        assert bench.owner.window.unsent < 5
        for _ in range(20):
            bench.collector.hear(20_000)
            bench.turn(0.02)
            bench.loop.skew += PING_SECONDS
            bench.turn()
            assert bench.link.state.connected, bench.link.state.text
        for _ in range(5):
            bench.loop.skew += PING_SECONDS
            bench.turn()
        assert not bench.link.state.connected
    finally:
        bench.close()


@pytest.mark.parametrize(
    "answer, reason",
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no tapstream preface"),
        (b"tapstrm\x07", "tapstream version 7 is not spoken here"),
        (PREFACE + frames.encode(Kind.ACK, sequence=1), "ACK frame came before the hello"),
        (PREFACE + frames.encode_json(Kind.HELLO, {}), "collector_id is missing"),
        (PREFACE + frames.encode_json(Kind.BYE, {"reason": "no"}), "said goodbye"),
        (PREFACE + frames.HEADER.pack(Kind.HELLO, 0, 0, 2**31, 0), "over the bound"),
        (PREFACE + frames.encode(Kind.HELLO, b"[" * 50_000), "no JSON object"),
    ],
)
def test_another_end_is_one_sentence(bench: Bench, answer: bytes, reason: str) -> None:
    """Whatever answers in place of a collector, the state says what came and from where, and the link tries again."""
    bench.until(lambda: bench.owner.exclusions and bench._accepted())
    bench.until(lambda: bench._heard(Kind.HELLO))
    bench.collector.say(answer)
    bench.until(lambda: bench.owner.changes)

    assert [False] == [connected for connected, _ in bench.owner.changes]
    assert reason in bench.link.state.text
    assert f"127.0.0.1:{bench.collector.port}" in bench.link.state.text
    assert 0 < bench.link.deadline() - bench.loop.now() <= 1.0
    bench.connect()


def test_a_closed_port_is_tried_with_backoff() -> None:
    """Refused connections are tried again, first soon, then each second, and the reason is the kernel's."""
    bench = Bench()
    bench.collector.listener.close()
    try:
        waits = []
        for _ in range(8):
            before = len(bench.owner.changes)
            bench.until(lambda before=before: len(bench.owner.changes) > before)
            waits.append(bench.link.deadline() - bench.loop.now())
            bench.loop.skew += waits[-1]
        assert "Connection refused" in bench.link.state.text
        assert waits[0] < 0.1 < waits[3] < waits[-1] + 0.3
        assert max(waits) <= 1.0
        assert 0 == bench.link.state.reconnects
    finally:
        bench.close()


def test_a_collector_that_takes_nothing_is_asked_ever_more_rarely(bench: Bench) -> None:
    """Greeted and cut off again and again, as over a frame that it can't bear, the link waits longer each time.

    Once something new was acknowledged, the next break is an outage of its own.
    """

    def wait_after_break() -> float:
        bench.collector.close_connection()
        bench.until(lambda: not bench.link.state.connected)
        return bench.link.deadline() - bench.loop.now()

    waits = []
    for _ in range(6):
        bench.connect(held=1)
        bench.collector.acknowledge(1)  # as a full disk lets it say that it lives
        waits.append(wait_after_break())
    assert waits == sorted(waits)
    assert waits[-1] > 1.0
    bench.connect(held=1)
    for _ in range(2):
        bench.owner.queue([packet(1)])
    bench.until(lambda: bench.collector.hear() or 2 in bench.collector.sequences())
    bench.collector.acknowledge(2)
    bench.until(lambda: 2 in bench.owner.settled)
    assert wait_after_break() < 0.06
