"""`guestagent mirror ovs` on the real ovs-vswitchd (user-space datapath): our own collector has what it mirrors."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guestagent.cli import main
from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import inject
from tests.lab.ovs import OpenVSwitch, quiet_cable
from tests.lab.rig import Process, Rig, wait_for
from tests.lab.wire import inject_all, is_watched, marked_frames, seen_frames

FRAMES = marked_frames(150, 1440)
FEW = FRAMES[:20]
MARK = FRAMES[0][6:12]
Run = Callable[..., tuple[int, str]]
TUNNELS = ("vxlan", "geneve", "gre", "erspan")


class Switch(OpenVSwitch):
    """With cables of three machines in br0: `vm1`, `vm2` and `col` are its ports, `vm1x` and so on their far ends."""

    def __init__(self, host: Host, place: Path) -> None:
        super().__init__(host, place)
        for port in ("vm1", "vm2", "col"):
            quiet_cable(host, port, f"{port}x")
        self.add_bridge("br0", "vm1")
        self.vsctl("add-port br0 vm2 -- add-port br0 col")

    def look_again(self) -> None:
        """Forget the flows under way: Open vSwitch 3.1 leaves them as they are when a mirror changes."""
        self.appctl("revalidator/purge")


@pytest.fixture
def hosts(lab: Lab) -> tuple[Host, Host]:
    """Switch and collector on a cable like a wire: Open vSwitch drops outer checksums that a veth leaves unfinished."""
    switch, peer = lab.host("switch"), lab.host("collector")
    lab.link(switch, peer, offloads=False)
    return switch, peer


@pytest.fixture
def mirror(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `guestagent mirror ovs ...` for the mirror `web`: exit code, all that it said."""

    def run(action: str, *words: str) -> tuple[int, str]:
        code = main(["mirror", "ovs", action, "--db", f"unix:{tmp_path}/db.sock", "--name", "web", *words])
        return code, "".join(capsys.readouterr())

    return run


FRAMES_PER_SECOND = 500
"""What vswitchd's sockets have room for while two cores are busy with something else."""
PROBE = MARK + MARK + bytes.fromhex("88b5") + bytes(46)
"""A frame of no conversation, by which a way is tried."""


def received(collector: Process, name: str) -> int:
    """Copies so far under a name that the collector gave."""
    agents: dict[str, Any] = collector.status()["agents"]
    return int(agents[name]["received"]) if name in agents else 0


def arrives(host: Host, collector: Process, name: str) -> bool:
    """Does a frame from vm1 come out at the other end?"""
    host.call(inject_all, "vm1x", [PROBE])
    return received(collector, name) > 0


def written(rig: Rig, name: str) -> Counter[bytes]:
    """Frames in the files of one tunnel, but for probes."""
    return Counter(frame.data for frame in rig.frames(name) if frame.data != PROBE)


def copies(host: Host, port: str, frames: list[bytes], *, out_of: str, most: int) -> Counter[bytes]:
    """What comes out of a port while frames are sent into another one's far end."""
    watcher = host.start(seen_frames, f"{out_of}x", 8.0 if most else 0.5, MARK, most=most or 1)
    wait_for(lambda: host.call(is_watched, f"{out_of}x"), "the watcher")
    host.call(inject, f"{port}x", frames, FRAMES_PER_SECOND)
    return Counter(watcher.result())


def towards(frames: list[bytes], mac: str) -> list[bytes]:
    """The same frames to another machine."""
    return [bytes.fromhex(mac.replace(":", "")) + frame[6:] for frame in frames]


def tagged(frames: list[bytes], vlan: int) -> list[bytes]:
    """The same frames in a VLAN."""
    return [frame[:12] + b"\x81\0" + vlan.to_bytes(2, "big") + frame[12:] for frame in frames]


@pytest.mark.parametrize("version", [4, 6])
def test_each_tunnel_brings_the_copies(
    rig: Rig, hosts: tuple[Host, Host], mirror: Run, tmp_path: Path, version: int
) -> None:
    """One mirror led from tunnel to tunnel, in place: the collector writes what came from the VM, byte for byte, and
    nothing of what another port brought; `status` is in order; after `delete` bridge and tunnels are as before."""
    host, peer = hosts
    switch = Switch(host, tmp_path)
    switch.own_the_card("10.9.0.2/24", "fd00:9::2/64")
    before = switch.vsctl("list-ports br0")
    to, sender = ("10.9.0.1", "10.9.0.2") if version == 4 else ("[fd00:9::1]", "fd00-9--2")
    listen = [word for scheme in TUNNELS for word in ("--listen", f"{scheme}://{to}")]
    collector = rig.start(peer, "collect", *listen, "--write", str(rig.captures), report="collector.json")
    wait_for(lambda: collector.log_text().count("listens on") >= len(TUNNELS), "the collector to listen")
    for key, scheme in enumerate(TUNNELS, 71):
        name = f"{scheme}-{sender}-{key}"
        words = ("--source", "port:vm1", "--target", f"{scheme}://{to}", "--vni", str(key), "--direction", "egress")
        assert mirror("create", *words)[0] == 0
        assert mirror("plan", *words)[0] == 0
        switch.look_again()
        wait_for(lambda one=name: arrives(host, collector, one), f"the first copy by {scheme}")
        host.call(inject, "vm2x", FEW, FRAMES_PER_SECOND)
        host.call(inject, "vm1x", FRAMES, FRAMES_PER_SECOND)
        wait_for(lambda one=name: written(rig, one) >= Counter(FRAMES), f"all copies by {scheme}")
        assert written(rig, name) == Counter(FRAMES)
        code, said = mirror("status")
        assert code == 0, said
    assert mirror("delete", "--yes")[0] == 0

    assert switch.vsctl("list-ports br0") == before
    assert not switch.vsctl("list mirror")
    assert not collector.stop()["tunnels"]["malformed"]


def test_a_span_port_follows_the_spec(lab: Lab, mirror: Run, tmp_path: Path) -> None:
    """Direction, packet length and VLANs as specified: the port has every copy byte for byte, and nothing else."""
    host = lab.host("switch")
    switch = Switch(host, tmp_path)
    vm2 = "02:00:00:00:00:02"
    host.call(inject_all, "vm2x", [bytes.fromhex("ffffffffffff") + bytes.fromhex(vm2.replace(":", "")) + PROBE[12:]])
    to_vm2 = towards(FEW, vm2)
    base = ("--target", "port:col")

    def create(*words: str) -> None:
        assert mirror("create", *words)[0] == 0
        switch.look_again()

    create("--source", "port:vm1", "--direction", "egress", *base)
    assert copies(host, "vm1", to_vm2, out_of="col", most=len(FEW)) == Counter(to_vm2)
    assert not copies(host, "vm2", FEW, out_of="col", most=0), "of vm2 what it says to vm1 is ingress there"

    create("--source", "port:vm2", "--direction", "ingress", *base)
    assert copies(host, "vm1", to_vm2, out_of="col", most=len(FEW)) == Counter(to_vm2)

    create("--source", "port:vm1", "--packet-length", "64", *base)
    long = towards(FRAMES[20:40], vm2)
    cut = Counter(frame[:64] for frame in long)
    assert copies(host, "vm1", long, out_of="col", most=len(long)) == cut

    create("--source", "bridge:br0/30", *base)
    inside, outside = tagged(to_vm2, 30), tagged(to_vm2, 31)
    assert copies(host, "vm1", outside + inside, out_of="col", most=len(inside)) == Counter(inside)

    switch.vsctl("set port col vlan_mode=trunk")
    create("--source", "port:vm1", "--target", "vlan:99")
    assert copies(host, "vm1", to_vm2, out_of="col", most=len(FEW)) == Counter(tagged(to_vm2, 99))
    assert mirror("status")[0] == 0


def test_status_tells_a_broken_mirror(lab: Lab, mirror: Run, tmp_path: Path) -> None:
    """A port that is down, gone, or there again as another one is told, with what to do; `create` repairs it."""
    host = lab.host("switch")
    switch = Switch(host, tmp_path)
    words = ("--source", "port:vm1,port:vm2", "--target", "port:col")
    assert mirror("create", *words)[0] == 0
    assert mirror("status")[0] == 0

    host.run(["ip", "link", "set", "colx", "down"])
    wait_for(lambda: "col, its output, is down" in mirror("status")[1], "the link to be seen down")
    host.run(["ip", "link", "set", "colx", "up"])
    wait_for(lambda: mirror("status")[0] == 0, "the link to be seen up")

    switch.vsctl("del-port col -- del-port vm2")
    code, said = mirror("status")
    assert code == 1
    assert "its output port:col is gone" in said
    assert "vm2: there is no such port" in said
    switch.vsctl("add-port br0 col -- add-port br0 vm2")
    code, said = mirror("status")
    assert code == 1
    assert "egress of vm2 is not mirrored" in said

    assert mirror("create", *words)[0] == 0
    switch.look_again()
    assert mirror("status")[0] == 0
    assert copies(host, "vm2", FEW, out_of="col", most=len(FEW)) == Counter(FEW)


def test_what_the_switch_refuses_is_taken_back(hosts: tuple[Host, Host], mirror: Run, tmp_path: Path) -> None:
    """A tunnel that the switch can't make, and one whose own packets would be mirrored, are told and leave nothing; one
    without a way is made, and `status` says that there is none."""
    host, _ = hosts
    switch = Switch(host, tmp_path)
    switch.own_the_card("10.9.0.2/24")
    switch.add_tunnel("br0", "other", "vxlan", "10.9.0.1", "key=0x47")
    before = switch.vsctl("list-ports br0"), switch.vsctl("list-ports br-phy")

    code, said = mirror("create", "--source", "port:vm1", "--target", "vxlan://10.9.0.1?vni=71")
    assert code == 1
    assert "the switch refuses ga-web: " in said
    for source in ("bridge:br-phy", "port:br-phy"):
        code, said = mirror("create", "--source", source, "--target", "vxlan://10.9.0.1?vni=5")
        assert code == 1
        assert "each copy is copied again" in said
    assert (switch.vsctl("list-ports br0"), switch.vsctl("list-ports br-phy")) == before
    assert not switch.vsctl("list mirror")

    code, said = mirror("create", "--source", "port:vm1", "--target", "gre://10.200.0.1?key=1")
    assert code == 0, said
    code, said = mirror("status")
    assert code == 1
    assert "knows no way to 10.200.0.1" in said
