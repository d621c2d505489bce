"""Direct tunnels into Open vSwitch (user-space datapath): its tunnel ports hand out the frames that were made."""

from collections import Counter
from pathlib import Path

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import inject
from guestagent.lab.traffic import ping
from tests.lab.ovs import OpenVSwitch, quiet_cable
from tests.lab.rig import Rig, wait_for
from tests.lab.wire import MARK, is_watched, marked_frames, seen_frames

FRAMES = marked_frames(120, 1440)
KEY, WRONG_KEY = 701, 702
TUNNELS = {
    "vxlan": ("vxlan://{}?vni={}", ""),
    "geneve": ("geneve://{}?vni={}", ""),
    "gre": ("gre://{}?key={}", ""),
    "erspan": ("erspan://{}?session={}", "erspan_ver=1 erspan_idx=1"),
}
UNDERLAYS = {4: ("10.9.0.1", "10.9.0.2"), 6: ("[fd00:9::1]", "fd00:9::2")}
SEEN_SECONDS = 8.0
FRAMES_PER_SECOND = 500
"""What a retire time brings must fit, twice, into the socket of Open vSwitch, which has the system's default buffer."""


@pytest.fixture
def wired(lab: Lab) -> tuple[Host, Host]:
    """VM and switch on a cable like a wire: Open vSwitch drops outer checksums that a veth leaves unfinished."""
    vm, peer = lab.host("agent"), lab.host("peer")
    lab.link(vm, peer, offloads=False)
    return vm, peer


@pytest.mark.parametrize("version", UNDERLAYS)
@pytest.mark.parametrize("kind", TUNNELS)
def test_open_vswitch_reads_ours(rig: Rig, wired: tuple[Host, Host], kind: str, version: int, tmp_path: Path) -> None:
    """Two agents copy the same frames, under the key of a tunnel port and under another one: the port hands out every
    frame once, byte for byte, and of the other key Open vSwitch says that it has no port."""
    vm, peer = wired
    url, options = TUNNELS[kind]
    to, sender = UNDERLAYS[version]
    switch = OpenVSwitch(peer, tmp_path)
    quiet_cable(peer, "out0", "out1")
    switch.own_the_card("10.9.0.1/24", "fd00:9::1/64")
    switch.add_bridge("br0", "out0")
    switch.add_tunnel("br0", "tunnel", kind, sender, f"key={KEY} {options}")
    wait_for(lambda: vm.call(ping, to.strip("[]"), 1), "Open vSwitch to answer")
    agents = {
        key: rig.agent(vm, "--filter", f"ether src {MARK.hex(':')}", to=url.format(to, key), name=f"key-{key}")
        for key in (KEY, WRONG_KEY)
    }
    watcher = peer.start(seen_frames, "out1", SEEN_SECONDS, MARK, most=len(FRAMES))
    wait_for(lambda: peer.call(is_watched, "out1"), "the watcher")
    vm.call(inject, "eth0", FRAMES[:-1], FRAMES_PER_SECOND)
    for agent in agents.values():
        wait_for(lambda one=agent: one.status().get("delivered") == len(FRAMES) - 1, "all frames but the last")
    vm.call(inject, "eth0", FRAMES[-1:])  # whatever the other key brought would come before this one
    seen = watcher.result()
    reports = [agent.stop() for agent in agents.values()]

    assert Counter(seen) == Counter(FRAMES)
    for report in reports:
        assert report["captured"] == report["delivered"] == len(FRAMES)
    refused = [line for line in switch.log_text().splitlines() if "receive tunnel port not found" in line]
    assert refused
    assert all(f"tun_id={WRONG_KEY:#x}" in line for line in refused)
