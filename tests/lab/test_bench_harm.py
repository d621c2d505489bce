"""Taps of the harm bench are what their columns say."""

import psutil

from guestagent.lab.hosts import Lab
from tests.bench.clocks import is_tapped
from tests.bench.harm.capture import come_and_go
from tests.bench.harm.taps import stopped
from tests.bench.scene import VM, Scene, send_datagrams, small


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


def test_the_ring_of_the_bench_is_open_and_shut_by_turns(lab: Lab) -> None:
    """It sees packets in every other phase, none in the others, and drops none."""
    scene = Scene(lab, offloads=True)
    sender = scene.peer.start(send_datagrams, VM, 25_000, 5_000)
    phases = scene.vm.call(come_and_go, 0.1, "not tcp port 5201")
    sender.kill()

    assert [one.is_open for one in phases] == [False, True] * 10
    assert [one.seen > 0 for one in phases] == [False, True] * 10
