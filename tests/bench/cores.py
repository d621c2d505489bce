"""One core is the VM's and the others are the world's, so a tap is paid for by whom it sits beside, and by nobody else.

On shared cores a tap pays for its sensor and for the switch, too, and whoever wakes moves others to another core: the
99th percentile of nothing beside nothing differed by a factor of 1.6. A VM of one core hides nothing, either: it has no
idle core for the tap to run on.

What the VM's NIC receives is worked on by its core, and what it sends is switched by the world's, as by a hypervisor
(RPS, Documentation/networking/scaling.rst); without it a veth does all of that with the sender's core.
"""

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guestagent.errors import HostError, RunError
from guestagent.lab.hosts import Host

_PACKET_STEERING = "/sys/class/net/{}/queues/rx-0/rps_cpus"
_ONLINE = "/sys/devices/system/cpu/online"
_WORD_BITS = 32
_WAKE_UP_LATENCY = "/dev/cpu_dma_latency"


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where."""

    vm: frozenset[int]
    world: frozenset[int]
    """Peer, collector, switch, and the bench itself."""

    def place(self, vm: Host, switch: Host, port: str, world: Collection[Host]) -> None:
        """What is started on these hosts from here on runs where it belongs; `port` is the switch's towards `vm`."""
        vm.cpus = self.vm
        for host in world:
            host.cpus = self.world
        with tempfile.NamedTemporaryFile() as ours:  # without its name it lives as long as the mount
            vm.run(["mount", "--bind", ours.name, _ONLINE])
        _show(vm, self.vm)
        for host, interface, cpus in ((vm, "eth0", self.vm), (switch, port, self.world)):
            try:
                host.call(Path(_PACKET_STEERING.format(interface)).write_text, bitmap(cpus))
            except RunError as error:
                raise HostError(f"packets are steered to no processor (it needs CONFIG_RPS, root): {error}") from error

    @contextmanager
    def second(self, vm: Host) -> Iterator[frozenset[int]]:
        """For what is started on `vm` meanwhile it has two cores: its own, and one of the world's, which works on."""
        both = self.vm | {min(self.world)}
        vm.cpus = both
        _show(vm, both)
        try:
            yield both
        finally:
            vm.cpus = self.vm
            _show(vm, self.vm)


@contextmanager
def one_for_the_vm() -> Iterator[Cores]:
    """Of the processors that we may use; we are the world's meanwhile. HostError where there is only one.

    None of them halts as long. To wake one takes a while, on a VM an exit to the hypervisor, and that is most of a
    latency beside an idle core: a p99 of 330 to 2,400 µs without a tap, where it is 90 to 200 without halting.
    """
    ours = os.sched_getaffinity(0)
    first, *others = sorted(ours)
    if not others:
        raise HostError("it needs two processors: one is the VM's, the other asks it, switches and collects")
    os.sched_setaffinity(0, others)
    try:
        with _none_halts():
            yield Cores(frozenset({first}), frozenset(others))
    finally:
        os.sched_setaffinity(0, ours)


@contextmanager
def _none_halts() -> Iterator[None]:
    """Documentation/power/pm_qos_interface.rst: as long as the descriptor is open; a kernel may lack it."""
    try:
        wish = os.open(_WAKE_UP_LATENCY, os.O_WRONLY)
    except OSError:
        yield
        return
    try:
        os.write(wish, bytes(4))
        yield
    finally:
        os.close(wish)


def bitmap(cpus: Collection[int]) -> str:
    """As the kernel reads one: words of 32 bits in hexadecimal digits, the highest first."""
    bits, words = sum(1 << cpu for cpu in cpus), []
    while bits or not words:
        words.append(f"{bits % (1 << _WORD_BITS):08x}")
        bits >>= _WORD_BITS
    return ",".join(reversed(words))


def _show(host: Host, cpus: Collection[int]) -> None:
    """Its processes count these processors alone, as in a container with lxcfs: `--cpu 5` is five percent of them."""
    host.call(Path(_ONLINE).write_text, ",".join(map(str, sorted(cpus))) + "\n")
