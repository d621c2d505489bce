"""Caps on bytes and packets hold on the wire in every second, and are used; bursts below them lose nothing."""

import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from guestagent.lab.hosts import Lab
from guestagent.lab.packets import udp_send, udp_sink
from guestagent.lab.tasks import Task
from tests.lab.governed import (
    COLLECTOR,
    LOAD_PORT,
    PEER,
    SMALL_BYTES,
    SMALL_FLOWS,
    SMALL_PER_SECOND,
    VM,
    Scene,
    assert_small_flows_are_whole,
    count_received,
    load_frames,
    per_second,
    scene_of,
    send_bursts,
    send_flows,
    send_trains,
)
from tests.lab.rig import Rig, assert_ledger_closes, wait_for

pytestmark = pytest.mark.alone

MBIT = 1e6 / 8
WARM_SECONDS, COUNTED_SECONDS = 2.0, 4.0
TUNNEL_WARM_SECONDS, TINY_BYTES = 4.0, 60
PAYLOAD_BYTES = 1200
OFFERED_PER_SECOND = 200 * MBIT / (PAYLOAD_BYTES + 42)
TRAIN, TRAIN_BYTES = 10, 500
IPERF_PORT, SUPER_SECONDS = 5201, 3
OVER, UNDER = 1.05, 0.9


ELEPHANT, ALIKE, SHORT = "an elephant and 400 small flows", "500 flows alike", "flows of ten packets"


@pytest.mark.parametrize("cap_mbit, shape", [(20, ELEPHANT), (20, ALIKE), (20, SHORT), (1, ELEPHANT), (1, ALIKE)])
def test_a_rate_holds_in_every_second(rig: Rig, lab: Lab, cap_mbit: int, shape: str) -> None:
    """Under 200 Mbit/s nine tenths of the cap at least leave in each second, a twentieth over it at most."""
    scene = scene_of(rig, lab, offloads=False)
    collector, agent = scene.start("--rate", f"{cap_mbit}mbit", "--cpu", "100")
    loads = _start(shape, scene, WARM_SECONDS + COUNTED_SECONDS + 1)
    time.sleep(WARM_SECONDS)
    steady_ns = time.time_ns()
    rates = per_second(scene.collector_host.call(count_received, COUNTED_SECONDS))
    for load in loads:
        load.result()
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    found = [rate.bytes / MBIT for rate in rates]
    assert max(found) <= OVER * cap_mbit
    assert min(found) >= UNDER * cap_mbit
    assert ledger["dropped_by_ring"] == ledger["lost_on_link"] == 0
    if (cap_mbit, shape) == (20, ELEPHANT):
        assert_small_flows_are_whole(rig, steady_ns, COUNTED_SECONDS)
    if (cap_mbit, shape) == (20, ALIKE):
        _assert_kept_flows_are_whole(rig, steady_ns)
    if shape == SHORT:
        _assert_trains_are_whole(rig)


def _start(shape: str, scene: Scene, seconds: float) -> list[Task[Any]]:
    start, packets = scene.peer.start, int(OFFERED_PER_SECOND * seconds)
    if shape == ALIKE:
        return [start(send_flows, VM, 500, OFFERED_PER_SECOND, seconds, PAYLOAD_BYTES)]
    if shape == SHORT:
        return [start(send_trains, VM, TRAIN, 200 * MBIT / (TRAIN_BYTES + 42), seconds, TRAIN_BYTES)]
    return [
        start(udp_send, VM, LOAD_PORT, packets, OFFERED_PER_SECOND, PAYLOAD_BYTES),
        start(send_flows, VM, SMALL_FLOWS, SMALL_PER_SECOND, seconds, SMALL_BYTES),
    ]


def _assert_kept_flows_are_whole(rig: Rig, first_ns: int) -> None:
    """Of flows that are alike most copies are of flows of which each packet is there; probes show the others."""
    last_ns = first_ns + int(COUNTED_SECONDS * 1e9)
    flows = Counter(port for port, _, frame in load_frames(rig, first_ns) if frame.time_ns < last_ns)
    whole = max(flows.values())
    assert sum(count for count in flows.values() if count >= whole - 2) > 0.8 * flows.total()


def _assert_trains_are_whole(rig: Rig) -> None:
    """Of the short flows that are there at all nearly each has all its packets; a filter swap may part a few."""
    trains = Counter(port for port, _, _ in load_frames(rig))
    assert sum(count % TRAIN == 0 for count in trains.values()) > 0.95 * len(trains)


@pytest.mark.parametrize("sensors", [1, 2])
def test_a_rate_holds_through_tunnels(rig: Rig, lab: Lab, sensors: int, tmp_path: Path) -> None:
    """Small frames take less in a tunnel than in the ring, and two sensors twice that: the cap is used, and kept."""
    scene = scene_of(rig, lab)
    scene.vm.run(["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"])  # what leaves is counted as on a wire
    ports = [4789, 4790][:sensors]
    for port in ports:
        scene.collector_host.start(udp_sink, port)
        scene.collector_host.wait_for_port(port)
    to = [f"vxlan://{COLLECTOR}:{port}?vni=7" for port in ports]
    config = tmp_path / "agent.toml"
    config.write_text(f'to = {to}\nmode = "{"replicate" if sensors > 1 else "balance"}"\n')
    flags = ["-c", str(config), "--rate", "10mbit", "--cpu", "100", "--yield", "off"]
    agent = rig.start(scene.vm, "run", "-i", "eth0", *flags, report="vm.json")
    wait_for(lambda: agent.status()["link"]["connected"], "the agent to be connected")
    load = scene.peer.start(send_flows, VM, 500, 20_000, TUNNEL_WARM_SECONDS + COUNTED_SECONDS + 1, TINY_BYTES)
    time.sleep(TUNNEL_WARM_SECONDS)
    rates = per_second(scene.collector_host.call(count_received, COUNTED_SECONDS))
    load.result()
    ledger = agent.stop()

    found = [rate.bytes / MBIT for rate in rates]
    assert max(found) <= OVER * 10
    assert min(found) >= UNDER * 10
    assert ledger["dropped_by_ring"] == ledger["lost_on_link"] == 0


def test_a_cap_on_packets_holds_in_every_second(rig: Rig, lab: Lab) -> None:
    """`--packets 1000` under 20,000 packets/s: 900 to 1,050 records a second reach the collector."""
    scene = scene_of(rig, lab)
    collector, agent = scene.start("--packets", "1000", "--cpu", "100", "--rate", "10gbit")
    seconds = WARM_SECONDS + COUNTED_SECONDS + 1
    load = scene.peer.start(send_flows, VM, 500, 20_000, seconds, SMALL_BYTES)
    time.sleep(WARM_SECONDS)
    found = []
    for _ in range(int(COUNTED_SECONDS)):
        before, at = collector.status()["agents"]["vm"]["received"], time.monotonic()
        time.sleep(1.0)
        found.append((collector.status()["agents"]["vm"]["received"] - before) / (time.monotonic() - at))
    load.result()
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert max(found) <= OVER * 1000
    assert min(found) >= UNDER * 1000
    assert ledger["dropped_by_ring"] == 0


def test_a_cap_on_packets_holds_on_the_wire(rig: Rig, lab: Lab) -> None:
    """Of super-packets of 200 Mbit/s, a few hundred records a second, no second carries more packets than the cap."""
    scene = scene_of(rig, lab)
    scene.vm.run(["ethtool", "-K", "eth0", "tso", "off", "gso", "off"])  # what leaves is counted as on a wire
    collector, agent = scene.start("--packets", "1000", "--cpu", "100", "--rate", "10gbit")
    scene.peer.popen(["iperf3", "-s"], stdout=subprocess.DEVNULL)
    scene.peer.wait_for_port(IPERF_PORT)
    counts = scene.collector_host.start(count_received, SUPER_SECONDS)
    scene.vm.run(["iperf3", "-c", PEER, "-R", "-b", "200M", "-t", str(SUPER_SECONDS)])
    found = [rate.packets for rate in per_second(counts.result())]
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert max(found) <= OVER * 1000
    assert ledger["captured"] > 100
    assert ledger["dropped_by_ring"] == 0


@pytest.mark.parametrize("way", ["in", "out"])
def test_bursts_below_the_cap_lose_nothing(rig: Rig, lab: Lab, way: str) -> None:
    """Bursts of 2 Mbit/s in the mean, after silence, under a cap of 1000 Mbit/s: all of them are whole."""
    scene = scene_of(rig, lab)
    collector, agent = scene.start("--rate", "1000mbit")
    sender, address = (scene.peer, VM) if way == "in" else (scene.vm, PEER)
    sent = sender.call(send_bursts, address, 1.0, 208, 2.0, PAYLOAD_BYTES)
    time.sleep(0.3)
    status = agent.status()
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert not status["limits"]["reduced"]
    assert ledger["capped"] == ledger["dropped_by_ring"] == 0
    frames = [(index, len(frame.data) == frame.original_bytes) for _, index, frame in load_frames(rig)]
    assert sorted(frames) == [(index, True) for index in range(sent)]
