"""Taps of the harm bench are what their columns say."""

import psutil

from guestagent.lab.hosts import Lab
from tests.bench.clocks import is_tapped
from tests.bench.harm.taps import stopped
from tests.bench.scene import Scene, small


def test_a_stopped_agent_is_its_capture_alone(lab: Lab) -> None:
    """Beside traffic its process takes no time while the kernel captures for it, and it ends as any other agent."""
    scene = Scene(lab, offloads=True)
    with stopped(scene) as running:
        process = psutil.Process(running.pids[0])
        before = process.cpu_times()
        small(scene, inbound=True, seconds=0.5, per_second=5000)

        assert process.status() == psutil.STATUS_STOPPED
        assert process.cpu_times() == before
        assert is_tapped(process.pid, scene.interface_index)
    assert not process.is_running()
