"""The direct link without a network: runs of datagrams, ports, keys, what is told."""

import errno
import socket
from itertools import groupby
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.capture.block import PACKET_HOST, PACKET_OUTGOING, VIRTIO, BlockWriter
from guestagent.encap.segment import NO_OFFLOAD, Virtio
from guestagent.encap.vxlan import decode
from guestagent.endpoint import Endpoint
from guestagent.links import datagram
from guestagent.links.batch import Batch
from guestagent.links.datagram import open_datagrams
from guestagent.links.direct import DirectLink
from guestagent.links.sender import MOST_PAYLOAD_BYTES, MOST_SEGMENTS, TRIES, messages
from guestagent.loop import Loop
from guestagent.model import Interface
from guestagent.tapstream import frames as tapstream
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.session import Pending
from tests.frames import TCP, tcp
from tests.segments import offload, payload_of, plain, start_of
from tests.ways import FRAMES


@given(st.lists(st.sampled_from([1, 50, 51, 600, 1472, 9000, 65_507]), max_size=200), st.sampled_from([1, 64]))
def test_messages_hold_what_udp_segment_allows(sizes: list[int], most: int) -> None:
    """Every datagram is in one message, in order; all of a message have its size, but for a shorter last."""
    found = messages(sizes, most)

    assert [at for one in found for at in range(one.start, one.stop)] == list(range(len(sizes)))
    for one in found:
        *whole, last = sizes[one.start : one.stop]
        assert set(whole) <= {one.size}
        assert last <= one.size
        assert one.stop - one.start <= min(most, MOST_SEGMENTS)
        assert one.stop == one.start + 1 or sum(whole) + last <= MOST_PAYLOAD_BYTES


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60))
def test_equal_sizes_are_not_torn_apart(sizes: list[int]) -> None:
    """A run of equal sizes needs no more messages than it has to."""
    assert len(messages(sizes, 64)) <= sum(-(-len(list(run)) // 64) for _, run in groupby(sizes))


def receiver() -> socket.socket:
    """A sensor's socket on lo."""
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 0))
    one.settimeout(0.5)
    return one


def test_a_batch_is_what_was_put_in() -> None:
    """Messages of one and of many datagrams leave with one call and arrive byte-equal, in order."""
    with receiver() as sensor, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(sensor.getsockname())
        assert Batch(segmented=True).send(sender.fileno(), b"aaabbbccd", [8, 1], [3, 1]) == (2, 0)
        assert [sensor.recv(100) for _ in range(4)] == [b"aaa", b"bbb", b"cc", b"d"]
        assert Batch(segmented=False).send(-1, b"x", [1], [1]) == (0, errno.EBADF)


def test_a_taken_port_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes have the ports of a block, and where one is taken another that is excluded by itself."""
    # Below what the kernel gives to others and beside where the other tests of this machine look.
    monkeypatch.setattr(datagram, "FIRST_PORT", 24_576)
    with receiver() as sensor:
        first = open_datagrams(socket.AF_INET, sensor.getsockname())
        (block,) = first.exclusions
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
            thief.bind(("", block.last_local_port + 1 + 5))
            second = open_datagrams(socket.AF_INET, sensor.getsockname())
        block_of_second, other = second.exclusions
        second.connect()
        for lane in range(second.lanes):
            assert second.send(lane, [(b"x", bytes([lane]))], [2]) == (1, 0)
        ports = {data[1]: address[1] for data, address in (sensor.recvfrom(9) for _ in range(second.lanes))}
        first.close()
        second.close()

    assert block_of_second.local_port == block.last_local_port + 1
    expected = {lane: block_of_second.local_port + lane for lane in range(64)} | {5: other.local_port}
    assert ports == expected


@pytest.mark.parametrize("room", [1472, 1000], ids=["blackhole", "narrower"])
def test_a_kernel_that_refuses_all_is_asked_a_few_times(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """EINVAL is what a blackhole route says, and kernels before 6.14 of segments too long for a path that changed."""
    asked = []
    monkeypatch.setattr(Batch, "send", lambda *arguments: asked.append(arguments) or (0, errno.EINVAL))
    with receiver() as sensor:
        sender = open_datagrams(socket.AF_INET, sensor.getsockname())
        sender.connect()
        monkeypatch.setattr(sender, "_learn_room", lambda: setattr(sender, "room_bytes", room))
        answer = sender.send(0, [(b"x" * 1200,)] * 5, [1200] * 5)
        sender.close()

    assert answer == (0, errno.EINVAL if room > 1200 else errno.EMSGSIZE)
    assert len(asked) <= 2 * TRIES


class Owner:
    """A desk with a list of pending frames."""

    def __init__(self, *pending: Pending) -> None:
        self.pending = list(pending)
        self.acknowledgements: list[tuple[int, dict[str, Any]]] = []
        self.spent_bytes, self.further_packets = 0.0, 0
        self.names = ("eth0", "eth1")

    def hello(self) -> Any:
        """Of two interfaces."""
        interfaces = tuple(Interface(at, name, "", 1500) for at, name in enumerate(self.names))
        return type("Hello", (), {"layout": "tpacket3+virtio", "interfaces": interfaces})

    def next_frame(self, now: float) -> Pending | None:
        """The next of the list."""
        return self.pending.pop(0) if self.pending else None

    def allowance(self, now: float) -> float:
        """No cap."""
        return inf

    def spent(self, wire_bytes: float, further_packets: int = 0) -> None:
        """Remember."""
        self.spent_bytes += wire_bytes
        self.further_packets += further_packets

    def acknowledged(self, sequence: int, collector_id: str, notes: dict[str, Any]) -> None:
        """Remember."""
        self.acknowledgements.append((sequence, notes))

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def block(
    interface: int, sequence: int, *frames: tuple[bytes, int], stale: int = 0, virtio: Virtio = NO_OFFLOAD
) -> Pending:
    """A BLOCK of these (frame, packet type)."""
    memory = bytearray(1 << 16)
    writer = BlockWriter(memory, 24)
    for frame, kind in frames:
        writer.add(frame, 1_000_000_000, packet_type=kind, virtio=VIRTIO.pack(*virtio))
    for _ in range(stale):
        writer.add(b"old", 1_000_000_000, status=0)
    about = {"interface": interface, "sequence": sequence, "records": writer.count, "flags": 0}
    return Pending(sequence, Kind.BLOCK, tapstream.write_block_header(memoryview(memory), 72, writer.end, **about))


def test_keys_follow_interface_and_direction() -> None:
    """The most specific key wins, the URL's is for the rest; reports pass, stale records are told of."""
    report = Pending(1, Kind.REPORT, tapstream.encode_json(Kind.REPORT, {}, sequence=1))
    both = ((FRAMES[0], PACKET_HOST), (FRAMES[0], PACKET_OUTGOING))
    owner = Owner(report, block(0, 2, *both), block(1, 3, *both, stale=2))
    loop = Loop()
    with receiver() as sensor:
        endpoint = Endpoint("vxlan", *sensor.getsockname(), key=1)
        keys = {"eth0 out": 20, "eth0": 10, "out": 5}
        link = DirectLink([endpoint], owner, loop, keys=keys)  # type: ignore[arg-type]
        link.tick(0.0)
        assert not link.pump(0.0)
        found = [decode(memoryview(sensor.recv(2000))).key for _ in range(4)]
        link.close()
    loop.close()

    assert found == [10, 20, 1, 5]
    assert owner.acknowledgements == [(3, {"unsupported_gso": {"1": 2}, "lost_on_link": {}})]
    assert owner.spent_bytes == 4 * (len(FRAMES[0]) + 8 + 42)
    assert link.state.sent_bytes == 4 * len(FRAMES[0])


@pytest.mark.parametrize("mode, further", [("balance", 2), ("replicate", 5)])
def test_each_packet_on_the_wire_is_told(mode: str, further: int) -> None:
    """A super-packet leaves as three frames, of copies to two sensors twice: all but the record's own count, too."""
    frame, virtio = plain(TCP, 4, tcp(payload_of(3000))), offload(TCP, 4, 1000, start_of(4))
    owner, loop = Owner(block(0, 1, (frame, PACKET_HOST), virtio=virtio)), Loop()
    with receiver() as one, receiver() as other:
        endpoints = [Endpoint("vxlan", *sensor.getsockname(), key=1) for sensor in (one, other)]
        link = DirectLink(endpoints, owner, loop, mode=mode)  # type: ignore[arg-type]
        link.tick(0.0)
        link.pump(0.0)
        link.close()
    loop.close()

    assert owner.further_packets == further


def test_a_full_socket_is_tried_again_in_the_turn_alone() -> None:
    """When time asks for it no block is taken: the governor has not looked at it, and does so before the next pump."""
    owner, loop = Owner(block(0, 1, (FRAMES[0], PACKET_HOST))), Loop()
    with receiver() as sensor:
        link = DirectLink([Endpoint("vxlan", *sensor.getsockname(), key=1)], owner, loop)  # type: ignore[arg-type]
        link.tick(0.0)
        link.is_blocked = True
        link.tick(1.0)
        assert [] == owner.acknowledgements
        link.pump(1.0)
        link.close()
    loop.close()

    assert owner.acknowledgements == [(1, {"unsupported_gso": {}, "lost_on_link": {}})]


def test_a_key_follows_the_name_of_an_interface() -> None:
    """Once an INFO frame has told of another name, copies go under the key of that one, as the relay's do."""
    owner = Owner(block(0, 1, (FRAMES[0], PACKET_HOST)))
    loop = Loop()
    with receiver() as sensor:
        endpoint = Endpoint("vxlan", *sensor.getsockname(), key=1)
        link = DirectLink([endpoint], owner, loop, keys={"eth0": 10, "web0": 20})  # type: ignore[arg-type]
        link.tick(0.0)
        link.pump(0.0)
        owner.names = ("web0", "eth1")
        info = tapstream.encode_json(Kind.INFO, {}, sequence=2)
        owner.pending = [Pending(2, Kind.INFO, info), block(0, 3, (FRAMES[0], PACKET_HOST))]
        link.pump(0.0)
        found = [decode(memoryview(sensor.recv(2000))).key for _ in range(2)]
        link.close()
    loop.close()

    assert found == [10, 20]
