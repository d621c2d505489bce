"""Frames of every shape: delivered unchanged or counted by reason, never a stale record."""

import fcntl
import os
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import ethernet, inject
from tests.lab.rig import Rig, assert_ledger_closes, frames_of, wait_for
from tests.real_captures import ethernet_frames

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_GSO_NONE, _GSO_UDP = 0, 3
VM_MAC, PEER_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"


def _quiet(host: Host) -> None:
    """No chatter of the host's own stack on eth0: what is captured is what we inject."""
    host.run(["ip", "link", "set", "eth0", "arp", "off"])


def _fragment(offset: int, more: bool, payload: bytes) -> bytes:
    flags = (0x2000 if more else 0) | offset // 8
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 7, flags, 64, 17, 0, bytes(4), bytes([10, 9, 0, 9])
    )
    return ethernet(header + payload, 0x0800)


def _tcp6_in_extension_headers() -> bytes:
    hop = bytes([60, 0, 1, 4, 0, 0, 0, 0]) + bytes([6, 0, 1, 4, 0, 0, 0, 0])
    tcp = struct.pack(">HHIIBBHHH", 80, 81, 1, 2, 0x50, 0x10, 100, 0, 0) + b"payload"
    body = hop + tcp
    return ethernet(struct.pack(">IHBB", 0x60000000, len(body), 0, 64) + bytes(16) + bytes(15) + b"\1" + body, 0x86DD)


SHAPES = {
    "arp": [ethernet(bytes(28), 0x0806)],
    "runts": [bytes(range(12)) + b"\x08\x00" + bytes(size - 14) for size in range(14, 61)],
    "vlan": [ethernet(bytes(range(100)), 0x0800, vlans=[42])],
    "vlan priority": [ethernet(bytes(range(100)), 0x86DD, vlans=[0xE000 | 4094])],
    "service tag": [ethernet(bytes(range(64)), 0x0800, vlans=[0x88A8 << 16 | 7])],
    "two tags": [ethernet(bytes(range(64)), 0x0800, vlans=[0x88A8 << 16 | 7, 8])],
    "priority tag 0": [ethernet(bytes(range(64)), 0x0800, vlans=[0])],
    "fragments": [_fragment(0, True, bytes(800)), _fragment(800, True, bytes(800)), _fragment(1600, False, b"end")],
    "extension headers": [_tcp6_in_extension_headers()],
    "length instead of type": [ethernet(bytes(50), 38)],
    "jumbo": [ethernet(bytes(range(256)) * 34, 0x88B5)],
}


@pytest.mark.parametrize("outbound", [True, False])
def test_frames_of_every_shape_arrive_unchanged(rig: Rig, lab: Lab, outbound: bool) -> None:
    """VLAN tags, runts, fragments, ARP, extension headers and jumbo frames are in the copy as they were sent."""
    vm, peer, side = lab.host("vm"), lab.host("peer"), lab.host("side")
    lab.link(vm, peer, "eth1", "eth1", a_addresses=["10.9.0.2/24"], b_addresses=["10.9.0.1/24"])
    lab.link(vm, side, a_addresses=[], b_addresses=[], mtu=9000)
    _quiet(vm)
    collector, agent = rig.collect(peer), rig.agent(vm)
    sender = vm if outbound else side
    frames = [frame for shape in SHAPES.values() for frame in shape]
    sender.call(inject, "eth0", frames, 2000)
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    captured = Counter(frame.data for frame in rig.frames())
    for name, shape in SHAPES.items():
        for frame in shape:
            assert captured[frame] == 1, f"{name}, {len(frame)} bytes"


def test_real_captures_arrive_frame_for_frame(rig: Rig, lab: Lab) -> None:
    """Every Ethernet frame of tcpdump's 667 test captures, replayed onto the link, is copied as it is."""
    try:
        frames = list(ethernet_frames())
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        pytest.skip(f"the source package of tcpdump can't be downloaded: {error}")
    assert len(frames) > 2000
    vm, peer, side = lab.host("vm"), lab.host("peer"), lab.host("side")
    lab.link(vm, peer, "eth1", "eth1", a_addresses=["10.9.0.2/24"], b_addresses=["10.9.0.1/24"])
    lab.link(vm, side, a_addresses=[], b_addresses=[])
    _quiet(vm)
    collector, agent = rig.collect(peer), rig.agent(vm)
    side.call(inject, "eth0", frames, 20_000)
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    captured = Counter(frame.data for frame in rig.frames())
    sent = Counter(frames)
    assert not sent - captured
    foreign = sum((captured - sent).values())
    assert foreign < 20, "only the few frames that the two stacks say by themselves"


def test_undescribable_super_packets_are_counted_and_never_stale(rig: Rig, lab: Lab, tmp_path: Path) -> None:
    """UFO through a TAP: the kernel leaves holes in the ring; each is counted once, none shows an old packet."""
    vm, peer = lab.host("vm"), lab.host("peer")
    lab.link(vm, peer)
    go = tmp_path / "go"
    writer = vm.start(_write_to_tap, go)
    wait_for(lambda: "tap0" in vm.run(["ip", "-o", "link"]).stdout, "the TAP device")
    collector, agent = rig.collect(peer), rig.agent(vm, "-i", "tap0")
    go.touch()
    whole, holes = writer.result()
    wait_for(lambda: agent.status()["unsupported_gso"] == holes, "the holes to be counted")
    ledger, report = agent.stop(), collector.stop()

    assert (holes, 0) == (ledger["unsupported_gso"], ledger["dropped_by_ring"])
    assert_ledger_closes(ledger, report)
    numbers = [int.from_bytes(frame.data[14:18], "big") for frame in rig.frames() if frame.data[12:14] == b"\x88\xb5"]
    assert list(range(whole)) == numbers


def _write_to_tap(go: Path, rounds: int = 50) -> tuple[int, int]:
    """Numbered whole frames with a UFO super-packet between each two; (whole frames, super-packets) written."""
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"tap0", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    subprocess.run(["ip", "link", "set", "tap0", "up", "arp", "off"], check=True)
    while not go.exists():
        time.sleep(0.01)
    udp = struct.pack(">HHHH", 7, 7, 8 + 4000, 0) + bytes(4000)
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, bytes([10, 7, 0, 1]), bytes([10, 7, 0, 2])
    )
    super_packet = ethernet(header + udp, 0x0800)
    for number in range(rounds):
        os.write(tap, bytes(10) + ethernet(number.to_bytes(4, "big") + bytes(60), 0x88B5))
        os.write(tap, struct.pack("<BBHHHH", 1, _GSO_UDP, 42, 1480, 34, 6) + super_packet)
    time.sleep(0.5)
    os.close(tap)
    return rounds, rounds


def test_a_slice_keeps_the_original_length(rig: Rig, pair: tuple[Host, Host]) -> None:
    """`--slice 100` and a filter: only what was asked for, cut to 100 bytes, with the length it had."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm, "--slice", "100", "--filter", "ether proto 0x88b5")
    frames = [ethernet(bytes([number]) * 500, 0x88B5) for number in range(50)]
    frames += [ethernet(bytes(100), 0x88B6)]
    peer.call(inject, "eth0", frames, 1000)
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    captured = [(frame.original_bytes, frame.data) for path in rig.files() for frame in frames_of(path)]
    assert [(514, frame[:100]) for frame in frames[:50]] == captured
