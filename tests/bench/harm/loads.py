"""The application's work: bulk TCP each way, small datagrams both ways at once, requests; paced, and flat out.

Beside each load a client asks the VM's echo server, so every cell tells what a user of the VM would feel. A load runs
on while one tap after the other comes and goes.
"""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from guestagent.errors import RunError
from guestagent.lab.hosts import Host
from guestagent.lab.tasks import Task
from tests.bench.harm.book import Answers
from tests.bench.harm.echo import ask
from tests.bench.scene import PEER, SMALL_PAYLOAD_BYTES, VM, Scene, send_datagrams
from tests.lab.governed import send_bursts

PROBE_PER_SECOND = 1_000
"""Requests beside a load: ten beyond the 99th percentile in each second."""
UNPACED_PER_SECOND = 1e9
BURST_SECONDS = 0.01
_CALIBRATION_DATAGRAMS = 50_000
_IPERF_GRACE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """What runs in one row of cells. Flat out where neither rate nor fraction is given."""

    name: str
    kind: str
    per_second: float | None = None
    """Requests, or datagrams of both directions together."""
    fraction: float | None = None
    """Of the rate that the machine reaches without a tap."""
    inbound: bool = False
    is_window: bool = False
    """Here the design promises own time and capture in every five seconds."""
    is_quick: bool = False
    """Part of short runs."""
    is_moderate: bool = False
    """Here the design promises the 99th percentile."""

    @property
    def is_flat_out(self) -> bool:
        """Does it take all that the machine gives?"""
        return self.per_second is None and self.fraction is None

    @property
    def is_flood(self) -> bool:
        """Do datagrams come as fast as they can be sent?"""
        return self.kind == "udp" and self.is_flat_out

    @property
    def is_promised(self) -> bool:
        """Here the design promises what the application keeps, or its latency."""
        return self.is_moderate or (self.kind == "bulk" and self.is_flat_out)


LOADS = (
    Load("ask 1k", "ask", per_second=1_000, is_window=True, is_quick=True, is_moderate=True),
    Load("ask 5k", "ask", per_second=5_000, is_moderate=True),
    Load("udp 1k", "udp", per_second=1_000),
    Load("udp 5k", "udp", per_second=5_000, is_window=True, is_moderate=True),
    Load("udp 20k", "udp", per_second=20_000, is_quick=True, is_moderate=True),
    Load("udp 50k", "udp", per_second=50_000, is_window=True),
    Load("bursts in", "bursts", fraction=0.1, inbound=True, is_window=True),
    Load("bursts out", "bursts", fraction=0.1, is_window=True),
    Load("udp flood", "udp"),
    Load("bulk in 30 %", "bulk", fraction=0.3, inbound=True, is_quick=True, is_moderate=True),
    Load("bulk out 30 %", "bulk", fraction=0.3, is_moderate=True),
    Load("bulk in 70 %", "bulk", fraction=0.7, inbound=True, is_window=True),
    Load("bulk out 70 %", "bulk", fraction=0.7, is_window=True, is_quick=True),
    Load("bulk in", "bulk", inbound=True, is_quick=True),
    Load("bulk out", "bulk", is_quick=True),
)

UNITS = {"bulk": (1e9, "Gbit/s"), "udp": (1e3, "kpps"), "bursts": (1e3, "kpps"), "ask": (1e3, "k answers/s")}


@dataclass(frozen=True, slots=True)
class Capacity:
    """What this machine reaches flat out without a tap."""

    bits_per_second: dict[bool, float]
    """Of one TCP flow, by whether it is inbound."""
    datagrams_per_second: float


@dataclass(frozen=True, slots=True)
class Underway:
    """A load's own processes, and what is counted of it."""

    progress: Callable[[], float] | None
    """What the application has got so far, in the units of UNITS, unscaled; None where answers are what it gets."""
    finish: Callable[[], object] = lambda: None
    """At the end of its time: wait for it, or end it; RunError where it failed."""


class Outlasted(RunError):
    """A load was over before what was measured beside it: that is no measurement."""


class Work:
    """A load that has begun, with the requests beside it. It goes on for its time, whoever taps meanwhile."""

    def __init__(self, scene: Scene, load: Load, seconds: float, capacity: Capacity) -> None:
        per_second = load.per_second if load.kind == "ask" and load.per_second else PROBE_PER_SECOND
        self._name, self._ends_at = load.name, time.monotonic() + seconds
        self._client = scene.peer.start(ask, VM, per_second, seconds)
        self._underway = _MAKERS[load.kind](scene, load, seconds, capacity)

    def progress(self) -> float | None:
        """What the application has got so far; None where answers are what it gets."""
        return self._underway.progress() if self._underway.progress else None

    def finish(self) -> Answers:
        """Wait for the end of all. Raises Outlasted where its time was over before."""
        is_over = time.monotonic() > self._ends_at
        answers = self._client.result()
        self._underway.finish()
        if is_over:
            raise Outlasted(f"{self._name}: what was measured outlasted the load")
        return answers


def calibrate(scene: Scene, seconds: float) -> Capacity:
    """A short look at what the machine gives; it warms everything up, too."""
    bulk = {inbound: _iperf(scene, inbound, seconds, None)() for inbound in (True, False)}
    before, start = _read_datagrams(scene), time.monotonic()
    for sender in _exchange(scene, _CALIBRATION_DATAGRAMS, UNPACED_PER_SECOND):
        sender.result()
    return Capacity(bulk, (_read_datagrams(scene) - before) / (time.monotonic() - start))


def _iperf(scene: Scene, inbound: bool, seconds: float, bits_per_second: float | None) -> Callable[[], float]:
    """Begin one TCP flow; what waits for its end, and says the bits/s of payload that the receiver got."""
    whole = ceil(seconds)  # iperf3 reads 0.5 as 0, and 0 as for ever
    pace = [] if bits_per_second is None else ["-b", str(int(bits_per_second))]
    argv = ["iperf3", "-c", PEER, "-J", "-t", str(whole), *(["-R"] if inbound else []), *pace]
    process = scene.vm.popen(argv, stdout=subprocess.PIPE, text=True)

    def finish() -> float:
        said, _ = process.communicate(timeout=whole + _IPERF_GRACE_SECONDS)
        report = json.loads(said)
        if "error" in report:
            raise RunError(f"iperf3: {report['error']}")
        return float(report["end"]["sum_received"]["bits_per_second"])

    return finish


def _bulk(scene: Scene, load: Load, seconds: float, capacity: Capacity) -> Underway:
    def progress() -> float:
        """What its peer's interface counted: the copies don't pass it."""
        peer, _ = scene.counters()
        return 8.0 * (peer.tx_bytes if load.inbound else peer.rx_bytes)

    most = capacity.bits_per_second[load.inbound]
    return Underway(progress, _iperf(scene, load.inbound, seconds, load.fraction and load.fraction * most))


def _datagrams(scene: Scene, load: Load, seconds: float, capacity: Capacity) -> Underway:
    # Flat out, who is faster than at the calibration shall not be done before its time.
    count = int((load.per_second or 2 * capacity.datagrams_per_second) * seconds)
    return _sent(scene, _exchange(scene, count, load.per_second or UNPACED_PER_SECOND))


def _bursts(scene: Scene, load: Load, seconds: float, capacity: Capacity) -> Underway:
    """BURST_SECONDS of the rate that the machine reaches, then silence; one way."""
    sender, address = (scene.peer, VM) if load.inbound else (scene.vm, PEER)
    datagrams = int(capacity.datagrams_per_second * BURST_SECONDS)
    every_seconds = BURST_SECONDS / (load.fraction or 1)
    return _sent(scene, [sender.start(send_bursts, address, every_seconds, datagrams, seconds, SMALL_PAYLOAD_BYTES)])


def _exchange(scene: Scene, count: int, per_second: float) -> list[Task[None]]:
    """Half of the datagrams each way at once."""
    return [
        host.start(send_datagrams, address, count // 2, per_second / 2)
        for host, address in ((scene.peer, VM), (scene.vm, PEER))
    ]


def _sent(scene: Scene, senders: Sequence[Task[Any]]) -> Underway:
    def finish() -> None:
        for sender in senders:
            sender.kill()
            sender.wait()

    return Underway(partial(_read_datagrams, scene), finish)


def _read_datagrams(scene: Scene) -> float:
    return float(sum(map(_delivered, (scene.vm, scene.peer))))


def _delivered(host: Host) -> int:
    """Datagrams that this host's kernel has handed to applications."""
    table = host.call(Path("/proc/net/snmp").read_text)
    names, values = (line.split() for line in table.splitlines() if line.startswith("Udp:"))
    return int(dict(zip(names, values, strict=True))["InDatagrams"])


def _nothing_else(_scene: Scene, _load: Load, _seconds: float, _capacity: Capacity) -> Underway:
    """The requests are the load."""
    return Underway(None)


_MAKERS: dict[str, Callable[[Scene, Load, float, Capacity], Underway]] = {
    "bulk": _bulk,
    "udp": _datagrams,
    "bursts": _bursts,
    "ask": _nothing_else,
}
