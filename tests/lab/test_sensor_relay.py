"""The collector's relay: its tunnels are read by others, its balance and its losses add up, and nothing goes round."""

import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from guestagent.lab.hosts import Host, Lab
from tests.lab.rig import PORT, Process, Rig, wait_for
from tests.lab.wire import MARK, inject_all, is_watched, marked_frames, seen_frames, tshark, write_pcap

FRAMES = marked_frames(400, 1400)
ONLY_MARKED = ("--filter", f"ether src {MARK.hex(':')}")


@pytest.fixture
def trio(lab: Lab) -> tuple[Host, Host, Host]:
    """VM (10.9.0.1), collector (10.9.0.2) and sensor (10.9.0.3) on one switch."""
    hosts = lab.host("vm"), lab.host("collector"), lab.host("sensor")
    lab.bridge(*hosts)
    return hosts


def relay(rig: Rig, host: Host, *urls: str, more: tuple[str, ...] = (), config: str = "") -> Process:
    """A collector on 10.9.0.2 that relays, with this config."""
    flags = [word for url in urls for word in ("--relay", url)]
    if config:
        path = rig.directory / "relay.toml"
        path.write_text(config)
        flags += ["-c", str(path)]
    process = rig.start(host, "collect", "--listen", "tcp://10.9.0.2", *flags, *more, report="collector.json")
    wait_for(lambda: "listens on" in process.log_text(), "the collector to listen")
    return process


def test_the_kernel_reads_the_relay(rig: Rig, trio: tuple[Host, Host, Host]) -> None:
    """A vxlan device of the kernel at the sensor hands out every frame, under the key of its agent and direction."""
    vm, middle, sensor = trio
    for name, vni in (("vx0", "7"), ("vx1", "8")):
        device = [name, "type", "vxlan", "id", vni, "dstport", "4789", "local", "10.9.0.3", "remote", "10.9.0.2"]
        sensor.run(["ip", "link", "add", *device])
        sensor.run(["ip", "link", "set", name, "up"])
    collector = relay(rig, middle, "vxlan://10.9.0.3?vni=7", config='[keys]\n"vm out" = 8\n')
    agent = rig.agent(vm, *ONLY_MARKED, to=f"tcp://10.9.0.2:{PORT}")
    watchers = [sensor.start(seen_frames, name, 1.0, MARK, patience=most) for name, most in (("vx0", 3), ("vx1", 15))]
    wait_for(lambda: sensor.call(watching) == 2, "the watchers")
    vm.call(inject_all, "eth0", FRAMES)
    incoming, outgoing = (watcher.result() for watcher in watchers)
    agent.stop()
    report = collector.stop()

    assert not incoming
    assert Counter(outgoing) == Counter(FRAMES)
    assert report["relay"]["records"] == len(FRAMES)
    assert not report["relay"]["lost"]
    assert report["relay"]["destinations"][0]["frames"] == len(FRAMES)


def watching() -> int:
    """Packet sockets of this host."""
    return len(Path("/proc/net/packet").read_text(encoding="ascii").splitlines()) - 1


@pytest.mark.parametrize("mode", ["replicate", "balance"])
def test_two_sensors(rig: Rig, trio: tuple[Host, Host, Host], mode: str) -> None:
    """Replicated, each sensor gets all; balanced, each flow is whole at one of them, and both have work."""
    vm, middle, sensor = trio
    sensor.run(["ip", "address", "add", "10.9.0.4/24", "dev", "eth0"])
    far = rig.start(
        sensor, "collect", "--listen", "vxlan://10.9.0.3", "--listen", "vxlan://10.9.0.4", "--write",
        str(rig.captures), report="sensor.json",
    )  # fmt: skip
    wait_for(lambda: far.log_text().count("listens on") == 2, "the sensors")
    urls = ("vxlan://10.9.0.3?vni=3", "vxlan://10.9.0.4?vni=4")
    collector = relay(rig, middle, *urls, config=f'mode = "{mode}"\n')
    agent = rig.agent(vm, *ONLY_MARKED, to=f"tcp://10.9.0.2:{PORT}")
    vm.call(inject_all, "eth0", FRAMES)
    agent.stop()
    collector.stop()
    wanted = len(FRAMES) * (2 if mode == "replicate" else 1)
    wait_for(lambda: sum(one["received"] for one in far.status()["agents"].values()) == wanted, "all copies")
    far.stop()
    third, fourth = ([one.data for one in rig.frames(f"vxlan-10.9.0.2-{key}")] for key in (3, 4))

    if mode == "replicate":
        assert Counter(third) == Counter(fourth) == Counter(FRAMES)
    else:
        assert Counter(third + fourth) == Counter(FRAMES)
        assert third
        assert fourth
        assert not {flow(frame) for frame in third} & {flow(frame) for frame in fourth}


def flow(frame: bytes) -> bytes:
    """Addresses and ports."""
    return frame[26:38]


def test_a_sensor_that_is_gone_moves_its_flows(rig: Rig, trio: tuple[Host, Host, Host]) -> None:
    """Nobody listens at one of two: what the network says of it is counted, and its flows go to the other."""
    vm, middle, sensor = trio
    sensor.run(["ip", "address", "add", "10.9.0.4/24", "dev", "eth0"])
    far = rig.start(
        sensor, "collect", "--listen", "vxlan://10.9.0.3", "--write", str(rig.captures), report="sensor.json"
    )
    wait_for(lambda: "listens on" in far.log_text(), "the sensor")
    collector = relay(rig, middle, "vxlan://10.9.0.3?vni=3", "vxlan://10.9.0.4?vni=3")
    agent = rig.agent(vm, *ONLY_MARKED, to=f"tcp://10.9.0.2:{PORT}")
    vm.call(inject_all, "eth0", FRAMES[:100])
    state = wait_for(lambda: not_well(collector), "the missing sensor to be noticed", timeout=5)
    before = far.status()["agents"]["vxlan-10.9.0.2-3"]["received"]
    vm.call(inject_all, "eth0", FRAMES[100:])
    wait_for(lambda: far.status()["agents"]["vxlan-10.9.0.2-3"]["received"] >= before + 300, "all flows", timeout=3)
    agent.stop()
    report = collector.stop()
    got = far.stop()["agents"]["vxlan-10.9.0.2-3"]["received"]
    gone = report["relay"]["destinations"][1]

    assert "connection refused" in state["trouble"]
    assert gone["faults"]["connection_refused"] > 0
    assert 300 <= got < len(FRAMES)


def not_well(collector: Process) -> dict[str, Any] | None:
    """The first sensor that is not well."""
    destinations = collector.status().get("relay", {}).get("destinations", [])
    return next((one for one in destinations if not one["well"]), None)


def test_a_relay_over_a_tapped_wire_does_not_go_round(rig: Rig, trio: tuple[Host, Host, Host]) -> None:
    """The sensor's own VM is tapped and sends to the collector that feeds it: each frame comes by once."""
    vm, middle, sensor = trio
    collector = relay(rig, middle, "vxlan://10.9.0.3?vni=7")
    first = rig.agent(vm, *ONLY_MARKED, to=f"tcp://10.9.0.2:{PORT}")
    second = rig.agent(sensor, to=f"tcp://10.9.0.2:{PORT}", name="sensor")
    before = middle.counters()
    vm.call(inject_all, "eth0", FRAMES)
    wait_for(lambda: collector.status()["relay"]["records"] >= len(FRAMES), "the frames", timeout=3)
    wait_for(lambda: collector.status()["relay"]["lost"].get("loop", 0), "what came back", timeout=3)
    time.sleep(0.5)  # time enough for an avalanche
    sent = middle.counters().tx_packets - before.tx_packets
    second.stop()
    first.stop()
    report = collector.stop()

    assert sent < 3 * len(FRAMES)
    assert report["relay"]["records"] < 2 * len(FRAMES)


def test_mutual_taps_do_not_amplify(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Each host taps itself into the other's tunnel listener: one frame is two copies, not an avalanche."""
    left, right = pair
    ends = []
    for host, name in ((left, "left"), (right, "right")):
        ends.append(rig.start(host, "collect", "--listen", "vxlan://", "--tap", "tap0", report=f"{name}-c.json"))
    for end in ends:
        wait_for(lambda one=end: "listens on" in one.log_text(), "the collectors")
    agents = [
        rig.agent(left, to="vxlan://10.9.0.1?vni=1", name="left"),
        rig.agent(right, to="vxlan://10.9.0.2?vni=2", name="right"),
    ]
    before = left.counters().tx_packets + left.counters().rx_packets
    left.call(inject_all, "eth0", FRAMES)
    wait_for(lambda: sum(received(end) for end in ends) >= 2 * len(FRAMES), "the copies", timeout=3)
    packets = left.counters().tx_packets + left.counters().rx_packets - before
    for one in (*agents, *ends):
        one.stop()

    assert packets < 4 * len(FRAMES)


def received(collector: Process) -> int:
    """Frames of all senders."""
    return sum(agent["received"] for agent in collector.status()["agents"].values())


@pytest.mark.parametrize("scheme, key", [("geneve", "vni"), ("gre", "key"), ("erspan", "session")])
def test_tshark_reads_the_relay(rig: Rig, trio: tuple[Host, Host, Host], scheme: str, key: str, tmp_path: Path) -> None:
    """The inner flows are there under the key, in frames that fit the path."""
    vm, middle, sensor = trio
    middle.run(["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"])  # outer packets are seen as on a wire
    collector = relay(rig, middle, f"{scheme}://10.9.0.3?{key}=77")
    agent = rig.agent(vm, *ONLY_MARKED, to=f"tcp://10.9.0.2:{PORT}")
    if scheme == "geneve":
        sensor.start(hold_port, 6081)
        sensor.wait_for_port(6081)
    watcher = sensor.start(seen_frames, "eth0", 1.0, MARK)
    wait_for(lambda: sensor.call(is_watched), "the watcher")
    vm.call(inject_all, "eth0", FRAMES)
    outer = [frame for frame in watcher.result() if frame[6:12] != MARK and b"\x08\x00" == frame[12:14]]
    outer = [frame for frame in outer if frame[23] in (17, 47)]
    agent.stop()
    collector.stop()
    write_pcap(tmp_path / "outer.pcap", outer)
    field = {"geneve": "geneve.vni", "gre": "gre.key", "erspan": "erspan.spanid"}[scheme]
    keys = tshark(tmp_path / "outer.pcap", "-T", "fields", "-e", field)

    assert {int(one, 0) for one in keys} == {77}
    assert Counter(frame[-len_of_inner(frame, scheme) :] for frame in outer) == Counter(FRAMES)


def hold_port(port: int) -> None:
    """Listen and read nothing, so that nobody is told that the port is closed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("", port))
        time.sleep(60)


def len_of_inner(frame: bytes, scheme: str) -> int:
    """Bytes behind the outer headers."""
    return len(frame) - 34 - {"geneve": 16, "gre": 8, "erspan": 16}[scheme]
