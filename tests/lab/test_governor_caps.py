"""Caps on what leaves hold on the wire, second by second, and are used; small bursts never starve."""

import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack
from itertools import pairwise

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_payload, udp_send
from tests.lab.rig import Process, Rig, assert_ledger_closes, udp_indexes

PEER, PORT = "10.9.0.3", 9000
SIZE = 500
FRAME_BYTES = SIZE + 42
TRAIN = 10
"""Datagrams of a short flow, sent at once."""
STEADY_AFTER_SECONDS, SECONDS = 2.0, 5
Scene = tuple[Host, Host]


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """(tapped VM, collector), and a peer, on one switch; the collector receives nothing but copies."""
    vm, peer, third = lab.host("vm"), lab.host("peer"), lab.host("collector")
    lab.bridge(third, vm, peer)
    peer.start(hold_port)
    peer.wait_for_port(PORT)
    return vm, third


def hold_port() -> None:
    """Have the datagrams go nowhere, without an error for who sends them, until terminated."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("", PORT))
        threading.Event().wait()


def send_trains(per_second: float, seconds: float, flows: int = 0) -> None:
    """Trains of numbered datagrams, from `flows` sockets in turn, or from a new one each time."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(_connected()) for _ in range(flows)]
        start, sent = time.monotonic(), 0
        while (now := time.monotonic() - start) < seconds:
            if sent > now * per_second:
                time.sleep(0.002)
                continue
            one = sockets[sent // TRAIN % flows] if flows else _connected()
            for index in range(sent, sent + TRAIN):
                one.send(udp_payload(index, SIZE))
            if not flows:
                one.close()
            sent += TRAIN


def _connected() -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect((PEER, PORT))
    return udp


def by_second(host: Host, seconds: int) -> list[tuple[float, int]]:
    """What the host's interface received in each of these seconds: (Mbit, packets)."""
    found, before, due = [], host.counters(), time.monotonic()
    for _ in range(seconds):
        due += 1.0
        time.sleep(max(0.0, due - time.monotonic()))
        now = host.counters()
        found.append(((now.rx_bytes - before.rx_bytes) * 8e-6, now.rx_packets - before.rx_packets))
        before = now
    return found


def capped(rig: Rig, scene: Scene, *flags: str) -> tuple[Process, Process]:
    """(collector, agent) under no other budget."""
    vm, third = scene
    return rig.collect(third), rig.agent(vm, *flags, "--cpu", "100", "--yield", "off", full=False)


@pytest.mark.parametrize(
    "cap, megabits, offered_mbit, flows",
    [("20mbit", 20.0, 200.0, 0), ("20mbit", 20.0, 200.0, 40), ("1mbit", 1.0, 40.0, 40)],
    ids=["20 Mbit/s, short flows", "20 Mbit/s, 40 flows", "1 Mbit/s"],
)
def test_a_rate_is_kept_on_the_wire_and_used(
    rig: Rig, scene: Scene, cap: str, megabits: float, offered_mbit: float, flows: int
) -> None:
    """Under a multiple of the cap each second carries 0.9 to 1.05 of it, headers counted, and the ring never drops."""
    vm, third = scene
    collector, agent = capped(rig, scene, "--rate", cap)
    per_second, seconds = offered_mbit * 1e6 / 8 / FRAME_BYTES, STEADY_AFTER_SECONDS + SECONDS + 0.5
    load = vm.start(send_trains, per_second, seconds, flows)
    time.sleep(STEADY_AFTER_SECONDS)
    rates = [rate for rate, _ in by_second(third, SECONDS)]
    limits = agent.status()["limits"]
    load.result()
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert ledger["dropped_by_ring"] == ledger["lost_on_link"] == 0
    assert all(0.9 * megabits <= rate <= 1.05 * megabits for rate in rates), rates
    assert "the cap is" in limits["reason"]
    if not flows:
        assert trains_are_whole(rig)


def trains_are_whole(rig: Rig) -> bool:
    """Is nearly every short flow that is there at all there with all its packets? A filter swap may part a few."""
    ports = Counter(frame.data[34:36] for frame in rig.frames() if frame.data[36:38] == PORT.to_bytes(2, "big"))
    return sum(count % TRAIN == 0 for count in ports.values()) > 0.95 * len(ports)


def test_a_cap_on_packets_is_kept(rig: Rig, scene: Scene) -> None:
    """`--packets 1000` under 8,000 packets/s: the collector takes 900 to 1,050 records a second."""
    vm, _ = scene
    collector, agent = capped(rig, scene, "--packets", "1000")
    load = vm.start(send_trains, 8000.0, STEADY_AFTER_SECONDS + SECONDS + 0.5, 400)
    time.sleep(STEADY_AFTER_SECONDS)
    taken, at = [], time.monotonic()
    for _ in range(SECONDS + 1):
        taken.append((time.monotonic(), collector.status()["agents"]["vm"]["received"]))
        at += 1.0
        time.sleep(max(0.0, at - time.monotonic()))
    load.result()
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert ledger["dropped_by_ring"] == ledger["lost_on_link"] == 0
    rates = [(count - past) / (now - then) for (then, past), (now, count) in pairwise(taken)]
    assert all(900 <= rate <= 1050 for rate in rates), rates


def test_small_bursts_do_not_starve_under_a_large_cap(rig: Rig, scene: Scene) -> None:
    """2 Mbit/s that come in bursts after idle times pass a cap of 1,000 Mbit/s whole, every one."""
    vm, _ = scene
    collector, agent = capped(rig, scene, "--rate", "1000mbit")
    per_burst, bursts = 250, 8
    for burst in range(bursts):
        vm.call(udp_send, PEER, PORT, per_burst, None, SIZE, first_index=burst * per_burst)
        time.sleep(0.45)
    limits = agent.status()["limits"]
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert not limits["reduced"]
    assert ledger["captured"] == ledger["delivered"]
    assert sorted(udp_indexes(rig.frames(), PORT, SIZE)) == list(range(per_burst * bursts))
