"""Copies of copies: two VMs that tap to each other, a sensor behind the VM's own tunnel, and caps that hold."""

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_send, udp_sink
from tests.lab.governed import LOAD_PORT, count_received, drain, per_second
from tests.lab.rig import Rig, wait_for

DATAGRAMS = 2_000


@pytest.mark.parametrize("url", ["vxlan://{}?vni=7", "erspan://{}?session=7"])
@pytest.mark.parametrize("version", [4, 6])
def test_taps_that_send_to_each_other(rig: Rig, pair: tuple[Host, Host], url: str, version: int) -> None:
    """Each copies what crosses its interface once: no copy of a copy, whatever the tunnel."""
    near, far = pair
    agents = [
        rig.agent(host, "--filter", "udp or proto gre or ip6 proto gre", to=url.format(address), name=name)
        for host, address, name in (
            (near, "10.9.0.1" if version == 4 else "[fd00:9::1]", "near"),
            (far, "10.9.0.2" if version == 4 else "[fd00:9::2]", "far"),
        )
    ]
    near.call(udp_send, "10.9.0.1", 9000, DATAGRAMS, 8_000, 300)
    reports = [agent.stop() for agent in agents]

    assert [report["captured"] for report in reports] == [DATAGRAMS, DATAGRAMS]
    assert [report["delivered"] for report in reports] == [DATAGRAMS, DATAGRAMS]


def test_a_sensor_behind_a_tunnel_of_the_vm(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Where the way to the sensor wraps the copies again, the start is refused with a sentence."""
    vm, _ = pair
    vm.run("ip link add vx type vxlan id 5 dstport 8472 local 10.9.0.2 remote 10.9.0.1".split())
    vm.run("ip address add 10.66.0.2/24 dev vx".split())
    vm.run("ip link set vx up".split())
    agent = rig.agent(vm, to="vxlan://10.66.0.1?vni=7", connected=False)
    agent.ended(5.0, code=2)

    assert "would come back into the capture" in agent.log_text()


def test_a_loop_that_begins_later_is_stopped(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A route that moves into such a tunnel while the agent runs: the detector ends the run within seconds."""
    vm, _ = pair
    vm.run("ip link add vx type vxlan id 5 dstport 8472 local 10.9.0.2 remote 10.9.0.1".split())
    vm.run("ip link set vx up mtu 1500".split())
    vm.run("ip neigh add 10.66.0.1 lladdr 02:00:00:00:00:77 dev vx".split())
    vm.run("ip route add 10.66.0.0/24 via 10.9.0.1 dev eth0".split())
    agent = rig.agent(vm, "--filter", "udp", to="vxlan://10.66.0.1?vni=7")
    vm.run("ip address add 10.66.0.2/32 dev vx".split())
    vm.run("ip route replace 10.66.0.0/24 dev vx".split())
    vm.call(udp_send, "10.9.0.1", 9000, 3_000, 3_000, 900)
    wait_for(lambda: agent.process.poll() is not None, "the detector", 12.0)

    assert agent.process.poll() == 1
    assert "come back into the capture" in agent.log_text()


def test_no_offload_on_the_way_out(rig: Rig, lab: Lab) -> None:
    """Where the device has no offloads at all, copies still go, and status says how."""
    vm, peer = lab.host("vm"), lab.host("peer")
    lab.link(vm, peer, offloads=False)
    holder = peer.start(udp_sink, 4789, None, 30.0)
    peer.wait_for_port(4789)
    agent = rig.agent(vm, "--filter", "udp port 9000", to="vxlan://10.9.0.1?vni=7")
    vm.call(udp_send, "10.9.0.1", 9000, DATAGRAMS, 8_000, 300)
    report = agent.stop()
    holder.terminate()
    (about,) = report["link"]["destinations"]

    assert report["captured"] == report["delivered"] == about["frames"] == DATAGRAMS
    assert about["segmentation"] == "on" or "the kernel refused it" in about["segmentation"]


def test_a_cap_counts_the_outer_headers(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Under a cap of 1 Mbit/s that much crosses the wire in a second of a backlog, with all that is around copies."""
    vm, peer = pair
    cap = 125_000
    vm.run(["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"])  # outer packets are counted as on a wire
    vm.start(drain)
    vm.wait_for_port(LOAD_PORT)
    agent = rig.agent(vm, "--rate", "1mbit", to="vxlan://10.9.0.1?vni=7")
    peer.call(udp_send, "10.9.0.2", LOAD_PORT, 20_000, None, 60)
    found = [rate.bytes for rate in per_second(peer.call(count_received, 1.5))]
    report = agent.stop()

    assert 0.9 * cap <= min(found)
    assert max(found) <= 1.05 * cap
    assert report["captured"] == sum(
        report[key] for key in ("delivered", "capped", "lost_on_link", "dropped_by_ring", "unsupported_gso")
    )
