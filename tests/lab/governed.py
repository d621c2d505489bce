"""A VM under its default budgets between a peer and a collector; loads at a pace, and what came over in each moment."""

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from guestagent.lab.batches import BatchSender
from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_payload
from tests.lab.rig import Frame, Process, Rig

COLLECTOR, VM, PEER = "10.9.0.1", "10.9.0.2", "10.9.0.3"
LOAD_PORT = 9000
FIRST_SOURCE_PORT = 20_000
SMALL_FLOWS, SMALL_PER_SECOND, SMALL_BYTES = 400, 2000, 200
"""Ordinary traffic beside whatever is heavy."""
LEAST_PACE = 0.6
"""Of it, on a machine that has more to do."""
_TURN_SECONDS = 0.0005
_RECEIVE_BUFFER_BYTES = 4 << 20
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Scene:
    """Three hosts on a switch; copies leave the VM by the NIC that is tapped, as in a cloud."""

    rig: Rig
    collector_host: Host
    vm: Host
    peer: Host
    switch: Host

    def start(self, *arguments: str, yields: bool = False) -> tuple[Process, Process]:
        """Collector and agent; without `yields` the rest of the machine is nobody's business."""
        collector = self.rig.collect(self.collector_host)
        agent = self.rig.agent(self.vm, *arguments, "--yield", "on" if yields else "off", full=False)
        return collector, agent


def scene_of(rig: Rig, lab: Lab, *, offloads: bool = True) -> Scene:
    """The hosts, with sinks on both ends that read what comes to the load's port."""
    collector, vm, peer = (lab.host(name) for name in ("collector", "vm", "peer"))
    switch = lab.bridge(collector, vm, peer, offloads=offloads)
    for host in (vm, peer):
        host.start(drain)
        host.wait_for_port(LOAD_PORT)
    return Scene(rig, collector, vm, peer, switch)


def drain() -> None:
    """Read datagrams, many for each wake-up, until terminated."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        udp.bind(("", LOAD_PORT))
        while True:
            udp.recv(2048)
            time.sleep(0.001)
            udp.setblocking(False)
            try:
                while True:
                    udp.recv(2048)
            except BlockingIOError:
                udp.setblocking(True)


def send_flows(address: str, flows: int, per_second: float, seconds: float, payload_bytes: int) -> int:
    """Numbered datagrams of many flows in turn, flow n from port FIRST_SOURCE_PORT + n; how many."""
    with ExitStack() as stack:
        sockets = []
        for flow in range(flows):
            one = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            one.bind(("", FIRST_SOURCE_PORT + flow))
            one.connect((address, LOAD_PORT))
            sockets.append(one)
        start, sent = time.monotonic(), 0
        while (now := time.monotonic() - start) < seconds:
            for index in range(sent, int(now * per_second)):
                sockets[index % flows].send(udp_payload(index, payload_bytes))
                sent += 1
            time.sleep(_TURN_SECONDS)
    return sent


def send_trains(address: str, train: int, per_second: float, seconds: float, payload_bytes: int) -> int:
    """Short flows: each sends so many numbered datagrams at once and ends; how many datagrams in all."""
    start, sent = time.monotonic(), 0
    while (now := time.monotonic() - start) < seconds:
        if sent > now * per_second:
            time.sleep(_TURN_SECONDS)
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.connect((address, LOAD_PORT))
            for index in range(sent, sent + train):
                one.send(udp_payload(index, payload_bytes))
        sent += train
    return sent


def send_bursts(address: str, every_seconds: float, datagrams: int, seconds: float, payload_bytes: int) -> int:
    """As many datagrams at once as a write can make, then silence; how many in all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect((address, LOAD_PORT))
        sender, start, sent = BatchSender(udp), time.monotonic(), 0
        while time.monotonic() - start < seconds:
            sender.send_paced((udp_payload(index, payload_bytes) for index in range(sent, sent + datagrams)), None)
            sent += datagrams
            time.sleep(max(0.0, start + sent / datagrams * every_seconds - time.monotonic()))
    return sent


@dataclass(frozen=True)
class Received:
    """What an interface had counted at a moment."""

    at: float
    packets: int
    bytes: int


def count_received(seconds: float, every_seconds: float = SAMPLE_SECONDS) -> list[Received]:
    """The kernel's counters of eth0 again and again; to run on the host that receives."""
    start, found = time.monotonic(), []
    for step in range(int(seconds / every_seconds) + 1):
        time.sleep(max(0.0, start + step * every_seconds - time.monotonic()))
        row = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("eth0:"))
        values = row.partition(":")[2].split()
        found.append(Received(time.monotonic(), int(values[1]), int(values[0])))
    return found


def per_second(found: list[Received], window_seconds: float = 1.0) -> list[Received]:
    """Packets/s and bytes/s in every window of this length that begins with a sample."""
    rates = []
    for at, one in enumerate(found):
        end = next((other for other in found[at:] if other.at >= one.at + window_seconds - 0.001), None)
        if end is not None:
            took = end.at - one.at
            rates.append(Received(one.at, int((end.packets - one.packets) / took), int((end.bytes - one.bytes) / took)))
    return rates


@dataclass(frozen=True)
class Limit:
    """The limits at a moment, as `status` told them."""

    at: float
    limits: dict[str, Any]

    @property
    def is_whole(self) -> bool:
        """Nothing is shed."""
        return not self.limits["reduced"]

    @property
    def selection(self) -> tuple[Any, ...]:
        """What the filter keeps."""
        return tuple(self.limits[key] for key in ("slice", "heavy_flows", "heavy_fraction", "sample", "paused"))


def watch(agent: Process, until: Callable[[], bool], every_seconds: float = SAMPLE_SECONDS) -> list[Limit]:
    """The limits, sampled until a condition holds."""
    found = []
    while not until():
        limits = agent.status()["limits"]
        if not limits["probe"]:
            found.append(Limit(time.monotonic(), limits))
        time.sleep(every_seconds)
    return found


def seconds_until(agent: Process, *, whole: bool, timeout: float) -> float:
    """How long it takes until everything is kept again, or until something is shed."""
    start = time.monotonic()
    while (limits := agent.status()["limits"])["reduced"] is whole:
        took = time.monotonic() - start
        assert took < timeout, f"after {took:.1f} s of waiting for {'full fidelity' if whole else 'less'}: {limits}"
        time.sleep(0.01)
    return time.monotonic() - start


def changes(found: list[Limit]) -> int:
    """How often fidelity went from whole to reduced or back."""
    return sum(one.is_whole != other.is_whole for one, other in pairwise(found))


def assert_small_flows_are_whole(rig: Rig, first_ns: int, seconds: float) -> None:
    """Of the small flows each datagram of these seconds is there, uncut."""
    small = [
        (port, index, frame)
        for port, index, frame in load_frames(rig, first_ns)
        if frame.original_bytes == SMALL_BYTES + 42 and frame.time_ns < first_ns + int(seconds * 1e9)
    ]
    assert all(len(frame.data) == frame.original_bytes for _, _, frame in small)
    indexes = sorted(index for _, index, _ in small)
    assert indexes == list(range(indexes[0], indexes[-1] + 1))
    assert len(indexes) >= LEAST_PACE * SMALL_PER_SECOND * seconds
    assert len({port for port, _, _ in small}) == SMALL_FLOWS


def load_frames(rig: Rig, first_ns: int = 0) -> list[tuple[int, int, Frame]]:
    """(flow's source port, datagram's index, frame) of each datagram of a load from a moment on."""
    found = []
    for frame in rig.frames():
        data = frame.data
        if frame.time_ns >= first_ns and data[12:14] == b"\x08\x00" and data[23] == 17:
            source, destination = (int.from_bytes(data[at : at + 2], "big") for at in (34, 36))
            if destination == LOAD_PORT:
                found.append((source, int.from_bytes(data[42:50], "big") if len(data) >= 50 else -1, frame))
    return found
