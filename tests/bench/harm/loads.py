"""The application's work: bulk TCP each way, small datagrams both ways at once, requests; paced, and flat out.

Beside each load a client asks the VM's echo server, so every cell tells what a user of the VM would feel.
"""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """What runs in one cell. Flat out where neither rate nor fraction is given."""

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
    def is_promised(self) -> bool:
        """Here the design promises what the application keeps, or its latency."""
        return self.is_moderate or (self.kind == "bulk" and self.is_flat_out)


LOADS = (
    Load("ask 1k", "ask", per_second=1_000, is_window=True, is_quick=True),
    Load("udp 1k", "udp", per_second=1_000),
    Load("udp 5k", "udp", per_second=5_000, is_window=True),
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
class Outcome:
    """What the application got."""

    rate: float
    """In the units of UNITS, unscaled."""
    answers: Answers


Finish = Callable[[], float | None]
"""Wait for the end; the rate, None where it is that of the answers."""


class Work:
    """A load that has begun; what it does in its first seconds is not counted."""

    def __init__(self, scene: Scene, load: Load, warm_seconds: float, seconds: float, capacity: Capacity) -> None:
        per_second = load.per_second if load.kind == "ask" and load.per_second else PROBE_PER_SECOND
        self._client = scene.peer.start(ask, VM, per_second, warm_seconds, seconds)
        self._finish = _MAKERS[load.kind](scene, load, (warm_seconds, seconds), capacity)

    def finish(self) -> Outcome:
        """Called when it is warm: wait for the end of all, and hand over what the application got since then."""
        rate, answers = self._finish(), self._client.result()
        return Outcome(answers.answered / answers.seconds if rate is None else rate, answers)


def calibrate(scene: Scene, seconds: float) -> Capacity:
    """A short look at what the machine gives; it warms everything up, too."""
    bulk = {inbound: iperf(scene, inbound, (0.0, seconds), None)() for inbound in (True, False)}
    return Capacity(bulk, _exchange(scene, _CALIBRATION_DATAGRAMS, UNPACED_PER_SECOND)())


Times = tuple[float, float]
"""Seconds to warm up, seconds to count."""


def iperf(scene: Scene, inbound: bool, times: Times, bits_per_second: float | None) -> Callable[[], float]:
    """Begin one TCP flow; the bits/s of payload that the receiver will have got."""
    warm, whole = round(times[0]), max(1, round(times[1]))  # iperf3 reads 0.5 as 0, and 0 as for ever
    pace = [] if bits_per_second is None else ["-b", str(int(bits_per_second))]
    argv = ["iperf3", "-c", PEER, "-J", "-O", str(warm), "-t", str(whole), *(["-R"] if inbound else []), *pace]
    process = scene.vm.popen(argv, stdout=subprocess.PIPE, text=True)

    def finish() -> float:
        said, _ = process.communicate(timeout=warm + whole + _IPERF_GRACE_SECONDS)
        report = json.loads(said)
        if "error" in report:
            raise RunError(f"iperf3: {report['error']}")
        return float(report["end"]["sum_received"]["bits_per_second"])

    return finish


def _bulk(scene: Scene, load: Load, times: Times, capacity: Capacity) -> Finish:
    most = capacity.bits_per_second[load.inbound]
    return iperf(scene, load.inbound, times, load.fraction and load.fraction * most)


def _datagrams(scene: Scene, load: Load, times: Times, capacity: Capacity) -> Finish:
    count = int((load.per_second or capacity.datagrams_per_second) * sum(times))
    return _exchange(scene, count, load.per_second or UNPACED_PER_SECOND)


def _bursts(scene: Scene, load: Load, times: Times, capacity: Capacity) -> Finish:
    """BURST_SECONDS of the rate that the machine reaches, then silence; one way."""
    sender, address = (scene.peer, VM) if load.inbound else (scene.vm, PEER)
    datagrams = int(capacity.datagrams_per_second * BURST_SECONDS)
    every_seconds = BURST_SECONDS / (load.fraction or 1)
    arguments = (address, every_seconds, datagrams, sum(times), SMALL_PAYLOAD_BYTES)
    return _arriving(scene, [sender.start(send_bursts, *arguments)])


def _exchange(scene: Scene, count: int, per_second: float) -> Callable[[], float]:
    """Half of the datagrams each way at once."""
    senders = [
        host.start(send_datagrams, address, count // 2, per_second / 2)
        for host, address in ((scene.peer, VM), (scene.vm, PEER))
    ]
    return _arriving(scene, senders)


def _arriving(scene: Scene, senders: Sequence[Task[object]]) -> Callable[[], float]:
    """How many datagrams a second will arrive from the moment that one asks."""

    def finish() -> float:
        before, start = _read_datagrams(scene), time.monotonic()
        for sender in senders:
            sender.result()
        took = time.monotonic() - start
        return (_read_datagrams(scene) - before) / took

    return finish


def _read_datagrams(scene: Scene) -> int:
    return sum(map(_delivered, (scene.vm, scene.peer)))


def _delivered(host: Host) -> int:
    """Datagrams that this host's kernel has handed to applications."""
    table = host.call(Path("/proc/net/snmp").read_text)
    names, values = (line.split() for line in table.splitlines() if line.startswith("Udp:"))
    return int(dict(zip(names, values, strict=True))["InDatagrams"])


def _nothing_else(_scene: Scene, _load: Load, _times: Times, _capacity: Capacity) -> Finish:
    """The requests are the load."""
    return lambda: None


_MAKERS: dict[str, Callable[[Scene, Load, Times, Capacity], Finish]] = {
    "bulk": _bulk,
    "udp": _datagrams,
    "bursts": _bursts,
    "ask": _nothing_else,
}
