"""The links: bytes go out once and whole over sockets that take little at a time, break, stall and come back."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from guestagent.collector.embedded import EmbeddedCollector
from guestagent.endpoint import Endpoint
from guestagent.errors import RunError
from guestagent.links import channel, resolve
from guestagent.links.collectors import SILENCE_SECONDS
from guestagent.links.local import MOST_FRAMES_PER_TURN, LocalLink
from guestagent.links.pulse import PING_SECONDS
from guestagent.links.resolve import Resolver, is_numeric
from guestagent.links.stream import SMALL_SEGMENT_BYTES, StreamLink
from guestagent.loop import READABLE, Loop
from guestagent.tapstream import frames
from guestagent.tapstream.frames import PREFACE, Deframer, Kind
from guestagent.tapstream.hello import CollectorHello, decode_agent_hello, encode_collector_hello
from guestagent.tapstream.session import Backoff
from tests.fakes import PATIENCE_SECONDS, FakeOwner, packets_frame
from tests.unit.test_sinks import numbers, packet, small_disk


class SkewedLoop(Loop):
    """A loop whose clock the test may advance."""

    skew = 0.0

    def now(self) -> float:
        """Monotonic seconds and the skew."""
        return super().now() + self.skew


class FakeCollector:
    """A listener that answers as the test says."""

    def __init__(self, receive_bytes: int = 0) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_bytes:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.port = self.listener.getsockname()[1]
        self.socket: socket.socket | None = None
        self.heard: list[tuple[Kind, int, bytes]] = []

    def accept(self) -> tuple[str, int]:
        """Take the next connection; where it comes from."""
        self.close_connection()
        self.socket, address = self.listener.accept()
        self.socket.setblocking(False)
        self.deframer = Deframer()
        self.deframer.welcome()
        self.heard.clear()
        return address

    def hear(self, most: int = 1 << 20) -> None:
        """Take what has arrived, or a part of it."""
        assert self.socket is not None
        try:
            while most > 0:
                count = self.socket.recv_into(self.deframer.space()[:most])
                most -= count
                self.deframer.filled(count)
                for frame in self.deframer.frames():
                    self.heard.append((Kind(frame.kind), frame.sequence, bytes(frame.payload)))
                if not count:
                    return
        except BlockingIOError:
            pass

    def say(self, data: bytes) -> None:
        """Send."""
        assert self.socket is not None
        self.socket.setblocking(True)
        self.socket.sendall(data)
        self.socket.setblocking(False)

    def greet(self, held: int | None = None) -> None:
        """Answer a hello."""
        hello = CollectorHello("collector-1", "0.1", held, {})
        self.say(PREFACE + frames.encode_json(Kind.HELLO, encode_collector_hello(hello)))

    def acknowledge(self, sequence: int, **notes: Any) -> None:
        """Send an ACK."""
        self.say(frames.encode_json(Kind.ACK, notes, sequence=sequence))

    def sequences(self) -> list[int]:
        """The numbered frames heard."""
        return [sequence for kind, sequence, _ in self.heard if kind in frames.SEQUENCED]

    def close_connection(self) -> None:
        """Close the connection, if there is one."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Bench:
    """A link, its loop, its owner and the other end."""

    def __init__(self, receive_bytes: int = 0) -> None:
        self.loop = SkewedLoop()
        self.owner = FakeOwner()
        self.collector = FakeCollector(receive_bytes)
        self.link = StreamLink(
            [Endpoint("tcp", "127.0.0.1", self.collector.port)], self.owner, self.loop, None, Backoff(lambda: 0.0)
        )

    def turn(self, seconds: float = 0.002) -> None:
        """One turn of the agent's loop."""
        self.link.tick(self.loop.now())
        self.loop.run_once(seconds)
        self.link.pump(self.loop.now())

    def until(self, condition: Callable[[], Any]) -> None:
        """Turn until something holds."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end, f"not within {PATIENCE_SECONDS:.0f} s; {self.link.state}"
            self.turn()

    def connect(self, held: int | None = None) -> None:
        """Up to a streaming link."""
        self.loop.skew += 6.0
        self.until(lambda: self.owner.exclusions and self._accepted())
        self.until(lambda: self._heard(Kind.HELLO))
        self.collector.greet(held)
        self.until(lambda: self.link.state.connected)

    def _accepted(self) -> bool:
        self.collector.listener.settimeout(0.01)
        with suppress(TimeoutError):
            self.address = self.collector.accept()
            return True
        return False

    def _heard(self, kind: Kind) -> bool:
        self.collector.hear()
        return any(one is kind for one, _, _ in self.collector.heard)

    def close(self) -> None:
        """Give everything back."""
        self.link.close()
        self.collector.close_connection()
        self.collector.listener.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An agent's end and a collector's."""
    made = Bench()
    yield made
    made.close()


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
        mock.patch.object(resolve, "_look_up", side_effect=OSError(0, "it is broken")),
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


# -- names -----------------------------------------------------------------------------------------------------------


def answer(resolver: Resolver) -> None:
    """Wait for the helper thread."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        with suppress(BlockingIOError):
            resolver.collect()
            return
        time.sleep(0.001)
    raise AssertionError("no answer came")


@pytest.mark.parametrize(
    "host, expected", [("127.0.0.1", True), ("::1", True), ("fe80::1%lo", True), ("localhost", False)]
)
def test_numeric_hosts_need_no_thread(host: str, expected: bool) -> None:
    """An address is its own answer; a name is not."""
    assert expected == is_numeric(host)


def test_a_name_keeps_its_last_good_answer() -> None:
    """When the name server is gone, the addresses of before stay and the error is told."""
    resolver = Resolver("collector.test", 4795)
    address = (socket.AF_INET, ("192.0.2.1", 4795))
    with mock.patch.object(resolve, "_look_up", side_effect=[[address], socket.gaierror(-3, "Try again")]):
        for error in ("", "Try again"):
            assert resolver.start()
            answer(resolver)
            assert ([address], error) == (resolver.addresses, resolver.error)
    resolver.close()
    resolver.close()


@pytest.mark.parametrize("host", ["x" * 64, "a..b", "." * 3, "\ud800"], ids=ascii)
def test_impossible_names_are_an_error_not_a_dead_thread(host: str) -> None:
    """A name that can't even be asked for is answered with an error, and the next try asks again."""
    resolver = Resolver(host, 4795)
    for _ in range(2):
        assert resolver.start()
        answer(resolver)
        assert resolver.error
    resolver.close()


def test_a_name_that_answers_after_the_end_harms_nobody() -> None:
    """A thread that still waits when the link closes writes to no descriptor that others use by then."""
    release = threading.Event()

    def slow(*_: Any) -> list[Any]:
        release.wait(PATIENCE_SECONDS)
        return []

    with mock.patch.object(resolve, "_look_up", slow):
        resolver = Resolver("collector.test", 4795)
        resolver.start()
        number = resolver.fileno()
        resolver.close()
        event = os.eventfd(0, os.EFD_NONBLOCK)
        assert number == event
        release.set()
        for thread in threading.enumerate():
            if thread.name == "resolve":
                thread.join(PATIENCE_SECONDS)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)
        os.close(event)


# -- the local link --------------------------------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path: Path) -> Iterator[tuple[LocalLink, FakeOwner, EmbeddedCollector]]:
    """A link straight into files."""
    owner = FakeOwner()
    collector = EmbeddedCollector(str(tmp_path), 0, 0.0, 0)
    yield LocalLink(str(tmp_path), collector, owner, 0.0), owner, collector
    collector.close()


def numbers_in(folder: Path) -> list[int]:
    """The packets of all files below."""
    return [number for path in folder.rglob("*.pcapng") for number in numbers(path)]


def test_a_local_link_writes_and_acknowledges(
    local: tuple[LocalLink, FakeOwner, EmbeddedCollector], tmp_path: Path
) -> None:
    """A few frames each turn go to the file and are settled when they are there; more wait for the next turn."""
    link, owner, _ = local
    count = MOST_FRAMES_PER_TURN + 3
    for number in range(count):
        owner.queue([packet(number)])

    assert link.pump(0.0)
    assert list(range(1, MOST_FRAMES_PER_TURN + 1)) == owner.settled
    assert not link.pump(0.0)
    assert list(range(1, count + 1)) == owner.settled
    assert list(range(count)) == numbers_in(tmp_path)
    assert float("inf") == link.deadline()


def test_a_local_link_waits_for_a_full_disk(
    local: tuple[LocalLink, FakeOwner, EmbeddedCollector], tmp_path: Path
) -> None:
    """While the disk is full nothing is settled or taken, the owner hears why once, and then all is written once."""
    link, owner, _ = local
    with small_disk(500):
        for number in range(20):
            owner.queue([packet(number)])
        now = 0.0
        while link.pump(now):
            pass
        settled, unsent = list(owner.settled), owner.window.unsent
        for _ in range(5):
            now += 0.06
            link.tick(now)
            assert now < link.deadline() <= now + 0.1
        assert (settled, unsent) == (owner.settled, owner.window.unsent)
        assert [(False, "the collector can't write: No space left on device; the ring holds on")] == owner.changes[1:]
        assert not link.state.connected
    link.tick(now + 1.0)
    while link.pump(now + 1.0):
        pass

    assert list(range(1, 21)) == owner.settled
    assert list(range(20)) == numbers_in(tmp_path)
    assert (True, "writing again") == owner.changes[-1]


def test_a_broken_disk_ends_the_run(local: tuple[LocalLink, FakeOwner, EmbeddedCollector]) -> None:
    """An error that no waiting cures is one sentence, and nothing is settled."""
    link, owner, _ = local
    owner.queue([packet(1)])
    with (
        mock.patch("guestagent.collector.sinks.output.os.writev", side_effect=OSError(5, "Input/output error")),
        pytest.raises(RunError, match="the capture can't be written: Input/output error"),
    ):
        link.pump(0.0)
    assert [] == owner.settled
