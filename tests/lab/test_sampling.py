"""Whole-flow sampling: `--keep` copies a fraction of the flows, each whole and in both directions."""

from collections import Counter

import pytest

from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_send
from guestagent.lab.traffic import fetch_pages, ping, serve_http
from tests.lab.rig import Rig, assert_ledger_closes

FLOWS = 400
DATAGRAMS = 5
KEEP = 0.25
CONNECTIONS = 60


def _send_flows(destination: str, first_port: int) -> None:
    for flow in range(FLOWS):
        udp_send(destination, 9000, DATAGRAMS, None, 64, source_port=first_port + flow)


def _fetch_apart(server: str, connections: int) -> None:
    for _ in range(connections):
        fetch_pages(server, 1, 1000, 8080)


def _udp_ports(rig: Rig, name: str) -> Counter[int]:
    """Datagrams to port 9000 by source port."""
    found: Counter[int] = Counter()
    for frame in rig.frames(name):
        if frame.data[12:14] == b"\x08\x00" and frame.data[23] == 17 and frame.data[36:38] == b"\x23\x28":
            found[int.from_bytes(frame.data[34:36], "big")] += 1
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


def test_two_agents_with_one_seed_keep_the_same_flows(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Agents at both ends of the flows choose the same ones, and both directions of each."""
    vm, peer = pair
    config = rig.directory / "fleet.toml"
    config.write_text(f'seed = 4795\nkeep = {KEEP}\nfilter = "udp port 9000 or tcp port 8080"\n')
    collector = rig.collect(peer)
    here = rig.agent(vm, "-c", str(config), name="here")
    there = rig.agent(peer, "-c", str(config), name="there")
    server = peer.start(serve_http, 8080)
    peer.wait_for_port(8080)
    vm.call(_send_flows, "10.9.0.1", 20_000)
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
