"""What survives: collectors and agents that die, stop and come back, at any moment."""

import random
import signal
import time

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_send, udp_sink
from tests.lab.rig import Rig, assert_ledger_closes, udp_copies, udp_indexes, wait_for

PACE = 5000
PAYLOAD_BYTES = 258
"""300 bytes with Ethernet, IPv4 and UDP headers."""
RANDOM_KILLS = 20


def test_a_killed_collector_costs_nothing(rig: Rig, pair: tuple[Host, Host]) -> None:
    """kill -9 of the collector at 5,000 packets/s and 3 s without one: nothing missing, nothing twice."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm)
    count = 8 * PACE
    sender = vm.start(udp_send, "10.9.0.1", 9000, count, PACE, PAYLOAD_BYTES)
    time.sleep(2)
    collector.kill()
    time.sleep(3)
    collector = rig.collect(peer)
    sender.result(30)
    ledger, report = agent.stop(), collector.stop()

    assert ledger["dropped_by_ring"] == ledger["lost_on_link"] == ledger["in_flight"] == 0
    assert ledger["captured"] == ledger["delivered"]
    assert report["agents"]["vm"]["gaps"] == 0
    assert sorted(udp_indexes(rig.frames(), 9000, PAYLOAD_BYTES)) == list(range(count))
    assert len(rig.files()) == 1, "the run went on in the file of the killed collector"


def test_twenty_kills_at_random_moments_cost_nothing(rig: Rig, pair: tuple[Host, Host]) -> None:
    """20 times kill -9 within writes, handshakes and acknowledgements: nothing missing, nothing twice."""
    vm, peer = pair
    moments = random.Random(4795)
    collector, agent = rig.collect(peer), rig.agent(vm)
    count = 25 * PACE
    sender = vm.start(udp_send, "10.9.0.1", 9000, count, PACE, PAYLOAD_BYTES)
    for _ in range(RANDOM_KILLS):
        time.sleep(moments.uniform(0.05, 0.8))
        collector.kill()
        collector = rig.collect(peer)
    sender.result(60)
    wait_for(lambda: agent.status()["link"]["connected"], "the agent to be back", 10)
    ledger = agent.stop()
    collector.stop()

    assert ledger["dropped_by_ring"] == ledger["lost_on_link"] == ledger["in_flight"] == 0
    assert sorted(udp_indexes(rig.frames(), 9000, PAYLOAD_BYTES)) == list(range(count))


def test_an_unacknowledged_block_costs_no_cpu(rig: Rig, pair: tuple[Host, Host]) -> None:
    """With one block that nobody acknowledges on an idle link, the agent stays under 1 % of a core."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm)
    collector.process.send_signal(signal.SIGSTOP)
    vm.call(udp_send, "10.9.0.1", 9000, 10, 1000, 100)
    time.sleep(1)
    assert agent.status()["in_flight"] > 0
    before, start = agent.cpu_seconds(), time.monotonic()
    time.sleep(6)
    share = (agent.cpu_seconds() - before) / (time.monotonic() - start)
    collector.process.send_signal(signal.SIGCONT)
    wait_for(lambda: agent.status()["in_flight"] == 0, "the block to be acknowledged", 10)
    agent.stop()
    collector.stop()
    assert share < 0.01


def test_a_stopped_collector_leaves_memory_and_application_alone(rig: Rig, pair: tuple[Host, Host]) -> None:
    """SIGSTOP of the collector under load: memory fixed, drops counted, the application served, then whole again."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm, "--ring", "8MiB")
    sink = peer.start(udp_sink, 9000, idle_seconds=3.0)
    peer.wait_for_port(9000)
    vm.call(udp_send, "10.9.0.1", 9000, 1000, PACE, 1000)
    before = agent.memory_bytes()
    collector.process.send_signal(signal.SIGSTOP)
    count = 34 * PACE
    sender = vm.start(udp_send, "10.9.0.1", 9000, count, PACE, 1000, first_index=1000)
    time.sleep(30)
    during = agent.memory_bytes()
    assert agent.status()["dropped_by_ring"] > 0
    collector.process.send_signal(signal.SIGCONT)
    sender.result(30)
    received = sink.result(60)
    wait_for(lambda: not agent.status()["limits"]["reduced"], "full copies again", 10)
    vm.call(udp_send, "10.9.0.1", 9000, 500, PACE, 1000, first_index=1000 + count)
    ledger, report = agent.stop(), collector.stop()

    assert during - before < 4_000_000
    assert (1000 + count, 0) == (received.distinct, received.corrupt)
    assert_ledger_closes(ledger, report)
    indexes, cut = udp_copies(rig.frames(), 9000, 1000)
    assert len(indexes) == len(set(indexes))
    assert len(cut) == len({frame.time_ns for frame in cut}), "no copy that was cut is there twice"
    assert indexes[:1000] == list(range(1000)), "whole before the pressure"
    assert indexes[-500:] == list(range(1000 + count, 1500 + count)), "recovered alone"


def test_a_killed_agent_leaves_a_bounded_gap(rig: Rig, pair: tuple[Host, Host]) -> None:
    """kill -9 of the agent: the collector names the gap's bounds, nothing is twice, the next run is recorded."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm)
    sender = vm.start(udp_send, "10.9.0.1", 9000, 4 * PACE, PACE, PAYLOAD_BYTES)
    time.sleep(1.5)
    killed_ns = time.time_ns()
    agent.kill()
    time.sleep(1)
    agent = rig.agent(vm)
    back_ns = time.time_ns()
    sender.result(30)
    ledger, report = agent.stop(), collector.stop()

    (end,) = report["agents"]["vm"]["unclean_ends"]
    assert killed_ns - 1_000_000_000 < end["last_held_ns"] <= killed_ns + 50_000_000
    assert killed_ns < end["until_ns"] < back_ns
    indexes = udp_indexes(rig.frames(), 9000, PAYLOAD_BYTES)
    assert len(indexes) == len(set(indexes))
    assert indexes[-1] == 4 * PACE - 1
    assert ledger["captured"] == ledger["delivered"]
    assert len(rig.files()) == 2


@pytest.mark.parametrize("with_collector", [True, False])
def test_sigterm_drains_and_ends_within_two_seconds(rig: Rig, pair: tuple[Host, Host], with_collector: bool) -> None:
    """SIGTERM under load: drained, reported, exit 0 within 2 s; without a collector the loss is named."""
    vm, peer = pair
    collector = rig.collect(peer) if with_collector else None
    agent = rig.agent(vm, connected=with_collector)
    wait_for(lambda: agent.status()["captured"] is not None, "the agent to run")
    sender = vm.start(udp_send, "10.9.0.1", 9000, 3 * PACE, PACE, PAYLOAD_BYTES)
    time.sleep(1.5)
    start = time.monotonic()
    ledger = agent.stop(2.0)
    assert time.monotonic() - start < 2.0
    sender.terminate()
    if collector:
        assert_ledger_closes(ledger, collector.stop())
        assert ledger["lost_on_link"] == 0
    else:
        assert ledger["lost_on_link"] == ledger["captured"] > PACE


def test_two_agents_and_three_interfaces_stay_apart(rig: Rig, lab: Lab) -> None:
    """Two agents, three interfaces, one collector: separate files and ledgers, each complete."""
    one, two, peer = lab.host("one"), lab.host("two"), lab.host("peer")
    lab.bridge(peer, one, two)
    lab.link(one, peer, "eth1", "side", a_addresses=("10.8.0.2/24",), b_addresses=("10.8.0.1/24",))
    collector = rig.collect(peer)
    first = rig.agent(one, "-i", "eth*", name="one")
    second = rig.agent(two, name="two")
    sends = [
        one.start(udp_send, "10.9.0.1", 9000, 10_000, PACE, 200),
        one.start(udp_send, "10.8.0.1", 9001, 10_000, PACE, 200),
        two.start(udp_send, "10.9.0.1", 9002, 10_000, PACE, 200),
    ]
    for send in sends:
        send.result(30)
    ledgers = {"one": first.stop(), "two": second.stop()}
    report = collector.stop()

    assert {"eth0", "eth1"} == set(ledgers["one"]["interfaces"])
    for name, ports in {"one": (9000, 9001), "two": (9002,)}.items():
        assert_ledger_closes(ledgers[name], report, name)
        for port in ports:
            assert sorted(udp_indexes(rig.frames(name), port, 200)) == list(range(10_000))
    assert not udp_indexes(rig.frames("two"), 9001, 200)
    times = [frame.time_ns for frame in rig.frames("one")]
    late = max((high - now for high, now in zip(_running_maximum(times), times, strict=True)), default=0)
    assert late <= 2 * 100_000_000, "blocks of two interfaces are merged within two retire times"


def _running_maximum(values: list[int]) -> list[int]:
    highest, result = 0, []
    for value in values:
        highest = max(highest, value)
        result.append(highest)
    return result


def test_a_flooding_agent_does_not_starve_another(rig: Rig, lab: Lab) -> None:
    """While one agent floods the collector, a quiet one's packets are safe within a second."""
    one, two, peer = lab.host("one"), lab.host("two"), lab.host("peer")
    lab.bridge(peer, one, two)
    collector = rig.collect(peer)
    flooding, quiet = rig.agent(one, name="one"), rig.agent(two, name="two")
    flood = one.start(udp_send, "10.9.0.1", 9000, 2_000_000, None, 1400)
    worst = 0.0
    for at in range(5):
        before = quiet.status()["delivered"]
        two.call(udp_send, "10.9.0.1", 9001, 100, 1000, 200, first_index=100 * at)
        start = time.monotonic()
        wait_for(lambda before=before: quiet.status()["delivered"] >= before + 100, "the quiet agent's packets")
        worst = max(worst, time.monotonic() - start)
    flood.terminate()
    assert_ledger_closes(quiet.stop(), {"agents": {"two": collector.status()["agents"]["two"]}}, "two")
    flooding.stop()
    collector.stop(10.0)
    assert worst < 1.5
