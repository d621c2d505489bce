"""Two tapped hosts that talk: each packet is copied once, and none is missed when one end can't be relied on."""

import signal
import time
from collections import Counter

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_send
from tests.lab.rig import Process, Rig, udp_indexes, wait_for

SIZE = 200
COUNT = 2000
PORTS = {9000: "10.9.0.", 9001: "fd00:9::"}
"""Where datagrams of each family go."""
SECONDS_WITHOUT = 10.0


@pytest.fixture
def tapped(rig: Rig, lab: Lab) -> tuple[Host, Host, Process, Process, Process]:
    """Two hosts with agents of one domain and a collector on a third, all on one switch."""
    one, other, third = lab.host("one"), lab.host("other"), lab.host("third")
    lab.bridge(third, one, other)
    collector = rig.collect(third)
    agents = [
        rig.agent(host, "-c", config_of(rig, name), name=name, full=False) for host, name in ((one, "a"), (other, "b"))
    ]
    for agent in agents:
        wait_for(lambda agent=agent: agent.status()["limits"]["dedupe_peers"] > 0, "a lease")
    return one, other, collector, *agents


def config_of(rig: Rig, name: str) -> str:
    """The config of an agent that takes leases."""
    path = rig.directory / f"{name}.toml"
    path.write_text('dedupe = "vpc-1"\n')
    return str(path)


def talk(one: Host, other: Host) -> None:
    """COUNT numbered datagrams each way, over IPv4, then over IPv6: all at once would be heavy for the budget."""
    for port, network in PORTS.items():
        ways = [
            host.start(udp_send, f"{network}{number}", port, COUNT, 4000, SIZE, first_index=first)
            for host, number, first in ((one, 3, 0), (other, 2, COUNT))
        ]
        for way in ways:
            way.result()


def copies(rig: Rig, port: int) -> Counter[int]:
    """How often each datagram is in the two agents' files together."""
    return Counter(index for name in ("a", "b") for index in udp_indexes(rig.frames(name), port, SIZE))


def test_each_packet_is_copied_once(rig: Rig, tapped: tuple[Host, Host, Process, Process, Process]) -> None:
    """Under leases the sender's agent alone copies a packet."""
    one, other, collector, *agents = tapped
    talk(one, other)
    for agent in agents:
        agent.stop()
    collector.stop()

    for port in PORTS:
        assert copies(rig, port) == dict.fromkeys(range(2 * COUNT), 1)


@pytest.mark.parametrize("fault", ["stopped", "killed", "shedding"])
def test_no_packet_is_missed_when_one_end_fails(
    rig: Rig, tapped: tuple[Host, Host, Process, Process, Process], fault: str
) -> None:
    """Ten seconds after an agent stood still, died or began to shed, its packets are copied by the other."""
    one, other, collector, healthy, failing = tapped
    flood = None
    if fault == "stopped":
        failing.process.send_signal(signal.SIGSTOP)
    elif fault == "killed":
        failing.kill()
    else:
        flood = other.start(udp_send, "10.9.0.1", 9500, 1_500_000, 60_000, 1000)
        wait_for(lambda: failing.status()["limits"]["reduced"], "the agent to shed")
    time.sleep(SECONDS_WITHOUT)
    talk(one, other)
    if fault == "stopped":
        failing.process.send_signal(signal.SIGCONT)
    if flood:
        flood.terminate()
    healthy.stop()
    if fault != "killed":
        failing.stop()
    collector.stop()

    for port in PORTS:
        assert set(udp_indexes(rig.frames("a"), port, SIZE)) == set(range(2 * COUNT))
