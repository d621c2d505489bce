"""The replicating link: a stalled connection is cut, the others stay left out, and the books are shown."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from guestagent.endpoint import Endpoint
from guestagent.links.replicate import ReplicateLink
from guestagent.links.stream import StreamLink
from guestagent.model import Exclusion
from guestagent.observe.rows import DESTINATION_REASONS, DESTINATION_ROWS
from guestagent.sharing import Sharing
from guestagent.tapstream import frames
from guestagent.tapstream.fanout import AWAY, ENDED, LAGGING
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.session import Backoff
from tests.replicas import BLOCKS, WatchedRing, desk_of
from tests.serving import Rig
from tests.streams import FakeCollector, SkewedLoop


class Bench:
    """A replicating link to two collectors on 127.0.0.1."""

    def __init__(self) -> None:
        self.loop = SkewedLoop()
        self.ring = WatchedRing(block_count=BLOCKS)
        self.sharing = Sharing(desk_of(self.ring), 2)
        self.sharing.desk._attach = lambda *_: None  # type: ignore[method-assign]
        self.collectors = [FakeCollector(receive_bytes=4096) for _ in range(2)]
        self.link = ReplicateLink(
            [
                StreamLink([Endpoint("tcp", "127.0.0.1", one.port)], share, self.loop, None, Backoff(lambda: 0.0))
                for one, share in zip(self.collectors, self.sharing.shares, strict=True)
            ],
            self.sharing,
        )

    def turn(self, times: int = 1) -> None:
        """The agent's loop."""
        for _ in range(times):
            self.link.tick(self.loop.now())
            self.loop.run_once(0.002)
            self.link.pump(self.loop.now())

    def connect(self, *numbers: int, held: int | None = None) -> None:
        """Collectors accept and greet."""
        self.loop.skew += 1.0
        for at in numbers:
            self.turn(3)
            self.collectors[at].accept()
            while not self.collectors[at].heard:
                self.turn()
                self.collectors[at].hear()
            self.collectors[at].greet(held)
        self.turn(5)

    def close(self) -> None:
        """Give everything back."""
        self.link.close()
        for one in self.collectors:
            one.close_connection()
            one.listener.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Two collectors that have not accepted yet."""
    made = Bench()
    yield made
    made.close()


def test_the_stalled_connection_is_cut_and_made_again(bench: Bench) -> None:
    """A collector that stops reading is cut off in the middle of a frame; its next hello begins where it goes on."""
    bench.connect(0, 1)
    quick, stalled = bench.collectors
    assert bench.link.state.connected
    for number in range(1, BLOCKS):
        bench.ring.retire([bytes(900_000)])
        while number not in quick.sequences():
            bench.turn()
            quick.hear()
        quick.acknowledge(number)
        bench.turn(3)
    state = bench.link.state

    assert state.connected
    assert (1, [True, False]) == (state.reconnects, [one["serves"] for one in state.destinations])
    assert "left behind" in state.text
    assert bench.ring.held_blocks() <= BLOCKS // 2
    bench.connect(1, held=None)
    (hello,) = [frames.json.loads(text) for kind, _, text in stalled.heard if kind is Kind.HELLO]
    assert hello["first_sequence"] == bench.sharing.fanout.first_sequence > 1
    while BLOCKS - 1 not in stalled.sequences():
        bench.turn()
        stalled.hear()
    assert list(range(hello["first_sequence"], BLOCKS)) == stalled.sequences()


def test_status_and_metrics_have_the_books(bench: Bench) -> None:
    """Each destination of the link's state carries its books, and the tables of metrics read them."""
    bench.connect(0)
    rows = asdict(bench.link.state)["destinations"]
    read = {row.name: [row.value(one) for one in rows] for row in DESTINATION_ROWS}

    assert [{AWAY: 0, LAGGING: 0, ENDED: 0}] * 2 == [one["lost_records"] for one in rows]
    assert [0, 0] == read["guestagent_destination_delivered_records_total"]
    assert [0, 0] == read["guestagent_destination_in_flight_records"]
    assert [1, 0] == read["guestagent_destination_serves"]
    assert "lost_records" in {key for _, _, key in DESTINATION_REASONS}


def test_a_connection_stays_left_out_while_another_is_made_again_and_again() -> None:
    """However often the second collector is tried, the capture never sees the stream to the first."""
    left_out: list[tuple[Exclusion, ...]] = []
    desk = desk_of(WatchedRing(block_count=BLOCKS))
    desk._attach = lambda *_: left_out.append(tuple(desk._exclusions))  # type: ignore[method-assign]
    one, other = Sharing(desk, 2).shares
    stream = Exclusion(6, "10.0.0.1", 4795, 50000)
    one.exclude(stream)
    for port in range(50001, 50020):
        other.exclude(Exclusion(6, "10.0.0.2", 4795, port))

    assert all(stream in now for now in left_out)
    assert left_out[-1][-1].local_port == 50019


def test_a_collector_of_two_names_is_refused_the_second_time(tmp_path: Path) -> None:
    """It keeps the copy that it has, says once a back-off what is wrong, and no connection takes turns with another."""
    rig = Rig(tmp_path)
    sharing = Sharing(desk_of(WatchedRing(block_count=BLOCKS)), 2)
    sharing.desk._attach = lambda *_: None  # type: ignore[method-assign]
    links = [
        StreamLink([Endpoint("tcp", host, rig.address[1])], share, rig.loop, None, Backoff(lambda: 0.0))
        for host, share in zip(("127.0.0.1", "localhost"), sharing.shares, strict=True)
    ]
    link = ReplicateLink(links, sharing)

    def turn() -> bool:
        link.tick(rig.loop.now())
        rig.turn(0.002)
        link.pump(rig.loop.now())
        return rig.server.refused >= 3

    rig.until(turn, "three attempts")
    state = link.state
    link.close()
    rig.close()

    assert (0, True) == (state.reconnects, state.connected)
    assert 1 == sum(one["serves"] for one in state.destinations)
    assert 1 == sum(one["takeovers"] for one in state.destinations)
    assert "it has this run already, as another of its copies: two destinations in `to` lead here" in state.text
