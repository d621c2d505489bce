"""Whole-flow sampling: `--keep` copies a fraction of the flows, each whole and in both directions."""

import random
from collections import Counter

import pytest

from guestagent.lab.hosts import Host
from guestagent.lab.packets import inject, udp_send
from guestagent.lab.traffic import fetch_pages, ping, serve_http
from tests.frames import IPV4, IPV6, TCP, UDP, ethernet, ipv4, ipv6, tcp, udp
from tests.lab.rig import Rig, assert_ledger_closes

FLOWS = 400
DATAGRAMS = 5
KEEP = 0.25
SEED = 4795
CONNECTIONS = 60
MANY_FLOWS = 4000
NETWORKS = {4: "10.77.{}.{}", 6: "fd77::{:x}:{:x}"}
"""One /16, and one subnet."""


def _send_flows(destination: str, first_port: int) -> None:
    for flow in range(FLOWS):
        udp_send(destination, 9000, DATAGRAMS, None, 64, source_port=first_port + flow)


def _frames_of_flows(version: int) -> dict[bytes, bytes]:
    """Of many flows inside one network, TCP and UDP in turn, a frame each way: request to answer."""
    rng, found = random.Random(version), {}
    for number in range(MANY_FLOWS):
        here, there = (NETWORKS[version].format(*rng.sample(range(1, 255), 2)) for _ in "12")
        ports = rng.randrange(32768, 61000), rng.choice([53, 443, 8080])
        found[_frame(version, number, here, there, ports)] = _frame(version, number, there, here, ports[::-1])
    return found


def _frame(version: int, number: int, source: str, destination: str, ports: tuple[int, ...]) -> bytes:
    transport, make = ((TCP, tcp), (UDP, udp))[number % 2]
    upper = make(number.to_bytes(4, "big"), source=ports[0], destination=ports[1])
    ethertype, network = (IPV4, ipv4) if version == 4 else (IPV6, ipv6)
    return ethernet(ethertype, network(transport, upper, source=source, destination=destination))


def _fetch_apart(server: str, connections: int) -> None:
    for _ in range(connections):
        fetch_pages(server, 1, 1000, 8080)


def _udp_ports(rig: Rig, name: str) -> Counter[int]:
    """Datagrams to port 9000 by source port."""
    found: Counter[int] = Counter()
    for frame in rig.frames(name):
        ethertype, at = frame.data[12:14], 34 if frame.data[12:14] == b"\x08\x00" else 54
        is_udp = (ethertype, frame.data[23]) == (b"\x08\x00", 17) or (ethertype, frame.data[20]) == (b"\x86\xdd", 17)
        if is_udp and frame.data[at + 2 : at + 4] == b"\x23\x28":
            found[int.from_bytes(frame.data[at : at + 2], "big")] += 1
    return found


def test_a_fraction_of_the_flows_is_kept_whole(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A quarter of 400 flows is copied, each with all its datagrams; pings and ARP always; the limit is told."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm, "--keep", str(KEEP))
    vm.call(_send_flows, "10.9.0.1", 20_000)
    vm.call(ping, "10.9.0.1", 3)
    limits = agent.status()["limits"]
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert limits["keep"] == KEEP
    kept = _udp_ports(rig, "vm")
    assert set(kept.values()) == {DATAGRAMS}
    # 5 standard deviations of the binomial: 400 flows at 0.25.
    assert FLOWS * KEEP - 44 < len(kept) < FLOWS * KEEP + 44


@pytest.mark.parametrize("version", [4, 6])
def test_a_quarter_of_any_flows_is_kept(rig: Rig, pair: tuple[Host, Host], version: int) -> None:
    """Of 4,000 flows inside one network a quarter is kept, give or take a tenth of it; of each both ways, or none."""
    vm, peer = pair
    config = rig.directory / "run.toml"
    config.write_text(f"seed = {SEED}\nkeep = {KEEP}\n")
    flows = _frames_of_flows(version)
    collector, agent = rig.collect(peer), rig.agent(vm, "-c", str(config))
    vm.call(inject, "eth0", list(flows), 20_000)
    peer.call(inject, "eth0", list(flows.values()), 20_000)
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    copies = Counter(frame.data for frame in rig.frames())
    requests = {frame for frame in flows if copies[frame] == 1}
    assert requests == {frame for frame, answer in flows.items() if copies[answer] == 1}
    assert len(requests) == pytest.approx(KEEP * len(flows), rel=0.1)


def test_two_agents_with_one_seed_keep_the_same_flows(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Agents at both ends of the flows choose the same ones, and both directions of each."""
    vm, peer = pair
    config = rig.directory / "fleet.toml"
    config.write_text(f'seed = {SEED}\nkeep = {KEEP}\nfilter = "udp port 9000 or tcp port 8080"\n')
    collector = rig.collect(peer)
    here = rig.agent(vm, "-c", str(config), name="here")
    there = rig.agent(peer, "-c", str(config), name="there")
    server = peer.start(serve_http, 8080)
    peer.wait_for_port(8080)
    vm.call(_send_flows, "10.9.0.1", 20_000)
    vm.call(_send_flows, "fd00:9::1", 30_000)
    vm.call(_fetch_apart, "10.9.0.1", CONNECTIONS)
    for agent in (here, there):
        agent.stop()
    server.terminate()
    collector.stop()

    assert _udp_ports(rig, "here") == _udp_ports(rig, "there") != Counter()
    connections: dict[str, dict[int, set[str]]] = {"here": {}, "there": {}}
    for name, found in connections.items():
        for frame in rig.frames(name):
            if frame.data[12:14] == b"\x08\x00" and frame.data[23] == 6:
                ports = [int.from_bytes(frame.data[at : at + 2], "big") for at in (34, 36)]
                client = next(port for port in ports if port != 8080)
                found.setdefault(client, set()).add("request" if ports[1] == 8080 else "answer")
    assert connections["here"] == connections["there"]
    assert 0 < len(connections["here"]) < CONNECTIONS
    assert all(directions == {"request", "answer"} for directions in connections["here"].values())


@pytest.mark.parametrize("keep", ["0", "1.5", "-1"])
def test_a_fraction_out_of_range_is_refused(rig: Rig, pair: tuple[Host, Host], keep: str) -> None:
    """`--keep` outside of 0 to 1: exit 2, and the flag is named."""
    agent = rig.start(pair[0], "run", f"--keep={keep}")
    agent.ended(code=2)
    assert "--keep" in agent.log_text()
