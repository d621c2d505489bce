"""Both engines under a whole agent: same files, same ledger, also over an outage of the collector."""

import pytest

from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_send
from tests.lab.rig import Rig, assert_ledger_closes, udp_indexes, wait_for

PACE = 10_000
ENGINES = ["ring", "portable"]


@pytest.mark.parametrize("engine", ENGINES)
def test_both_directions_are_written_once(rig: Rig, pair: tuple[Host, Host], engine: str) -> None:
    """Datagrams of both directions are in the file once each, and the report names the engine and its reason."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm, "--engine", engine)
    vm.call(udp_send, "10.9.0.1", 9000, 20_000, PACE, 300)
    peer.call(udp_send, "10.9.0.2", 9000, 20_000, PACE, 300, first_index=20_000)
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert engine == ledger["engine"]
    assert sorted(udp_indexes(rig.frames(), 9000, 300)) == list(range(40_000))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_outage_of_the_collector_costs_nothing(rig: Rig, pair: tuple[Host, Host], engine: str) -> None:
    """What comes while the collector is away waits in the ring, or in what the portable engine has for one."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm, "--engine", engine)
    collector.stop()
    vm.call(udp_send, "10.9.0.1", 9000, 20_000, PACE, 300)
    collector = rig.collect(peer)
    wait_for(lambda: agent.status()["link"]["connected"], "the agent to be back")
    ledger = agent.stop(3.0)
    report = collector.stop()

    assert ledger["dropped_by_ring"] == ledger["lost_on_link"] == 0
    assert ledger["captured"] == ledger["delivered"]
    assert report["agents"]["vm"]["gaps"] == 0
    assert sorted(udp_indexes(rig.frames(), 9000, 300)) == list(range(20_000))
