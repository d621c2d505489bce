"""Foreign tunnels into a collector: what the kernel, Open vSwitch and scapy send stands byte-equal in its captures."""

import os
import socket
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from scapy.contrib.erspan import ERSPAN_II, ERSPAN_III  # type: ignore[import-untyped]
from scapy.contrib.geneve import GENEVE, GeneveOptions  # type: ignore[import-untyped]
from scapy.layers.inet import IP, UDP  # type: ignore[import-untyped]
from scapy.layers.inet6 import IPv6  # type: ignore[import-untyped]
from scapy.layers.l2 import GRE  # type: ignore[import-untyped]
from scapy.layers.vxlan import VXLAN  # type: ignore[import-untyped]

from guestagent.lab.hosts import Host
from guestagent.lab.traffic import ping
from tests.lab.ovs import OpenVSwitch, quiet_cable
from tests.lab.rig import Process, Rig, wait_for
from tests.lab.wire import inject_all, marked_frames

FRAMES = marked_frames(300, 1400)
FEW = FRAMES[:40]
SYNTHESISED = bytes.fromhex("020000000002020000000001")


def listen(rig: Rig, host: Host, *urls: str, more: Iterable[str] = ()) -> Process:
    """A collector with these listeners that writes below `captures`."""
    flags = [word for url in urls for word in ("--listen", url)]
    process = rig.start(host, "collect", *flags, "--write", str(rig.captures), *more, report="collector.json")
    wait_for(lambda: process.log_text().count("listens on") >= len(urls), "the collector to listen")
    return process


def received(collector: Process) -> int:
    """Frames that the collector has so far, of all senders."""
    return sum(agent["received"] for agent in collector.status()["agents"].values())


def stop_after(collector: Process, frames: int) -> dict[str, Any]:
    """The report, once so many frames have come."""
    wait_for(lambda: received(collector) >= frames, f"{frames} frames, {received(collector)} came")
    return collector.stop()


def written(rig: Rig, sender: str) -> Counter[bytes]:
    """Frames in one sender's files."""
    return Counter(frame.data for frame in rig.frames(sender))


def send_udp(datagrams: list[bytes], address: str, port: int) -> None:
    """From one socket."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        for datagram in datagrams:
            one.sendto(datagram, (address, port))


def send_gre(datagrams: list[bytes], address: str) -> None:
    """As IP packets of protocol 47."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, 47) as one:
        for datagram in datagrams:
            one.sendto(datagram, (address, 0))


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernels_vxlan_device_is_read(rig: Rig, pair: tuple[Host, Host], version: int) -> None:
    """What goes into a vxlan device of the kernel stands in the capture, byte for byte."""
    vm, peer = pair
    near, far = ("10.9.0.2", "10.9.0.1") if version == 4 else ("fd00:9::2", "fd00:9::1")
    collector = listen(rig, peer, "vxlan://" if version == 4 else "vxlan://[fd00:9::1]")
    device = ["vx0", "type", "vxlan", "id", "70001", "dstport", "4789", "local", near, "remote", far]
    vm.run(["ip", "link", "add", *device])
    vm.run(["ip", "link", "set", "vx0", "addrgenmode", "none"])
    vm.run(["ip", "link", "set", "vx0", "mtu", "1500", "up"])
    vm.call(inject_all, "vx0", FRAMES)
    report = stop_after(collector, len(FRAMES))
    name = "vxlan-" + near.replace(":", "-") + "-70001"

    assert list(report["agents"]) == [name]
    assert written(rig, name) == Counter(FRAMES)
    assert report["agents"][name]["written"] == len(FRAMES)
    assert not report["tunnels"]["malformed"]
    assert report["tunnels"]["listeners"][0]["dropped_by_kernel"] == 0


def test_scapys_tunnels_are_read(rig: Rig, pair: tuple[Host, Host]) -> None:
    """VXLAN, GENEVE with options, GRE with and without key, ERSPAN I, II and III: one sender for each key."""
    vm, peer = pair
    collector = listen(rig, peer, "vxlan://:4789", "geneve://10.9.0.1", "gre://10.9.0.1", "erspan://10.9.0.1")
    option = GeneveOptions(classid=0x0132, type=1, data=bytes(4))
    tunnels = {
        "vxlan-10.9.0.2-5": (4789, VXLAN(vni=5, flags=8)),
        "geneve-10.9.0.2-6": (6081, GENEVE(vni=6, proto=0x6558, options=[option])),
        "gre-10.9.0.2-7": (0, GRE(key_present=1, key=7, proto=0x6558)),
        "gre-10.9.0.2": (0, GRE(proto=0x6558)),
        "erspan-10.9.0.2": (0, GRE(proto=0x88BE)),
        "erspan-10.9.0.2-8": (0, GRE(seqnum_present=1, seqence_number=1, proto=0x88BE) / ERSPAN_II(session_id=8)),
        "erspan-10.9.0.2-9": (0, GRE(seqnum_present=1, seqence_number=1, proto=0x22EB) / ERSPAN_III(session_id=9)),
    }
    for port, header in tunnels.values():
        datagrams = [bytes(header) + frame for frame in FEW]
        vm.call(send_udp, datagrams, "10.9.0.1", port) if port else vm.call(send_gre, datagrams, "10.9.0.1")
    report = stop_after(collector, len(tunnels) * len(FEW))

    assert set(report["agents"]) == set(tunnels)
    for name in tunnels:
        assert written(rig, name) == Counter(FEW), name
    # Of two raw sockets each gets all: the other one's are told apart by protocol, and nothing is lost by that.
    assert not report["tunnels"]["malformed"]


def test_gre_over_ipv6_is_read(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A raw IPv6 socket hands out no IP header; the frames are whole all the same."""
    vm, peer = pair
    collector = listen(rig, peer, "gre://")
    vm.call(send_gre, [bytes(GRE(key_present=1, key=7, proto=0x6558)) + frame for frame in FEW], "fd00:9::1")
    stop_after(collector, len(FEW))

    assert written(rig, "gre-fd00-9--2-7") == Counter(FEW)


def test_cloud_mirrors_are_read(rig: Rig, pair: tuple[Host, Host]) -> None:
    """GENEVE with inner IP gets an Ethernet header that the report owns up to; behind a gateway load balancer the
    mirrored host is the sender."""
    vm, peer = pair
    collector = listen(rig, peer, "geneve://")
    option = GeneveOptions(classid=0x0132, type=1, data=bytes(4))
    four = [bytes(GENEVE(vni=0, proto=0x0800, options=[option])) + frame[14:] for frame in FEW]
    packet = bytes(IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2) / (b"x" * 40))
    six = [bytes(GENEVE(vni=0, proto=0x86DD, options=[option])) + packet]
    inner = IP(src="10.77.0.5", dst="10.77.0.9") / UDP(sport=50_000, dport=4789) / VXLAN(vni=12, flags=8)
    balanced = [bytes(GENEVE(vni=1, proto=0x0800) / inner / frame) for frame in FEW]
    vm.call(send_udp, four + six + balanced, "10.9.0.1", 6081)
    report = stop_after(collector, 2 * len(FEW) + 1)

    made_up = [SYNTHESISED + b"\x08\x00" + frame[14:] for frame in FEW] + [SYNTHESISED + b"\x86\xdd" + packet]
    assert written(rig, "geneve-10.9.0.2-0") == Counter(made_up)
    assert report["tunnels"]["synthesised_ethernet"] == len(made_up)
    assert written(rig, "geneve-10.77.0.5-12") == Counter(FEW)


def test_a_cut_copy_tells_its_length(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A mirror that truncates, as a cloud's packet length does, leaves the original length in the capture."""
    vm, peer = pair
    collector = listen(rig, peer, "vxlan://")
    vm.call(send_udp, [bytes(VXLAN(vni=5, flags=8)) + frame[:64] for frame in FRAMES], "10.9.0.1", 4789)
    stop_after(collector, len(FRAMES))
    lengths = Counter((frame.original_bytes, len(frame.data)) for frame in rig.frames("vxlan-10.9.0.2-5"))

    assert lengths == Counter((len(frame), min(64, len(frame))) for frame in FRAMES)


def test_strangers_bytes_are_counted_by_reason(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Noise, cut headers and a flood of keys end in bounded counters; the copy among them is written."""
    vm, peer = pair
    collector = listen(rig, peer, "vxlan://", "geneve://", "gre://")
    good = bytes(VXLAN(vni=5, flags=8)) + FRAMES[0]
    hostile = [b"", b"\x08", os.urandom(300), good[:8], good[:9], bytes(2000), *(good[:size] for size in range(22))]
    vm.call(send_udp, hostile, "10.9.0.1", 4789)
    vm.call(send_udp, [*hostile, *(os.urandom(size) for size in range(1, 200))], "10.9.0.1", 6081)
    vm.call(send_gre, [*hostile[1:], *(os.urandom(size) for size in range(1, 200))], "10.9.0.1")
    vm.call(send_udp, [good], "10.9.0.1", 4789)
    flood = [bytes(VXLAN(vni=vni, flags=8)) + FRAMES[0] for vni in range(10, 1100)]
    for at in range(0, len(flood), 100):
        vm.call(send_udp, flood[at : at + 100], "10.9.0.1", 4789)
    wait_for(lambda: collector.status()["tunnels"]["lost"].get("too_many_senders", 0) >= 60, "the flood to be over")
    report = collector.stop(20)
    tunnels = report["tunnels"]

    assert 0 < len(tunnels["malformed"]) <= 65
    assert tunnels["senders"] == 1024
    assert FRAMES[0] in written(rig, "vxlan-10.9.0.2-5")
    got = sum(agent["received"] for agent in report["agents"].values())
    came = sum(one["datagrams"] for one in tunnels["listeners"])
    not_erspan_here = tunnels.get("passed_over", 0)
    assert came == got + sum(tunnels["malformed"].values()) + sum(tunnels["lost"].values()) + not_erspan_here


def test_what_finds_no_room_is_counted(rig: Rig, pair: tuple[Host, Host]) -> None:
    """While the collector stands still the kernel's queue runs over; arrived plus dropped is what was sent."""
    vm, peer = pair
    collector = listen(rig, peer, "vxlan://")
    buffer_bytes = collector.status()["tunnels"]["listeners"][0]["receive_buffer_bytes"]
    collector.process.send_signal(19)  # SIGSTOP
    count = buffer_bytes // 1500 + 5000
    vm.call(send_many, bytes(VXLAN(vni=5, flags=8)) + max(FRAMES, key=len), count)
    collector.process.send_signal(18)
    listener = wait_for(lambda: all_there(collector, count), "the rest")
    report = collector.stop(20)

    assert listener["dropped_by_kernel"] > 0
    assert report["agents"]["vxlan-10.9.0.2-5"]["written"] == count - listener["dropped_by_kernel"]


def send_many(datagram: bytes, count: int) -> None:
    """As fast as a veth takes them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("10.9.0.1", 4789))
        for _ in range(count):
            one.send(datagram)


def all_there(collector: Process, count: int) -> dict[str, Any] | None:
    """The listener's counters, once nothing more can come."""
    snapshot = collector.status()
    if "tunnels" not in snapshot:
        return None
    listener: dict[str, Any] = snapshot["tunnels"]["listeners"][0]
    return listener if listener["datagrams"] + listener["dropped_by_kernel"] >= count else None


OVS_TUNNELS = {
    "vxlan-10.9.0.2-77": ("vxlan", "key=77"),
    "geneve-10.9.0.2-78": ("geneve", "key=78"),
    "gre-10.9.0.2-79": ("gre", "key=79"),
    "erspan-10.9.0.2-80": ("erspan", "key=80 erspan_ver=1 erspan_idx=1"),
    "erspan-10.9.0.2-81": ("erspan", "key=81 erspan_ver=2 erspan_dir=1 erspan_hwid=1"),
}


def test_open_vswitch_tunnels_are_read(rig: Rig, pair: tuple[Host, Host], tmp_path: Path) -> None:
    """A bridge of Open vSwitch (user-space datapath) floods into a tunnel of each kind; ours reads them all."""
    vm, peer = pair
    collector = listen(rig, peer, "vxlan://10.9.0.1", "geneve://10.9.0.1", "gre://10.9.0.1", "erspan://10.9.0.1")
    switch = OpenVSwitch(vm, tmp_path)
    quiet_cable(vm, "in0", "in1")
    switch.own_the_card("10.9.0.2/24")
    switch.add_bridge("br0", "in1")
    for number, (kind, options) in enumerate(OVS_TUNNELS.values()):
        switch.add_tunnel("br0", f"t{number}", kind, "10.9.0.1", options)
    vm.call(ping, "10.9.0.1", 1)
    wait_for(lambda: seen_all(vm, collector), "Open vSwitch to send into every tunnel")
    vm.call(inject_all, "in0", FEW)
    for name in OVS_TUNNELS:
        wait_for(lambda one=name: written(rig, one) >= Counter(FEW), f"all frames of {name}")
    report = collector.stop()

    assert set(report["agents"]) == set(OVS_TUNNELS)
    assert not report["tunnels"]["malformed"]


def seen_all(vm: Host, collector: Process) -> bool:
    """Send one frame more; have all tunnels brought something?"""
    vm.call(inject_all, "in0", FRAMES[-1:])
    return set(OVS_TUNNELS) <= set(collector.status()["agents"])
