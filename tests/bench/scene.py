"""Three hosts on a switch, and the two loads that run between `vm` and `peer`; the copies go to `collector`.

The tap is on vm's only NIC, so the copies leave through the interface that is being copied, as in a cloud. The peer
speaks with nobody but the VM: its counters are the application's, the collector's counters are the copies'.
"""

import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from guestagent.lab.batches import BatchSender
from guestagent.lab.hosts import Counters, Lab
from guestagent.lab.traffic import ping
from tests.bench.cores import Cores

VM, PEER, COLLECTOR = "10.9.0.1", "10.9.0.2", "10.9.0.3"
UDP_PORT = 9000
SMALL_FRAME_BYTES = 512
SMALL_PER_SECOND = 50_000
_UDP_HEADERS_BYTES = 42
SMALL_PAYLOAD_BYTES = SMALL_FRAME_BYTES - _UDP_HEADERS_BYTES
_RECEIVE_BUFFER_BYTES = 4 << 20
_DRAIN_SECONDS = 0.001
IPERF_PORT = 5201
_IPERF_GRACE_SECONDS = 20.0


class Scene:
    """The hosts of one lab, and the servers that every load needs."""

    def __init__(self, lab: Lab, *, offloads: bool, cores: Cores | None = None) -> None:
        self.vm, self.peer, self.collector = (lab.host(name) for name in ("vm", "peer", "collector"))
        switch = lab.bridge(self.vm, self.peer, self.collector, offloads=offloads)
        switch.call(pass_unfiltered)
        self.cores = cores
        if cores:
            cores.place(self.vm, switch, "port1", (self.peer, self.collector))
        self.interface_index = self.vm.call(socket.if_nametoindex, "eth0")
        for host in (self.vm, self.peer):
            host.start(drain_datagrams)
        self.peer.popen(["iperf3", "-s"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for address in (PEER, COLLECTOR):
            self.vm.call(ping, address, 1)
        self.peer.wait_for_port(IPERF_PORT)

    def counters(self) -> tuple[Counters, Counters]:
        """(peer, collector)."""
        return self.peer.counters(), self.collector.counters()


def small(scene: Scene, inbound: bool, seconds: float, per_second: float = SMALL_PER_SECOND) -> None:
    """Frames of 512 bytes at a pace that leaves both cores mostly idle."""
    sender, address = (scene.peer, VM) if inbound else (scene.vm, PEER)
    sender.call(send_datagrams, address, int(seconds * per_second), per_second)


def bulk(scene: Scene, inbound: bool, seconds: float) -> None:
    """One TCP flow as fast as it goes."""
    whole = max(1, round(seconds))  # iperf3 reads 0.5 as 0, and 0 as for ever
    argv = ["iperf3", "-c", PEER, "-t", str(whole), *(["-R"] if inbound else [])]
    scene.vm.run(argv, timeout=whole + _IPERF_GRACE_SECONDS)


@dataclass(frozen=True, slots=True)
class Load:
    """What runs in one cell."""

    name: str
    inbound: bool
    make: Callable[[Scene, bool, float], None]


LOADS = tuple(
    Load(name, inbound, make) for name, make in (("small", small), ("bulk", bulk)) for inbound in (True, False)
)


def pass_unfiltered() -> None:
    """Keep a bridge from showing frames to the firewall: it would put the mirror's fragments together, and cut them."""
    for switch in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
        switch.write_text("0")


def send_datagrams(address: str, count: int, per_second: float) -> None:
    """Paced datagrams that make frames of SMALL_FRAME_BYTES."""
    payload = os.urandom(SMALL_PAYLOAD_BYTES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((address, UDP_PORT))
        BatchSender(udp).send_paced(repeat(payload, count), per_second)


def drain_datagrams() -> None:
    """Read datagrams as a busy server does, many for each time it wakes, until terminated."""
    buffer = bytearray(2048)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        udp.bind(("", UDP_PORT))
        while True:
            udp.recv_into(buffer)
            with suppress(BlockingIOError):
                while True:
                    udp.recv_into(buffer, 0, socket.MSG_DONTWAIT)
            time.sleep(_DRAIN_SECONDS)
