"""The bench's VM has a core of its own, and sees no other."""

import os
from pathlib import Path

import psutil
import pytest

from guestagent.lab.hosts import Lab
from tests.bench.cores import bitmap, one_for_the_vm

ONE_ONLY = len(os.sched_getaffinity(0)) < 2


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to steer packets")
@pytest.mark.skipif(ONE_ONLY, reason="needs two processors")
def test_the_vm_has_a_core_of_its_own(lab: Lab) -> None:
    """Its processes run there and count one core, what it receives is worked on there; everyone else is elsewhere. A
    second core is there as long as it is lent."""
    before = os.sched_getaffinity(0)
    with one_for_the_vm() as cores:
        vm, peer = lab.host("vm"), lab.host("peer")
        switch = lab.bridge(vm, peer)
        cores.place(vm, switch, "port1", [peer])
        places = [host.call(os.sched_getaffinity, 0) for host in (vm, peer)]
        counted = [host.call(psutil.cpu_count) for host in (vm, peer)]
        command = vm.run(["grep", "Cpus_allowed_list", "/proc/self/status"]).stdout.split()[-1]
        steering = [
            host.call(Path(f"/sys/class/net/{name}/queues/rx-0/rps_cpus").read_text).strip()
            for host, name in ((vm, "eth0"), (switch, "port1"))
        ]
        ours = os.sched_getaffinity(0)
        with cores.second(vm):
            lent = vm.call(os.sched_getaffinity, 0), vm.call(psutil.cpu_count), peer.call(psutil.cpu_count)
        after = vm.call(os.sched_getaffinity, 0), vm.call(psutil.cpu_count)

    assert lent == ({*cores.vm, min(cores.world)}, 2, os.cpu_count())
    assert after == (set(cores.vm), 1)
    assert places == [set(cores.vm), set(cores.world)]
    assert counted == [1, os.cpu_count()]
    assert command == str(min(cores.vm))
    assert [int(one.replace(",", ""), 16) for one in steering] == [
        int(bitmap(one).replace(",", ""), 16) for one in (cores.vm, cores.world)
    ]
    assert ours == cores.world
    assert os.sched_getaffinity(0) == before
