"""The alternatives: each is started on the VM's eth0 with its sensor end on the collector host, and discards there.

Every tap leaves its own copies out of the capture, each in its own way: our stream by the agent, tcpdump by a filter,
the mirror by matching the application's peer only.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from guestagent.capture.bpf import compose
from guestagent.capture.engine import DEFAULT_RING_BYTES
from guestagent.capture.interfaces import describe
from guestagent.capture.interfaces import select as select_links
from guestagent.capture.probes import probe_virtio
from guestagent.capture.ring import BLOCK_BYTES, Ring
from guestagent.lab.hosts import Host
from guestagent.observe.status import ask
from tests.bench.clocks import is_tapped
from tests.bench.scene import COLLECTOR, PEER, Scene
from tests.bench.sink import discard
from tests.lab.rig import wait_for

NC_PORT, VXLAN_PORT, STREAM_PORT = 9999, 4789, 4795
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@dataclass(frozen=True, slots=True)
class Running:
    """A tap at work: the processes that it adds to the VM, and what it admits to have lost so far."""

    pids: tuple[int, ...] = ()
    lost: Callable[[], int | None] = lambda: None


Tap = Callable[[Scene], AbstractContextManager[Running]]


@contextmanager
def base(_scene: Scene) -> Iterator[Running]:
    """Nothing: what the load itself costs."""
    yield Running()


@contextmanager
def ring_only(scene: Scene) -> Iterator[Running]:
    """Our ring, its blocks given back at once: the floor under every tap that reads a ring of the kernel's."""
    task = scene.vm.start(release_blocks)
    try:
        wait_for(lambda: is_tapped(task.pid, scene.interface_index), "the ring")
        yield Running((task.pid,))
    finally:
        task.kill()
        task.wait()


def release_blocks() -> None:
    """Walk the ring of eth0 until terminated."""
    link = select_links(["eth0"])[0]
    blocks, virtio = DEFAULT_RING_BYTES // BLOCK_BYTES, probe_virtio().ok
    ring = Ring(describe(link, 0), link.index, compose(), block_count=blocks, virtio=virtio)
    events = select.epoll()
    events.register(ring.fileno(), select.EPOLLIN | select.EPOLLET)
    while True:
        events.poll()
        while block := ring.take():
            ring.release(block)


@contextmanager
def stream(scene: Scene) -> Iterator[Running]:
    """guestagent to a collector that forgets."""
    sensor = scene.collector.start(discard, COLLECTOR, STREAM_PORT)
    try:
        scene.collector.wait_for_port(STREAM_PORT)
        with agent(scene.vm) as running:
            yield running
    finally:
        sensor.kill()
        sensor.wait()


@contextmanager
def stream_collected(scene: Scene) -> Iterator[Running]:
    """guestagent to its real collector, which makes pcapng of everything; the bytes end in /dev/null."""
    with collector(scene.collector, COLLECTOR, "-"), agent(scene.vm) as running:
        yield running


@contextmanager
def tcpdump(scene: Scene) -> Iterator[Running]:
    """The pipe that everybody knows: tcpdump -w - | nc."""
    sensor = scene.collector.popen(["nc", "-d", "-l", str(NC_PORT)], **QUIET)
    scene.collector.wait_for_port(NC_PORT)
    argv = ["tcpdump", "-i", "eth0", "-w", "-", f"not tcp port {NC_PORT}"]
    dump = scene.vm.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pipe = scene.vm.popen(["nc", COLLECTOR, str(NC_PORT)], stdin=dump.stdout, **QUIET)
    if dump.stdout:
        dump.stdout.close()  # nc holds the pipe alone, so it ends with tcpdump
    try:
        wait_for(lambda: is_tapped(dump.pid, scene.interface_index), "tcpdump")
        yield Running((dump.pid, pipe.pid))
    finally:
        _end(dump, pipe, sensor)


@contextmanager
def mirred(scene: Scene) -> Iterator[Running]:
    """The kernel's own way: tc copies both directions into a vxlan device."""
    vxlan = ["ip", "link", "add", "copy0", "mtu", "1500", "type", "vxlan", "id", "1", "dstport", str(VXLAN_PORT)]
    scene.collector.run([*vxlan, "nolearning"])
    try:
        scene.vm.run([*vxlan, "nolearning", "remote", COLLECTOR])
        for host in (scene.vm, scene.collector):
            host.run(["ip", "link", "set", "copy0", "up"])
        scene.vm.run(["tc", "qdisc", "add", "dev", "eth0", "clsact"])
        for hook, side in (("ingress", "src"), ("egress", "dst")):
            match = ["protocol", "ip", "u32", "match", "ip", side, f"{PEER}/32"]
            action = ["action", "mirred", "egress", "mirror", "dev", "copy0"]
            scene.vm.run(["tc", "filter", "add", "dev", "eth0", hook, *match, *action])
        yield Running()
    finally:
        scene.vm.run(["tc", "qdisc", "del", "dev", "eth0", "clsact"], check=False)
        for host in (scene.vm, scene.collector):
            host.run(["ip", "link", "del", "copy0"], check=False)


TAPS: dict[str, Tap] = {
    "base": base,
    "ring only": ring_only,
    "stream": stream,
    "stream, real collector": stream_collected,
    "tcpdump to nc": tcpdump,
    "tc mirred to vxlan": mirred,
}
FOREIGN = ("tcpdump to nc", "tc mirred to vxlan")
"""They need a program or a kernel feature that a machine may lack; the comparison goes on without them."""


@contextmanager
def agent(host: Host, *arguments: str, connected: bool = True) -> Iterator[Running]:
    """`guestagent run --full` on eth0, as a user starts it."""
    to = f"tcp://{COLLECTOR}:{STREAM_PORT}"
    with guestagent(host, "run", "-i", "eth0", "--full", "--to", to, "--agent-id", "vm", *arguments) as (
        process,
        ask_it,
    ):
        if connected:
            wait_for(lambda: ask_it()["link"]["connected"], "the agent to be connected")
        yield Running((process.pid,), lambda: _lost(ask_it()))


@contextmanager
def collector(host: Host, address: str, write: str) -> Iterator["subprocess.Popen[Any]"]:
    """`guestagent collect`, listening."""
    listen = f"tcp://{address}:{STREAM_PORT}"
    with guestagent(host, "collect", "--listen", listen, "--write", write) as (process, _):
        host.wait_for_port(STREAM_PORT)
        yield process


@contextmanager
def guestagent(host: Host, *arguments: str) -> Iterator[tuple["subprocess.Popen[Any]", Callable[[], dict[str, Any]]]]:
    """A verb of ours on a host, and how to ask for its status; ended as an operator ends it."""
    with TemporaryDirectory(prefix="guestagent-bench-") as directory:
        environment = {**os.environ, "RUNTIME_DIRECTORY": directory}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled once, not at each start
        process = host.popen([sys.executable, "-m", "guestagent", *arguments], env=environment, **QUIET)
        status = Path(directory) / f"{'agent' if arguments[0] == 'run' else 'collector'}-{process.pid}.sock"
        try:
            yield process, lambda: (ask(status) if status.exists() else None) or {"link": {"connected": False}}
        finally:
            _end(process)


def _lost(snapshot: dict[str, Any]) -> int:
    return int(sum(snapshot[key] for key in ("capped", "dropped_by_ring", "unsupported_gso", "lost_on_link")))


def _end(*processes: "subprocess.Popen[Any]") -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
