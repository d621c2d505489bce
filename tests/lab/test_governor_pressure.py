"""A slow collector and a busy neighbour are pressure: the tap steps back in time, never blind, and comes back."""

import os
import time
from contextlib import closing

import pytest

from guestagent.governor.meter import Meter
from guestagent.governor.pace import TICK_SECONDS
from guestagent.governor.pressure import Yielding
from guestagent.lab.hosts import Lab
from guestagent.lab.packets import udp_send
from tests.lab.governed import (
    LOAD_PORT,
    PEER,
    SMALL_BYTES,
    SMALL_FLOWS,
    SMALL_PER_SECOND,
    VM,
    assert_small_flows_are_whole,
    load_frames,
    scene_of,
    seconds_until,
    send_flows,
    watch,
)
from tests.lab.rig import Process, Rig, assert_ledger_closes

pytestmark = pytest.mark.alone

COLLECTOR_MBIT = 100
OFFERED_PER_SECOND, PAYLOAD_BYTES = 87_000, 1400
SECONDS, SETTLED_SECONDS = 7.0, 2.0
SPINNERS_PER_CORE = 2
YIELD_SECONDS, BACK_SECONDS, GATE = 1.0, 10.0, 1.3
MOST_PRESSED_SECONDS = 60.0


def test_a_slow_collector_costs_ordinary_flows_nothing(rig: Rig, lab: Lab) -> None:
    """Where 100 Mbit/s lead to the collector and 1,000 are to be copied, nothing is dropped after two seconds, and
    beside the one flow that is too much all others are whole."""
    scene = scene_of(rig, lab)
    shaper = ["tbf", "rate", f"{COLLECTOR_MBIT}mbit", "burst", "64kb", "latency", "50ms"]
    # The switch's port towards the collector: the tap shall not see its own shaping.
    scene.switch.run(["tc", "qdisc", "add", "dev", "port1", "root", *shaper])
    collector, agent = scene.start("--cpu", "100", "--rate", "10gbit")
    load = scene.peer.start(
        udp_send, VM, LOAD_PORT, int(OFFERED_PER_SECOND * SECONDS), OFFERED_PER_SECOND, PAYLOAD_BYTES
    )
    small = scene.peer.start(send_flows, VM, SMALL_FLOWS, SMALL_PER_SECOND, SECONDS, SMALL_BYTES)
    time.sleep(SETTLED_SECONDS)
    early, settled_ns = agent.status()["dropped_by_ring"], time.time_ns()
    found = watch(agent, lambda: load.poll() is not None)
    small.result()
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert any("collector takes less" in one.limits["reason"] for one in found)
    assert ledger["dropped_by_ring"] == early
    assert_small_flows_are_whole(rig, settled_ns, SECONDS - SETTLED_SECONDS - 1)


def spin() -> None:
    """Burn a core until terminated."""
    while True:
        pass


def seconds_whole_after_calm(agent: Process) -> float:
    """How long it takes until all is kept, counted from when this machine, which others use, too, shows no pressure."""
    yielding, seen = Yielding(), ""
    start = calm_since = time.monotonic()
    with closing(Meter()) as meter:
        while (limits := agent.status()["limits"])["reduced"]:
            now = time.monotonic()
            if pressure := yielding.step(now, meter.read()):
                calm_since, seen = now, pressure
            assert now < start + MOST_PRESSED_SECONDS, f"{limits}; pressure of this machine: {seen}"
            time.sleep(TICK_SECONDS)
    return time.monotonic() - calm_since


def test_a_busy_neighbour_is_given_way(rig: Rig, lab: Lab) -> None:
    """Under burnt CPU the tap yields within a second but keeps headers, and is whole ten seconds after it ends."""
    scene = scene_of(rig, lab)
    collector, agent = scene.start("--cpu", "5", yields=True)
    # Outbound packets are the dear ones: these few cost more than yielding leaves, and put no pressure on the VM.
    load = scene.vm.start(udp_send, PEER, LOAD_PORT, 10_000 * 120, 10_000, 200)
    time.sleep(2.0)
    seconds_whole_after_calm(agent)
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
    back = seconds_whole_after_calm(agent)
    load.terminate()
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert yielded <= GATE * YIELD_SECONDS
    assert back <= BACK_SECONDS
    assert limits["sample"] == 1
    assert not limits["paused"]
    seen = [frame for _, _, frame in load_frames(rig, pressed_ns) if frame.time_ns < calm_ns]
    assert seen
