"""What outlets think: names of devices, keys of the relay, its own packets, what waits while a socket is full."""

import errno
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from guestagent.capture.block import LAYOUT_PLAIN, LAYOUT_VIRTIO, PACKET_OUTGOING, VIRTIO, BlockWriter
from guestagent.collector.sinks.outlet import unpack
from guestagent.collector.sinks.relay import OwnPackets, Relay
from guestagent.collector.sinks.tap import device_name
from guestagent.config import load_collect
from guestagent.encap.segment import NO_OFFLOAD
from guestagent.encap.tunnel import TUNNELS
from guestagent.endpoint import Endpoint
from guestagent.errors import ConfigError
from guestagent.links.way import Way
from guestagent.loop import Loop
from guestagent.model import Exclusion
from tests.fakes import agent_hello, run_of_records

LISTEN = {"listen": ["tcp://:4795"]}


@pytest.mark.parametrize(
    "pattern, agent, name",
    [("tap0", "vm", "tap0"), ("t-%a", "web1", "t-web1"), ("tap-%a", "i-0123456789abcdef0", "tap-0dd6a5ee")],
)
def test_device_names(pattern: str, agent: str, name: str) -> None:
    """They fit 15 characters; a long agent becomes a hash, the same each time."""
    made = device_name(pattern, agent)

    assert len(made) <= 15
    assert made == name or (len(agent) > 11 and len(made) == len(name))
    assert made == device_name(pattern, agent)


def own_packets() -> OwnPackets:
    """Of a VXLAN sensor at 10.0.0.9 and fd00::9, and a GRE sensor at 10.0.0.8."""
    own = OwnPackets()
    for address in ("10.0.0.9", "fd00::9"):
        own.exclude(Exclusion(17, address, 4789, 61440, 61503))
    own.exclude(Exclusion(17, "10.0.0.9", 4789, 50000))
    own.exclude(Exclusion(47, "10.0.0.8", 0, 0))
    return own


def packet(protocol: int, address: str, local: int, remote: int) -> memoryview:
    """A frame to an address."""
    from ipaddress import ip_address

    packed = ip_address(address).packed
    ports = local.to_bytes(2, "big") + remote.to_bytes(2, "big")
    if len(packed) == 4:
        return memoryview(bytes(12) + b"\x08\x00\x45" + bytes(8) + bytes([protocol]) + bytes(6) + packed + ports)
    return memoryview(bytes(12) + b"\x86\xdd\x60" + bytes(5) + bytes([protocol]) + bytes(17) + packed + ports)


@pytest.mark.parametrize(
    "protocol, address, local, remote, is_own",
    [
        (17, "10.0.0.9", 61440, 4789, True),
        (17, "10.0.0.9", 50000, 4789, True),
        (17, "fd00::9", 61503, 4789, True),
        (47, "10.0.0.8", 1, 2, True),
        (17, "10.0.0.9", 61504, 4789, False),
        (17, "10.0.0.9", 61440, 53, False),
        (6, "10.0.0.9", 61440, 4789, False),
        (17, "10.0.0.8", 61440, 4789, False),
        (17, "10.0.0.7", 61440, 4789, False),
        (17, "fd00::8", 61503, 4789, False),
    ],
)
def test_own_packets_are_told_narrowly(protocol: int, address: str, local: int, remote: int, is_own: bool) -> None:
    """Protocol, address, port and range of local ports, all four."""
    assert own_packets().has(packet(protocol, address, local, remote)) is is_own


def test_cut_frames_are_not_ours() -> None:
    """A slice that ends anywhere raises nothing."""
    own = own_packets()
    for whole in (packet(17, "10.0.0.9", 61440, 4789), packet(17, "fd00::9", 61440, 4789)):
        assert not any(own.has(whole[:size]) for size in range(len(whole) - 4))


def test_keys_of_the_relay() -> None:
    """The most telling name wins; without one it is the URL's key."""
    keys = {"vm/eth0 out": 1, "vm/eth0": 2, "vm in": 3, "vm": 4, "out": 5}
    relay = SimpleNamespace(_keys=keys)

    def key(*names: str) -> int | None:
        return Relay.key_of(relay, *names)  # type: ignore[arg-type]

    assert [key("vm", "eth0", "out"), key("vm", "eth0", "in")] == [1, 2]
    assert [key("vm", "eth1", "in"), key("vm", "eth1", "out")] == [3, 4]
    assert [key("db", "eth0", "out"), key("db", "eth0", "in")] == [5, None]


def test_records_are_unpacked() -> None:
    """Offload, tag and direction of each record; the plain layout has no virtio header to look at."""
    block = memoryview(bytearray(4096))
    writer = BlockWriter(block, 0)
    writer.add(b"a" * 60, 1)
    writer.add(b"b" * 60, 2, vlan=(100, 0x88A8), packet_type=PACKET_OUTGOING)
    writer.add(b"c" * 60, 3, virtio=VIRTIO.pack(1, 1, 54, 1448, 34, 16), original_bytes=90)
    writer.add(b"d" * 60, 4, status=0)
    records = block[writer.start : writer.end]

    found = list(unpack(records, writer.count, LAYOUT_VIRTIO))
    assert [(bytes(frame[:1]), virtio, tag, out) for (frame, virtio, _, tag), out in found] == [
        (b"a", NO_OFFLOAD, None, False),
        (b"b", NO_OFFLOAD, (100, 0x88A8), True),
        (b"c", (1, 1, 54, 1448, 34, 16), None, False),
    ]
    assert found[2][0][2] == 90
    assert all(one[0][1] is NO_OFFLOAD for one in unpack(records, writer.count, LAYOUT_PLAIN))


class FullSender:
    """A sender whose socket has no room until it is given some."""

    lanes, room_bytes, outer_bytes, calls = 2, 1472, 42, 0

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.room = 0

    def send(self, _lane: int, datagrams: Sequence[Any], sizes: Sequence[int]) -> tuple[int, int]:
        """Takes as many as there is room."""
        count = min(self.room, len(sizes))
        self.taken += [b"".join(one) for one in datagrams[:count]]
        self.room -= count
        return count, 11 if count < len(sizes) else 0


def test_what_waits_outlives_its_records_within_a_bound() -> None:
    """The records' memory is used again: what waited is still what it was; what was beyond the bound is counted."""
    sender = FullSender()
    way = Way(TUNNELS["vxlan"], sender, "split")  # type: ignore[arg-type]
    memory = bytearray()
    for number in range(10):
        memory += bytes([number]) * 100
    for number in range(10):
        way.add((memoryview(memory)[100 * number :][:100], NO_OFFLOAD, 100, None), way.lanes[0], 7)
    way.flush()
    way.keep(3 * 108 + 50)
    memory[:] = bytes(1000)
    sender.room = 100
    way.flush()

    assert [one[8:9] for one in sender.taken] == [b"\0", b"\1", b"\2"]
    assert all(one[8:] == one[8:9] * 100 for one in sender.taken)
    assert (way.records, way.lost_records, way.lost_frames["full"]) == (3, 7, 7)
    assert way.is_empty


def test_what_waits_at_the_end_is_counted() -> None:
    """A relay that ends while its socket takes nothing says how many records no sensor got."""
    loop = Loop()
    relay = Relay([Endpoint("vxlan", "127.0.0.1", 4789, key=7)], loop, mode="balance", oversize="split", keys={})
    (sensor,) = relay._spread.destinations
    assert sensor.way is not None
    spout = relay.open_run(agent_hello())
    with mock.patch.object(sensor.way.sender, "send", return_value=(0, errno.EAGAIN)):
        spout.records(0, memoryview(run_of_records([bytes(100)] * 5)[0]), 5)
        assert not relay.lost
        relay.close()
    loop.close()
    assert relay.lost == {"sensor_gone_or_full": 5}
    assert relay.describe()["relay"]["destinations"][0]["lost_frames"] == {"full": 5}


@pytest.mark.parametrize(
    "flags, word",
    [
        ({"relay": ["tcp://10.0.0.1"]}, "no tunnel"),
        ({"relay": ["vxlan://10.0.0.1"]}, "vni"),
        ({"relay": ["gre://10.0.0.1?key=1", "gre://10.0.0.1?key=1"]}, "twice"),
        ({"tap": "way-too-long-a-name"}, "device name"),
        ({"tap": "longest-%a"}, "device name"),
        ({"tap": "%a%a"}, "device name"),
        ({"tap": ".."}, "device name"),
        ({"keys": {"vm": 7}}, "--relay"),
        ({"keys": {"vm": 1 << 24}, "relay": ["vxlan://10.0.0.1?vni=1"]}, "vni"),
        ({"listen": ["vxlan://10.0.0.1?vni=1"]}, "any key"),
        ({"listen": ["gre://10.0.0.1:47"]}, "gre"),
        ({"listen": ["vxlan:4789"]}, "vxlan"),
        ({"listen": ["dir:x"]}, "tcp://"),
    ],
)
def test_refusals(flags: dict[str, Any], word: str) -> None:
    """Each is one sentence with what to write instead."""
    with pytest.raises(ConfigError, match=word):
        load_collect(None, LISTEN | flags)


def test_without_write_files_are_kept_only_where_nothing_else_takes_frames() -> None:
    """`captures` is the default of a collector that has neither TAP nor relay."""
    assert load_collect(None, LISTEN).write == "captures"
    assert load_collect(None, LISTEN | {"tap": "tap-%a"}).write == ""
    assert load_collect(None, LISTEN | {"relay": ["gre://10.0.0.1?key=1"]}).write == ""
    assert load_collect(None, LISTEN | {"tap": "tap0", "write": "here"}).write == "here"


@pytest.mark.parametrize(
    "url, host, port",
    [
        ("vxlan://", "", 4789),
        ("vxlan://:4790", "", 4790),
        ("geneve://[::1]", "::1", 6081),
        ("gre://0.0.0.0", "0.0.0.0", 0),
    ],
)
def test_listeners(url: str, host: str, port: int) -> None:
    """Host and port may be left out."""
    (one,) = load_collect(None, {"listen": [url]}).listen

    assert (one.host, one.port) == (host, port)
