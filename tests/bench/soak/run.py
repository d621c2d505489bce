"""The soak: mixed faults around a real agent, and a collector under a fleet and strangers, both at once.

stage        VM in production, agent, collector, faults of the table in random order
fleet        a second collector with 200 simulated agents, reset storms, strangers of every kind at both its ports
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from guestagent import pki
from guestagent.lab.hosts import Host, Lab
from tests.bench.soak.fleet import Sent, fleet
from tests.bench.soak.slope import Sample, Slope, slope
from tests.lab.faults.harness import Trial
from tests.lab.faults.production import LASTING
from tests.lab.faults.stage import Stage, anonymous_bytes, descriptors, eventually
from tests.lab.faults.strangers import Stranger, crowd, half_open, harass, silent, slow
from tests.lab.faults.table import FAULTS
from tests.lab.rig import Process, Rig, wait_for

AGENTS = 200
PORT, TLS_PORT = 4795, 4796
RESETS_PER_SECOND = 10.0
CROWD = 300
CROWDS = {"clear text": (PORT, (silent, slow)), "TLS": (TLS_PORT, (silent, half_open))}
"""Strangers that a port keeps until their time is over."""
HOLD_SECONDS = 1.0
SCENES = ("path", "collector", "nic")
"""Whose faults the agent outlives, so that its memory has a slope."""
SAMPLE_SECONDS = 0.5
SETTLING_SECONDS = 8.0
"""Strangers are shown out after 5 s."""
MOST_GROWN_BYTES, MOST_GROWN_FILES = 2_000_000, 1
MOST_AGENT_BYTES, MOST_STRANGER_BYTES = 400_000, 120_000
"""Of the collector's memory for each connection: 256 KB to read into and the run's books; a TLS handshake."""
MOST_COLLECTOR_BYTES = 160_000_000
"""200 agents, 200 strangers, and the interpreter."""


@dataclass(slots=True)
class Soaked:
    """What a soak found."""

    seconds: float
    faults: dict[str, int] = field(default_factory=dict)
    slopes: dict[str, Slope] = field(default_factory=dict)
    bytes_per_agent: float = 0.0
    bytes_per_stranger: dict[str, float] = field(default_factory=dict)
    sent: Sent | None = None
    refused: int = 0
    datagrams: int = 0
    kept: list[float] = field(default_factory=list)
    """Of production's throughput, for each fault."""
    losses: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def expect(self, is_so: bool, otherwise: str) -> None:
        """Note what is not as it should be."""
        if not is_so:
            self.complaints.append(otherwise)


class Books:
    """Samples of processes, taken whenever somebody has the time."""

    def __init__(self) -> None:
        self._start, self._due_at = time.monotonic(), 0.0
        self.samples: dict[str, list[Sample]] = {}

    def look(self, processes: dict[str, Process]) -> None:
        """Take a sample of each, if it is time."""
        now = time.monotonic()
        if now < self._due_at:
            return
        self._due_at = now + SAMPLE_SECONDS
        for name, process in processes.items():
            sample = Sample(now - self._start, anonymous_bytes(process), descriptors(process))
            self.samples.setdefault(name, []).append(sample)


def soak(lab: Lab, directory: Path, seconds: float, say: Callable[[str], None] = lambda _text: None) -> Soaked:
    """Soak for so long; set-up, drain and the look at the files come on top."""
    result, books = Soaked(seconds), Books()
    (directory / "fleet").mkdir(parents=True)
    (directory / "stage").mkdir()
    host = lab.host("fleet")
    collector = fleet_collector(host, directory / "fleet")
    measure_strangers(host, collector, result)
    empty_bytes, empty_files = anonymous_bytes(collector), descriptors(collector)
    trial = Trial(Stage(lab, directory / "stage", "path", LASTING))
    agents = host.start(fleet, PORT, AGENTS, seconds, RESETS_PER_SECOND)
    wait_for(lambda: streaming(collector) == AGENTS, "the fleet to be greeted")
    result.bytes_per_agent = (anonymous_bytes(collector) - empty_bytes) / AGENTS
    attack = host.start(harass, "127.0.0.1", (PORT, TLS_PORT))
    endure_all(trial, seconds, lambda: books.look({"agent": trial.stage.agent, "fleet's collector": collector}), say)
    result.sent = agents.result(seconds + 60)
    attack.kill()
    attack.wait()
    close(trial, collector, result, empty_files)
    for name, samples in books.samples.items():
        result.slopes[name] = slope(samples)
    judge(result, empty_bytes)
    return result


def fleet_collector(host: Host, directory: Path) -> Process:
    """A collector on loopback with a port in clear text and one with TLS."""
    pki.make("init", "", (), str(directory / "pki"))
    pki.make("collector", "c", ("localhost",), str(directory / "pki"))
    keys = directory / "pki"
    process = Rig(directory).start(
        host,
        "collect",
        *("--listen", f"tcp://127.0.0.1:{PORT}", "--listen", f"tls://127.0.0.1:{TLS_PORT}"),
        *("--write", str(directory / "captures")),
        *(f"--tls-ca={keys}/ca.crt", f"--tls-cert={keys}/c.crt", f"--tls-key={keys}/c.key"),
        report="collector.json",
    )
    host.wait_for_port(TLS_PORT)
    return process


def measure_strangers(host: Host, collector: Process, result: Soaked) -> None:
    """What a stranger costs at each port, and that nothing of it stays."""
    files, tasks = descriptors(collector), []
    for number, (name, (port, kinds)) in enumerate(CROWDS.items(), start=1):
        before = anonymous_bytes(collector)
        tasks.append(host.start(_stand, port, kinds))
        wait_for(lambda most=files + number * CROWD: descriptors(collector) >= most, "the crowd to be let in")
        time.sleep(0.5)
        result.bytes_per_stranger[name] = (anonymous_bytes(collector) - before) / CROWD
    gone = eventually(lambda: descriptors(collector) <= files, SETTLING_SECONDS)
    result.expect(gone, f"{descriptors(collector) - files} strangers are still there")
    for task in tasks:
        task.kill()
        task.wait()


def _stand(port: int, kinds: tuple[Stranger, ...]) -> None:
    held = crowd("127.0.0.1", port, CROWD, *kinds)
    time.sleep(3600)
    del held


def streaming(collector: Process) -> int:
    """Agents that stream now."""
    return sum(agent["streaming"] for agent in collector.status().get("agents", {}).values())


def endure_all(trial: Trial, seconds: float, look: Callable[[], None], say: Callable[[str], None]) -> None:
    """Faults in random order, each once before any comes again, until the time is over; the first round is whole."""
    moments, end = random.Random(4795), time.monotonic() + seconds
    chosen = [fault for fault in FAULTS if fault.scene in SCENES]

    def look_in_time() -> None:
        if time.monotonic() < end:  # then the fleet goes home
            look()

    while time.monotonic() < end:
        moments.shuffle(chosen)
        for fault in chosen:
            if time.monotonic() >= end and len(trial.outcomes) >= len(chosen):
                return
            outcome = trial.endure(fault, HOLD_SECONDS, look_in_time)
            say(
                f"{fault.title}: told after {outcome.seen_seconds:.1f} s, recovered in {outcome.recovery_seconds:.1f} s"
            )


def close(trial: Trial, collector: Process, result: Soaked, empty_files: int) -> None:
    """Stop all; what the books say."""
    result.complaints += trial.end()
    result.datagrams = trial.received
    for outcome in trial.outcomes:
        result.faults[outcome.fault.title] = result.faults.get(outcome.fault.title, 0) + 1
        result.kept.append(outcome.kept)
        for key, count in outcome.losses.items():
            result.losses[key] = result.losses.get(key, 0) + count
    is_empty = eventually(lambda: descriptors(collector) <= empty_files, SETTLING_SECONDS)
    result.expect(is_empty, f"the fleet's collector holds {descriptors(collector)} files, {empty_files} before")
    report = collector.stop(10.0)
    result.refused = report["refused"]
    assert result.sent is not None
    result.expect(not result.sent.unacknowledged, f"{result.sent.unacknowledged} frames were never acknowledged")
    for name, records in result.sent.records.items():
        row = report["agents"][name]
        told = {key: row[key] for key in ("received", "written", "gaps", "malformed")}
        wanted = {"received": records, "written": records, "gaps": 0, "malformed": 0}
        result.expect(told == wanted, f"{name} sent {records} records: {told}")


def judge(result: Soaked, empty_bytes: int) -> None:
    """Memory and files against their bounds."""
    for name, found in result.slopes.items():
        result.expect(found.grown_bytes <= MOST_GROWN_BYTES, f"{name} grew by {found.grown_bytes:,.0f} bytes")
    agent, collector = result.slopes["agent"], result.slopes["fleet's collector"]
    result.expect(agent.grown_files <= MOST_GROWN_FILES, f"the agent holds {agent.grown_files} files more")
    result.expect(collector.most_bytes <= MOST_COLLECTOR_BYTES, f"the collector took {collector.most_bytes:,} bytes")
    per_agent = result.bytes_per_agent
    result.expect(per_agent <= MOST_AGENT_BYTES, f"an agent takes {per_agent:,.0f} bytes of the collector")
    for name, size in result.bytes_per_stranger.items():
        result.expect(size <= MOST_STRANGER_BYTES, f"a stranger ({name}) takes {size:,.0f} bytes of the collector")
