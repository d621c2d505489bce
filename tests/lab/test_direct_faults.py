"""What goes wrong behind a one-way tunnel is counted and told within 5 s, and harms nobody."""

import time
from pathlib import Path

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_send, udp_sink
from guestagent.lab.traffic import send_bulk, serve_bulk
from tests.lab.rig import Process, Rig, wait_for
from tests.lab.wire import fragments, is_watched, seen_frames

PORT = 5201


def destinations(agent: Process) -> list[dict]:
    """The sensors as status shows them."""
    return agent.status()["link"]["destinations"]


def trouble(agent: Process) -> str:
    """What is wrong with the first sensor."""
    return destinations(agent)[0]["trouble"]


@pytest.fixture
def routed(lab: Lab) -> tuple[Host, Host, Host, Host]:
    """VM (10.9.0.2), peer (10.9.0.1), and behind a router (10.8.0.2 here, 10.7.0.2 there) a sensor, 10.7.0.1."""
    vm, peer, router, sensor = (lab.host(name) for name in ("vm", "peer", "router", "sensor"))
    lab.link(vm, peer, mtu=1400)  # its frames fit into a tunnel to the sensor at first
    lab.link(vm, router, "eth1", "near", a_addresses=("10.8.0.1/24",), b_addresses=("10.8.0.2/24",))
    lab.link(router, sensor, "far", "eth0", a_addresses=("10.7.0.2/24",), b_addresses=("10.7.0.1/24",))
    router.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    vm.run(["ip", "route", "add", "10.7.0.0/24", "via", "10.8.0.2"])
    sensor.run(["ip", "route", "add", "10.8.0.0/24", "via", "10.7.0.2"])
    return vm, peer, router, sensor


def segment_bytes(host: Host) -> set[str]:
    """MSS and path MTU of the connections to PORT, as ss has them."""
    words = host.run(["ss", "-tinH", "dport", "=", f":{PORT}"]).stdout.split()
    return {word for word in words if word.startswith(("mss:", "pmtu:"))}


@pytest.mark.parametrize("policy", ["split", "truncate", "drop"])
def test_a_path_that_becomes_narrower(
    rig: Rig, routed: tuple[Host, Host, Host, Host], policy: str, tmp_path: Path
) -> None:
    """Copies go on in frames that fit, by the policy and counted; production keeps its segments; no fragments."""
    vm, peer, router, sensor = routed
    config = tmp_path / "agent.toml"
    config.write_text(f"oversize = '{policy}'\n")
    agent = rig.agent(vm, "-c", str(config), "--filter", f"tcp port {PORT}", to="vxlan://10.7.0.1?vni=7")
    server = peer.start(serve_bulk, PORT)
    peer.wait_for_port(PORT)
    sink = sensor.start(udp_sink, 4789, None, 30.0)
    sensor.wait_for_port(4789)
    vm.call(send_bulk, "10.9.0.1", 2_000_000, PORT)
    before = wait_for(lambda: destinations(agent)[0]["frames"] and destinations(agent)[0], "the first copies")
    router.run(["ip", "link", "set", "far", "mtu", "1300"])
    vm.call(send_bulk, "10.9.0.1", 2_000_000, PORT)
    wait_for(lambda: destinations(agent)[0]["room_bytes"] == 1264, "the room to follow the path")
    sender = vm.start(send_bulk, "10.9.0.1", 60_000_000, PORT)
    segments = wait_for(lambda: segment_bytes(vm), "the connection")
    sender.result()
    watcher = sensor.start(seen_frames, "eth0", 0.8)
    wait_for(lambda: sensor.call(is_watched), "the watcher")
    vm.call(send_bulk, "10.9.0.1", 2_000_000, PORT)
    frames, report = watcher.result(), agent.stop()
    server.terminate()
    sink.terminate()
    (about,) = report["link"]["destinations"]

    assert before["room_bytes"] == 1464
    assert segments == {"mss:1348", "pmtu:1400"}
    assert len(frames) > 100
    counter = {"split": "split", "truncate": "truncated", "drop": "dropped"}[policy]
    assert about[counter] > before[counter]
    assert about["path_mtu_changes"] >= 1
    assert report["captured"] == report["delivered"] + report["lost_on_link"] + report["dropped_by_ring"]
    if policy == "drop":
        assert about["lost_frames"]["oversize"] > 0
    assert vm.call(fragments) == router.call(fragments) == sensor.call(fragments) == 0


def test_a_port_that_nobody_listens_on(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A refusing sensor is told of; its copies arrived and are no loss."""
    vm, peer = pair
    sink = peer.start(udp_sink, 9000, None, 30.0)  # or its refusals would use up the ICMP messages of a second
    peer.wait_for_port(9000)
    agent = rig.agent(vm, to="vxlan://10.9.0.1?vni=7")
    vm.call(udp_send, "10.9.0.1", 9000, 2000, 2000, 200)
    wait_for(lambda: "connection refused" in trouble(agent), "the refusal", 5.0)
    report = agent.stop()
    sink.terminate()

    assert report["link"]["destinations"][0]["faults"]["connection_refused"] > 0
    assert report["captured"] == report["delivered"] > 2000
    assert report["lost_on_link"] == 0


def test_a_host_that_does_not_answer(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Neighbour failure is told within 5 s, what goes there is lost and counted; memory and production stay."""
    vm, peer = pair
    agent = rig.agent(vm, to="vxlan://10.9.0.77?vni=7")
    sink = peer.start(udp_sink, 9000, None, 2.0)
    peer.wait_for_port(9000)
    before = agent.memory_bytes()
    sender = vm.start(udp_send, "10.9.0.1", 9000, 80_000, 20_000, 500)
    wait_for(lambda: "no route to host" in trouble(agent), "the neighbour to fail", 5.0)
    sent = sender.result(20)
    grown = agent.memory_bytes() - before
    report = agent.stop()

    assert sink.result().distinct == sent.packets == 80_000
    assert report["lost_on_link"] > 10_000
    assert report["captured"] == report["delivered"] + report["lost_on_link"] + report["dropped_by_ring"]
    assert grown < 70_000_000  # the ring, as it is touched, and a little


@pytest.mark.parametrize("loss", ["del", "replace blackhole"])
def test_a_route_that_goes_and_comes(rig: Rig, routed: tuple[Host, Host, Host, Host], loss: str) -> None:
    """Without a route copies are lost by that name; with it they flow again, without a restart."""
    vm, _, _, sensor = routed
    sink = sensor.start(udp_sink, 4789, None, 30.0)
    sensor.wait_for_port(4789)
    agent = rig.agent(vm, to="vxlan://10.7.0.1?vni=7")
    vm.run(["ip", "route", *loss.split(), "10.7.0.0/24"])
    vm.call(udp_send, "10.9.0.1", 9000, 200, 400, 200)
    wait_for(lambda: trouble(agent), "the route to be missed", 5.0)
    vm.run(["ip", "route", "replace", "10.7.0.0/24", "via", "10.8.0.2"])
    wait_for(lambda: destinations(agent)[0]["well"], "the route to be back")
    vm.call(udp_send, "10.9.0.1", 9000, 500, 2000, 200)
    report = agent.stop()
    sink.terminate()

    assert 0 < report["lost_on_link"] < report["captured"]
    assert report["delivered"] >= 500
    assert report["captured"] == report["delivered"] + report["lost_on_link"]
    reason = {"del": "network_is_unreachable", "replace blackhole": "invalid_argument"}[loss]
    assert report["link"]["destinations"][0]["lost_frames"][reason] > 0


def test_our_own_address_that_changes(rig: Rig, routed: tuple[Host, Host, Host, Host]) -> None:
    """The address from which copies leave is taken away for another: they go on from that, without a restart."""
    vm, _, _, sensor = routed
    sink = sensor.start(udp_sink, 4789, None, 30.0)
    sensor.wait_for_port(4789)
    agent = rig.agent(vm, to="vxlan://10.7.0.1?vni=7")
    vm.call(udp_send, "10.9.0.1", 9000, 200, 400, 200)
    for words in (["del", "10.8.0.1/24"], ["add", "10.8.0.7/24"]):
        vm.run(["ip", "address", *words, "dev", "eth1"])
    vm.run(["ip", "route", "replace", "10.7.0.0/24", "via", "10.8.0.2"])
    vm.call(udp_send, "10.9.0.1", 9000, 200, 400, 200)
    wait_for(lambda: "seen from 10.8.0.7" in agent.log_text(), "the new address", 10.0)
    wait_for(lambda: destinations(agent)[0]["well"], "the way to be well")
    before = agent.status()["delivered"]
    vm.call(udp_send, "10.9.0.1", 9000, 500, 2000, 200)
    report = agent.stop()
    sink.terminate()

    assert report["delivered"] - before >= 500
    assert report["captured"] == report["delivered"] + report["lost_on_link"]


def test_a_companion_port_tells(rig: Rig, pair: tuple[Host, Host]) -> None:
    """With check=PORT a sensor is gone when that port no longer accepts connections; what goes there is lost."""
    vm, peer = pair
    server = peer.start(serve_bulk, 8088)
    peer.wait_for_port(8088)
    agent = rig.agent(vm, to="vxlan://10.9.0.1?vni=7&check=8088")
    time.sleep(1.2)
    assert destinations(agent)[0]["well"]
    server.terminate()
    server.wait()
    wait_for(lambda: "TCP port 8088" in trouble(agent), "the closed port to be told", 5.0)
    vm.call(udp_send, "10.9.0.1", 9000, 100, 1000, 200)
    report = agent.stop()

    assert report["lost_on_link"] >= 100
    assert report["captured"] == report["delivered"] + report["lost_on_link"]


def _flows(first_port: int) -> None:
    for flow in range(60):
        udp_send("10.9.0.1", 9000, 4, None, 100, source_port=first_port + flow)


@pytest.mark.parametrize("mode", ["balance", "replicate"])
def test_several_sensors(rig: Rig, routed: tuple[Host, Host, Host, Host], mode: str, tmp_path: Path) -> None:
    """Balanced, each flow goes to one sensor, whole, and to another when that one is gone; replicated, to all."""
    vm, peer, _, sensor = routed
    for ifname in ("eth0", "eth1"):  # outer packets are seen as on a wire
        vm.run(["ethtool", "-K", ifname, "tx-udp-segmentation", "off"])
    config = tmp_path / "agent.toml"
    config.write_text(f'mode = "{mode}"\nto = ["vxlan://10.9.0.1?vni=7", "vxlan://10.7.0.1?vni=8"]\n')
    sinks = {host: host.start(seen_frames, "eth0", 1.0, b"\x12\xb5") for host in (peer, sensor)}
    holders = [host.start(udp_sink, port, None, 30.0) for host, port in ((peer, 4789), (sensor, 4789), (peer, 9000))]
    for host, port in ((peer, 4789), (sensor, 4789), (peer, 9000)):
        host.wait_for_port(port)
    agent = rig.start(
        vm, "run", "-i", "eth0", "--full", "-c", str(config), "--filter", "udp port 9000", report="vm.json"
    )
    wait_for(lambda: agent.status()["link"]["connected"], "the agent to be connected")
    vm.call(_flows, 20_000)
    seen = {host: [frame for frame in sinks[host].result() if frame[36:38] == b"\x12\xb5"] for host in sinks}
    holders[0].terminate()
    holders[0].wait()
    vm.call(_flows, 30_000)
    wait_for(lambda: "refused" in trouble(agent), "the refusal", 5.0)
    before = destinations(agent)
    vm.call(_flows, 40_000)
    time.sleep(0.3)
    report = agent.stop()
    for holder in holders[1:]:
        holder.terminate()
    after = report["link"]["destinations"]

    flows = {host: {frame[84:86] for frame in frames} for host, frames in seen.items()}
    if mode == "balance":
        assert not flows[peer] & flows[sensor]
        assert len(flows[peer] | flows[sensor]) == 60
        assert min(len(flows[peer]), len(flows[sensor])) > 10
        assert after[0]["frames"] == before[0]["frames"]
        assert after[1]["frames"] == before[1]["frames"] + 240
    else:
        assert flows[peer] == flows[sensor]
        assert after[1]["frames"] == 3 * 240
    assert report["captured"] == report["delivered"] == 3 * 240
