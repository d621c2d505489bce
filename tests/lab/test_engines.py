"""The contract of capture.source.Source, held by both engines: same frames, same records, same books.

The engine works in a process of its own inside the agent's network; `Remote` drives it from here over a pipe. It reads
as the agent does, edge-triggered and only when woken, so that an edge that never comes is a failed test.
"""

import ctypes
import logging
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import pytest

from guestagent.capture import engine as engine_room
from guestagent.capture.assembler import assemble
from guestagent.capture.block import PACKET_HOST, PACKET_OUTGOING, STATUS_CSUM_NOT_READY, STATUS_VLAN_VALID, walk
from guestagent.capture.bpf import REJECT_ALL, compose
from guestagent.capture.engine import Wish, open_capture
from guestagent.capture.interfaces import describe, links
from guestagent.capture.portable import PortableSource
from guestagent.capture.ring import BLOCK_BYTES, FEWEST_BLOCKS, RETIRE_MS, Ring
from guestagent.capture.source import PRIVATE_BYTES, RetiredBlock, Source
from guestagent.errors import HostError
from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import UDP_PORT, ethernet, inject, udp_payload, udp_send_segmented
from guestagent.model import Interface

ENGINES = {"ring": Ring, "portable": PortableSource}
LOCAL_EXPERIMENTAL, LOCAL_EXPERIMENTAL_2 = 0x88B5, 0x88B6
"""EtherTypes that IEEE 802 sets aside for experiments: no kernel sends such frames on its own."""
VLAN, SERVICE_VLAN = 0x8100, 0x88A8
OTHER_MAC = "02:00:00:00:00:99"
QUIET_SECONDS = 4 * RETIRE_MS / 1000
"""Silence after which nothing is still to come: what is not handed over within 3 retire times is a fault."""
PATIENCE_SECONDS = 10.0
PRIVATE = b"\xaa" * PRIVATE_BYTES


class Seen(NamedTuple):
    """One record."""

    frame: bytes
    original_bytes: int
    direction: int
    vlan: tuple[int, int] | None
    status: int
    waited_seconds: float
    """From the packet's time to the hand-over of its block."""


class Bench:
    """An engine at work, inside the agent's network: what `Remote` can ask for."""

    def __init__(self, kind: str, ifname: str, program: Any, block_count: int) -> None:
        link = links()[ifname]
        self.source: Source = ENGINES[kind](describe(link, 0), link.index, program, block_count=block_count)
        self.held: list[RetiredBlock] = []
        self.addresses: list[int] = []
        self._epoll = select.epoll()
        self._epoll.register(self.source.fileno(), select.EPOLLIN | select.EPOLLET)

    def collect(self, count: int | None = None, *, hold: bool = False, quiet: float = QUIET_SECONDS) -> list[Seen]:
        """Records until there are `count`, or none came for `quiet` seconds; blocks go back, or with `hold` stay."""
        seen: list[Seen] = []
        silent_at = time.monotonic() + (quiet if count is None else PATIENCE_SECONDS)
        while (count is None or len(seen) < count) and time.monotonic() < silent_at:
            if not self._epoll.poll(0.01):
                continue
            while block := self.source.take():
                silent_at = max(silent_at, time.monotonic() + quiet)
                seen += self._read(block)
                self.held.append(block)
                if not hold:
                    self.release()
        return seen

    def _read(self, block: RetiredBlock) -> list[Seen]:
        block.memory[block.start - PRIVATE_BYTES : block.start] = PRIVATE
        cell = ctypes.c_char.from_buffer(block.memory)
        self.addresses.append(ctypes.addressof(cell))
        del cell
        records, now_ns, found = block.memory[block.start : block.end], time.time_ns(), []
        for record in walk(records, block.records):
            assert record, "a stale record"
            time_ns, captured, original, status, start, stop, tci, tpid, direction = record
            assert stop - start == captured
            vlan = (tpid, tci) if status & STATUS_VLAN_VALID else None
            waited = (now_ns - time_ns) / 1e9
            found.append(Seen(bytes(records[start:stop]), original, direction, vlan, status, waited))
        return found

    def release(self) -> None:
        """Give back every held block, oldest first."""
        for block in self.held:
            self.source.release(block)
        self.held.clear()

    def block_addresses(self) -> list[int]:
        """Where each block lay that was taken so far."""
        return self.addresses

    def edges(self, seconds: float) -> int:
        """How often the descriptor wakes us while nothing happens."""
        until, edges = time.monotonic() + seconds, 0
        while (rest := until - time.monotonic()) > 0:
            edges += len(self._epoll.poll(rest))
        return edges


class Remote:
    """A Bench in the agent's network; an unknown attribute is a method of it or of its source, called over there."""

    def __init__(self, host: Host, kind: str, program: Any, block_count: int) -> None:
        self._pipe, theirs = _processes.Pipe()
        self._task = host.start(_serve, theirs, kind, "eth0", program, block_count)
        theirs.close()
        self._answer()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self._pipe.send((name, arguments, named))
            return self._answer()

        return call

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            return self._task.result()  # raises with the traceback of the other side

    def end(self) -> None:
        """Let the other side close its source and go."""
        self._pipe.send(None)
        self._task.result()
        self._pipe.close()


_processes: BaseContext = get_context("fork")


def _serve(pipe: Connection, kind: str, ifname: str, program: Any, block_count: int) -> None:
    bench = Bench(kind, ifname, program, block_count)
    pipe.send("ready")
    while wish := pipe.recv():
        name, arguments, named = wish
        pipe.send(getattr(bench if hasattr(bench, name) else bench.source, name)(*arguments, **named))
    bench.source.close()
    bench.source.close()


def of_type(ethertype: int, slice_: str | int = "full") -> Any:
    """A program that selects frames of one EtherType, behind their VLAN tags where the kernel took them out."""
    wanted = assemble(f"ldh [12]\n jeq #{ethertype}, yes\n ret #0\n yes: ret #262144")
    return compose(user_filter=wanted, slice_=slice_)


OURS = of_type(LOCAL_EXPERIMENTAL)


def numbered(count: int, size: int = 200, ethertype: int = LOCAL_EXPERIMENTAL) -> list[bytes]:
    """Frames that differ in every byte behind the header."""
    return [ethernet(udp_payload(i, size), ethertype) for i in range(count)]


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of an engine."""
    return str(request.param)


@contextmanager
def capturing(host: Host, kind: str, program: Any = OURS, block_count: int = FEWEST_BLOCKS) -> Iterator[Remote]:
    """An engine at work on the agent's eth0."""
    remote = Remote(host, kind, program, block_count)
    yield remote
    remote.end()


def test_every_frame_is_there_byte_exact(kind: str, pair: tuple[Host, Host]) -> None:
    """Frames of all sizes to us, to all and to another are seen in their order, each with its direction."""
    agent, peer = pair
    mac = agent.call(links)["eth0"].mac
    frames = [
        ethernet(udp_payload(size, size), LOCAL_EXPERIMENTAL, destination)
        for size in (0, 1, 45, 46, 47, 255, 256, 1499, 1500)
        for destination in (mac, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", OTHER_MAC)
    ]
    with capturing(agent, kind) as tap:
        peer.call(inject, "eth0", frames)
        inbound = tap.collect(len(frames))
        agent.call(inject, "eth0", frames)
        outbound = tap.collect(len(frames))

    assert [(one.frame, one.original_bytes) for one in inbound] == [(frame, len(frame)) for frame in frames]
    assert [one.frame for one in outbound] == frames
    assert [one.direction for one in inbound] == [PACKET_HOST, 1, 2, 3] * 9
    assert {one.direction for one in outbound} == {PACKET_OUTGOING}
    assert not any(one.vlan for one in inbound + outbound)


def test_vlan_tags_stand_in_the_record(kind: str, pair: tuple[Host, Host]) -> None:
    """Of an incoming frame the outermost tag is in the record with its TPID, the inner ones stay in the frame."""
    agent, peer = pair
    payload = udp_payload(1, 100)
    tags = [[], [5], [0], [0xEFFF], [SERVICE_VLAN << 16 | 7], [SERVICE_VLAN << 16 | 7, 8]]
    with capturing(agent, kind, compose()) as tap:
        peer.call(inject, "eth0", [ethernet(payload, LOCAL_EXPERIMENTAL, vlans=vlans) for vlans in tags])
        seen = [one for one in tap.collect() if one.frame.endswith(payload)]

    plain, inner = ethernet(payload, LOCAL_EXPERIMENTAL), ethernet(payload, LOCAL_EXPERIMENTAL, vlans=[8])
    expected = [None, (VLAN, 5), (VLAN, 0), (VLAN, 0xEFFF), (SERVICE_VLAN, 7), (SERVICE_VLAN, 7)]
    assert [(one.frame, one.vlan) for one in seen] == list(zip([plain] * 5 + [inner], expected, strict=True))
    assert all(one.original_bytes == len(one.frame) for one in seen)


def test_a_slice_keeps_the_original_length(kind: str, pair: tuple[Host, Host]) -> None:
    """A filter that keeps 64 bytes leaves the first 64 and the length that the frame had; a shorter frame is whole."""
    agent, peer = pair
    frames = [*numbered(3, 1000), *numbered(3, 20)]
    with capturing(agent, kind, of_type(LOCAL_EXPERIMENTAL, 64)) as tap:
        peer.call(inject, "eth0", frames)
        seen = tap.collect(len(frames))

    assert [(one.frame, one.original_bytes) for one in seen] == [(frame[:64], len(frame)) for frame in frames]


def test_super_packets_are_whole(kind: str, pair: tuple[Host, Host]) -> None:
    """A UDP_SEGMENT train of ours is one record of 60 KB, marked as one whose checksum is not yet made."""
    agent, _ = pair
    udp = assemble("ldh [12]\n jne #0x800, no\n ldb [23]\n jne #17, no\n ret #262144\n no: ret #0")
    with capturing(agent, kind, compose(user_filter=udp)) as tap:
        agent.call(udp_send_segmented, "10.9.0.1", count=60, payload_bytes=1000)
        seen = tap.collect()

    sent = b"".join(udp_payload(i, 1000) for i in range(60))
    assert [(one.frame[42:], one.original_bytes) for one in seen] == [(sent, 42 + len(sent))]
    assert int.from_bytes(seen[0].frame[36:38], "big") == UDP_PORT
    assert seen[0].status & STATUS_CSUM_NOT_READY


def test_the_books_close_under_a_flood(kind: str, pair: tuple[Host, Host]) -> None:
    """Of frames sent at full speed each is either seen, once and in order, or counted as dropped."""
    agent, peer = pair
    frames = numbered(30_000)
    with capturing(agent, kind) as tap:
        flood = peer.start(inject, "eth0", frames)
        seen = [one.frame for one in tap.collect(quiet=1.0)]
        flood.result()
        seen += [one.frame for one in tap.collect()]
        statistics = tap.statistics()

    assert statistics.captured == len(frames) == len(seen) + statistics.dropped
    kept = set(seen)
    assert seen == [frame for frame in frames if frame in kept]


def test_what_waits_unseen_is_handed_over(kind: str, pair: tuple[Host, Host]) -> None:
    """Frames that came while the reader was busy are all handed over once it looks, though no further frame comes."""
    agent, peer = pair
    frames = numbered(2500, 60)
    with capturing(agent, kind, block_count=8 * FEWEST_BLOCKS) as tap:
        peer.call(inject, "eth0", frames)
        seen = tap.collect()
        statistics = tap.statistics()

    assert len(frames) == statistics.captured == len(seen) + statistics.dropped


def test_unreleased_blocks_are_bounded(kind: str, pair: tuple[Host, Host]) -> None:
    """With no block given back, as many as were asked for are lent and the rest is dropped and counted; what waits
    meanwhile wakes nobody, and the capture goes on once they are back."""
    agent, peer = pair
    frames = numbered(5 * FEWEST_BLOCKS * BLOCK_BYTES // 1400, 1300)
    with capturing(agent, kind) as tap:
        flood = peer.start(inject, "eth0", frames, 20_000)
        seen = tap.collect(hold=True, quiet=1.0)
        flood.result()
        held, capacity = tap.held_blocks(), FEWEST_BLOCKS * BLOCK_BYTES
        edges = tap.edges(3 * RETIRE_MS / 1000)
        tap.release()
        rest = tap.collect()
        statistics = tap.statistics()
        peer.call(inject, "eth0", frames[:10])
        after = tap.collect(10)

    assert held == FEWEST_BLOCKS
    assert 0.9 * capacity < sum(len(one.frame) + 92 for one in seen) < capacity
    assert edges <= 1
    assert statistics.dropped > len(frames) / 2
    assert statistics.captured == len(frames) == len(seen) + len(rest) + statistics.dropped
    assert [one.frame for one in after] == frames[:10]


def test_an_idle_partial_block_is_handed_over(kind: str, pair: tuple[Host, Host]) -> None:
    """A lone frame on an idle link reaches the reader within three retire times, also while older blocks are held."""
    agent, peer = pair
    waits = []
    with capturing(agent, kind) as tap:
        for frame in numbered(5):
            peer.call(inject, "eth0", [frame])
            (one,) = tap.collect(1, hold=True)
            assert one.frame == frame
            waits.append(one.waited_seconds)
            assert tap.edges(2 * RETIRE_MS / 1000) <= 1

    assert max(waits) < 3 * RETIRE_MS / 1000


def test_a_steady_trickle_is_handed_over_in_blocks(kind: str, pair: tuple[Host, Host]) -> None:
    """Frames that keep coming delay no block, and are lent many at a time."""
    agent, peer = pair
    frames = numbered(1000)
    with capturing(agent, kind) as tap:
        peer.start(inject, "eth0", frames, 1000)
        seen = tap.collect(len(frames))
        blocks = len(tap.block_addresses())

    assert [one.frame for one in seen] == frames
    assert max(one.waited_seconds for one in seen) < 3 * RETIRE_MS / 1000
    assert blocks < 30


def test_nothing_leaks_past_the_first_filter(kind: str, pair: tuple[Host, Host]) -> None:
    """Opened amid traffic that its filter refuses, a capture neither sees nor counts one frame of it."""
    agent, peer = pair
    flood = peer.start(inject, "eth0", numbered(40_000), 20_000)
    time.sleep(0.1)
    with capturing(agent, kind, REJECT_ALL) as tap:
        assert not flood.join(0), "the flood ended too early to prove anything"
        assert tap.collect() == []
        assert tap.statistics().captured == 0


def test_reject_all_stops_it(kind: str, pair: tuple[Host, Host]) -> None:
    """What came before reject-all is still handed over, what comes after is not, and the books are closed."""
    agent, peer = pair
    frames = numbered(20)
    with capturing(agent, kind) as tap:
        peer.call(inject, "eth0", frames[:10])
        tap.attach(REJECT_ALL)
        peer.call(inject, "eth0", frames[10:])
        seen = tap.collect()
        statistics = tap.statistics()

    assert [one.frame for one in seen] == frames[:10]
    assert (statistics.captured, statistics.dropped) == (10, 0)


def test_a_filter_is_swapped_live(kind: str, pair: tuple[Host, Host]) -> None:
    """While two kinds of frames keep coming, each is seen exactly while its filter is on."""
    agent, peer = pair
    one, other = numbered(500), numbered(500, ethertype=LOCAL_EXPERIMENTAL_2)
    both = [frame for couple in zip(one, other, strict=True) for frame in couple]
    with capturing(agent, kind) as tap:
        traffic = peer.start(inject, "eth0", both, 1000)
        before = tap.collect(50)
        tap.attach(of_type(LOCAL_EXPERIMENTAL_2))
        after = tap.collect(quiet=1.0)
        traffic.result()

    kinds = [int.from_bytes(one.frame[12:14], "big") for one in before + after]
    assert kinds == sorted(kinds)
    assert set(kinds) == {LOCAL_EXPERIMENTAL, LOCAL_EXPERIMENTAL_2}


def test_released_memory_is_used_again(kind: str, pair: tuple[Host, Host]) -> None:
    """However many blocks pass through, they lie in no more places than were asked for."""
    agent, peer = pair
    frames = numbered(3 * FEWEST_BLOCKS * BLOCK_BYTES // 1400, 1300)
    with capturing(agent, kind) as tap:
        peer.start(inject, "eth0", frames, 5_000)
        seen = tap.collect(len(frames))
        addresses = tap.block_addresses()

    assert [one.frame for one in seen] == frames
    assert len(addresses) > 2 * FEWEST_BLOCKS
    assert len(set(addresses)) <= FEWEST_BLOCKS


def test_a_lost_interface_is_reported_and_comes_back(kind: str, pair: tuple[Host, Host]) -> None:
    """The interface that went down is an error told once; up again, and made anew, it is captured again."""
    agent, peer = pair
    with capturing(agent, kind) as tap:
        agent.run(["ip", "link", "set", "eth0", "down"])
        tap.collect()
        assert [tap.pending_error(), tap.pending_error()] == ["Network is down", ""]
        agent.run(["ip", "link", "set", "eth0", "up"])
        peer.call(inject, "eth0", numbered(5))
        assert len(tap.collect(5)) == 5

        agent.run(["ip", "link", "del", "eth0"])
        Lab.link(None, agent, peer)  # type: ignore[arg-type]
        tap.bind(agent.call(links)["eth0"].index)
        tap.collect()
        peer.call(inject, "eth0", numbered(5))
        assert len(tap.collect(5)) == 5


def _refused(*_: object, **__: object) -> Ring:
    raise HostError("the kernel refused a ring")


def _fall_back(choice: str) -> tuple[str, str, list[str], list[str]]:
    """Open a capture where no ring can be had; runs inside the agent's network."""
    engine_room.Ring = _refused  # type: ignore[assignment,misc]
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("guestagent.capture").addHandler(handler)
    capture = open_capture(Wish(interfaces=("eth0", "lo"), engine=choice))
    layouts = [source.layout for source in capture.sources]
    for source in capture.sources:
        source.close()
    return capture.engine, capture.reason, layouts, said


def test_a_refused_ring_falls_back(pair: tuple[Host, Host]) -> None:
    """Left to choose, the capture takes the portable engine and says why; told to take the ring, it fails."""
    agent, _ = pair
    engine, reason, layouts, said = agent.call(_fall_back, "auto")

    assert (engine, reason, layouts) == ("portable", "the kernel refused a ring", ["tpacket3"] * 2)
    assert [line for line in said if "falling back to the portable engine" in line and reason in line]
    with pytest.raises(Exception, match="HostError: the kernel refused a ring"):
        agent.call(_fall_back, "ring")


def test_without_scapy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The portable engine without its extra is a missing piece of this host, told in one sentence."""
    for name in [name for name in sys.modules if name.startswith("scapy")]:  # other tests use it as their oracle
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scapy", None)
    with pytest.raises(HostError, match=r"^the portable engine needs scapy: install guestagent\[portable\]$"):
        PortableSource(Interface(id=0, name="lo", mac="", mtu=0), 1, OURS, block_count=FEWEST_BLOCKS)
