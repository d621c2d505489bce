"""Direct tunnels, read by others: the kernel, Open vSwitch, tshark and scapy find in them the frames that were made."""

from collections import Counter
from pathlib import Path

import pytest
from scapy.contrib.erspan import ERSPAN_II  # type: ignore[import-untyped]
from scapy.contrib.geneve import GENEVE  # type: ignore[import-untyped]
from scapy.layers.l2 import GRE, Ether  # type: ignore[import-untyped]
from scapy.layers.vxlan import VXLAN  # type: ignore[import-untyped]
from scapy.packet import bind_layers  # type: ignore[import-untyped]

from guestagent.lab.hosts import Host
from tests.lab.rig import Process, Rig, wait_for
from tests.lab.wire import MARK, fragments, inject_all, is_watched, marked_frames, seen_frames, tshark, write_pcap

FRAMES = marked_frames(400, 1440)
"""They fit into a tunnel over IPv6 on a path of 1,500 bytes."""
ADDRESSES = {4: "10.9.0.1", 6: "[fd00:9::1]"}
URLS = {
    "vxlan": "vxlan://{}?vni=70001",
    "geneve": "geneve://{}?vni=70001",
    "gre": "gre://{}?key=70001",
    "erspan": "erspan://{}?session=701",
}


def copy_to(rig: Rig, vm: Host, peer: Host, url: str, ifname: str, mark: bytes = MARK) -> tuple[list[bytes], Process]:
    """What the peer sees on an interface while FRAMES cross the VM's, and the agent, still running."""
    agent = rig.agent(vm, "--filter", f"ether src {MARK.hex(':')}", to=url)
    watcher = peer.start(seen_frames, ifname, 0.8, mark)
    wait_for(lambda: peer.call(is_watched), "the watcher")
    vm.call(inject_all, "eth0", FRAMES)
    return watcher.result(), agent


def assert_ledger_is_whole(report: dict[str, int]) -> None:
    """Everything captured was delivered."""
    assert report["captured"] == report["delivered"] == len(FRAMES)
    assert report["in_flight"] == report["lost_on_link"] == report["dropped_by_ring"] == 0


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_reads_vxlan(rig: Rig, pair: tuple[Host, Host], version: int) -> None:
    """The kernel's vxlan device hands out every frame that crossed the VM's interface, byte for byte."""
    vm, peer = pair
    near, far = ("10.9.0.1", "10.9.0.2") if version == 4 else ("fd00:9::1", "fd00:9::2")
    device = ["vx0", "type", "vxlan", "id", "70001", "dstport", "4789", "local", near, "remote", far]
    peer.run(["ip", "link", "add", *device])
    peer.run(["ip", "link", "set", "vx0", "up"])
    seen, agent = copy_to(rig, vm, peer, URLS["vxlan"].format(ADDRESSES[version]), "vx0")
    report = agent.stop()

    assert Counter(seen) == Counter(FRAMES)
    assert_ledger_is_whole(report)
    assert vm.call(fragments) == peer.call(fragments) == 0


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("scheme", URLS)
def test_scapy_and_tshark_read_every_tunnel(
    rig: Rig, pair: tuple[Host, Host], scheme: str, version: int, tmp_path: Path
) -> None:
    """Both find the key and the inner frames, byte-equal; source ports follow the flow, in both directions."""
    vm, peer = pair
    vm.run(["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"])  # outer packets are seen as on a wire
    seen, agent = copy_to(rig, vm, peer, URLS[scheme].format(ADDRESSES[version]), "eth0")
    report = agent.stop()
    outer = [frame for frame in seen if frame[6:12] != MARK]

    assert_ledger_is_whole(report)
    inner, keys = zip(*(by_scapy(scheme, frame) for frame in outer), strict=True)
    assert Counter(inner) == Counter(FRAMES)
    assert set(keys) == {701 if scheme == "erspan" else 70001}
    assert by_tshark(scheme, outer, tmp_path) == {(str(keys[0]), MARK.hex(":")): len(FRAMES)}
    if scheme == "erspan":
        sequences = [Ether(frame)[GRE].seqnum_present and Ether(frame)[GRE].sequence_number for frame in outer]
        assert sequences == sorted(set(sequences))


def by_scapy(scheme: str, frame: bytes) -> tuple[bytes, int]:
    """(inner frame, key) of an outer one."""
    bind_layers(GRE, ERSPAN_II, proto=0x88BE, seqnum_present=1)
    packet = Ether(frame)
    if scheme == "gre":
        return bytes(packet[GRE].payload), packet[GRE].key
    layer = packet[{"vxlan": VXLAN, "geneve": GENEVE, "erspan": ERSPAN_II}[scheme]]
    return bytes(layer.payload), layer.session_id if scheme == "erspan" else layer.vni


def by_tshark(scheme: str, frames: list[bytes], directory: Path) -> Counter[tuple[str, str]]:
    """How many frames have which key and which inner source address."""
    write_pcap(directory / "outer.pcap", frames)
    field = {"vxlan": "vxlan.vni", "geneve": "geneve.vni", "gre": "gre.key", "erspan": "erspan.spanid"}[scheme]
    found: Counter[tuple[str, str]] = Counter()
    for line in tshark(directory / "outer.pcap", "-T", "fields", "-e", field, "-e", "eth.src"):
        key, sources = line.split("\t")
        found[str(int(key, 0)), sources.split(",")[-1]] += 1
    return found
