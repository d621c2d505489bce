"""A slow collector and a busy neighbour are pressure: the tap steps back in time, never blind, and comes back."""

import os
import time

import pytest

from guestagent.lab.hosts import Lab
from guestagent.lab.packets import udp_send
from tests.lab.governed import VM, load_frames, scene_of, seconds_until, watch
from tests.lab.rig import Rig, assert_ledger_closes

pytestmark = pytest.mark.alone

COLLECTOR_MBIT = 100
OFFERED_PER_SECOND, PAYLOAD_BYTES = 80_000, 1400
SECONDS, SETTLED_SECONDS = 7.0, 2.0
SPINNERS_PER_CORE = 2
YIELD_SECONDS, BACK_SECONDS, GATE = 1.0, 10.0, 1.3


def test_a_slow_collector_costs_no_ring_drops(rig: Rig, lab: Lab) -> None:
    """Where 100 Mbit/s lead to the collector and about 900 are to be copied, nothing is dropped after two seconds."""
    scene = scene_of(rig, lab)
    shaper = ["tbf", "rate", f"{COLLECTOR_MBIT}mbit", "burst", "64kb", "latency", "50ms"]
    # The switch's port towards the collector: the tap shall not see its own shaping.
    scene.switch.run(["tc", "qdisc", "add", "dev", "port1", "root", *shaper])
    collector, agent = scene.start("--cpu", "100", "--rate", "10gbit")
    load = scene.peer.start(udp_send, VM, 9000, int(OFFERED_PER_SECOND * SECONDS), OFFERED_PER_SECOND, PAYLOAD_BYTES)
    time.sleep(SETTLED_SECONDS)
    early = agent.status()["dropped_by_ring"]
    found = watch(agent, lambda: load.poll() is not None)
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert any("collector takes less" in one.limits["reason"] for one in found)
    assert ledger["dropped_by_ring"] == early


def spin() -> None:
    """Burn a core until terminated."""
    while True:
        pass


def test_a_busy_neighbour_is_given_way(rig: Rig, lab: Lab) -> None:
    """Under burnt CPU the tap yields within a second but keeps headers, and is whole ten seconds after the end."""
    scene = scene_of(rig, lab)
    collector, agent = scene.start("--cpu", "5", yields=True)
    load = scene.peer.start(udp_send, VM, 9000, 30_000 * 30, 30_000, 200)
    time.sleep(2.0)
    is_whole = not agent.status()["limits"]["reduced"]
    spinners = [scene.vm.start(spin) for _ in range(SPINNERS_PER_CORE * (os.cpu_count() or 1))]
    yielded = seconds_until(agent, whole=False, timeout=5.0)
    pressed_ns = time.time_ns()
    time.sleep(2.0)
    limits = agent.status()["limits"]
    for spinner in spinners:
        spinner.terminate()
    for spinner in spinners:
        spinner.wait()
    calm_ns = time.time_ns()
    back = seconds_until(agent, whole=True, timeout=BACK_SECONDS + 5)
    load.terminate()
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert is_whole
    assert yielded <= GATE * YIELD_SECONDS
    assert back <= BACK_SECONDS
    assert limits["sample"] == 1
    assert not limits["paused"]
    seen = [frame for _, _, frame in load_frames(rig, pressed_ns) if frame.time_ns < calm_ns]
    assert seen
