"""An agent and a collector as a user starts them, in a lab; and what came out, as plain values."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestagent.collector.sinks.reader import packets
from guestagent.lab.hosts import Host
from guestagent.lab.packets import INDEX_BYTES, udp_payload
from guestagent.observe.status import ask

COLLECTOR = "10.9.0.1"
PORT = 4795
PATIENCE_SECONDS = 20.0
"""How long a test waits for what has no time limit of its own: an agent that steps back at once for whatever else runs
on the machine needs some."""
UDP_HEADERS_BYTES = {0x0800: 42, 0x86DD: 62}
"""Ethernet, IPv4 or IPv6 without options, UDP."""


@dataclass(frozen=True)
class Frame:
    """One packet of a capture."""

    time_ns: int
    original_bytes: int
    data: bytes


class Rig:
    """Starts the product's processes on lab hosts, keeps their reports and logs below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.captures = directory / "captures"
        self.environment = {**os.environ, "RUNTIME_DIRECTORY": str(directory / "run"), "GUESTAGENT_TRACEBACK": "1"}
        self._count = 0

    def start(self, host: Host, *arguments: str, report: str = "", **options: Any) -> "Process":
        """Start a verb; `report` names its report file below the rig's directory."""
        self._count += 1
        log = self.directory / f"{arguments[0]}-{self._count}.log"
        argv = [sys.executable, "-m", "guestagent", *arguments]
        if report:
            argv += ["--report", str(self.directory / report)]
        with log.open("wb") as stderr:
            process = host.popen(argv, env=self.environment, stderr=stderr, stdin=subprocess.DEVNULL, **options)
        return Process(process, log, self.directory / report if report else None, self.directory / "run")

    def collect(
        self,
        host: Host,
        *arguments: str,
        write: str = "",
        listen: str = COLLECTOR,
        scheme: str = "tcp",
        report: str = "collector.json",
    ) -> "Process":
        """Start a collector that writes below `captures`, and wait until it listens."""
        address = f"[{listen}]" if ":" in listen else listen
        write = write or str(self.captures)
        process = self.start(
            host,
            "collect",
            "--listen",
            f"{scheme}://{address}:{PORT}",
            "--write",
            write,
            *arguments,
            report=report,
        )
        wait_for(lambda: "listens on" in process.log_text(), "the collector to listen")
        return process

    def agent(
        self,
        host: Host,
        *arguments: str,
        to: str = f"tcp://{COLLECTOR}",
        name: str = "vm",
        connected: bool = True,
        full: bool = True,
    ) -> "Process":
        """Start an agent on eth0, and wait until its collector answered; without `full` under the default budgets."""
        if "-i" not in arguments:
            arguments = ("-i", "eth0", *arguments)
        if full:
            arguments = (*arguments, "--full")
        process = self.start(host, "run", *arguments, "--to", to, "--agent-id", name, report=f"{name}.json")
        if connected:
            wait_for(lambda: process.status()["link"]["connected"], "the agent to be connected")
        return process

    def files(self, name: str = "vm") -> list[Path]:
        """The capture files of one agent, in the order they were written."""
        return sorted((self.captures / name).glob("*.pcapng"), key=lambda path: (path.stat().st_mtime_ns, path.name))

    def frames(self, name: str = "vm") -> Iterator[Frame]:
        """Every packet of one agent's files."""
        for path in self.files(name):
            yield from frames_of(path)


class Process:
    """A started verb."""

    def __init__(self, process: "subprocess.Popen[Any]", log: Path, report: Path | None, run: Path) -> None:
        self.process, self._log, self._report, self._run = process, log, report, run

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def log_text(self) -> str:
        """What it said on standard error so far."""
        return self._log.read_text()

    def status(self) -> dict[str, Any]:
        """Its snapshot, {"link": {"connected": False}} while it does not answer yet."""
        for path in self._run.glob(f"*-{self.pid}.sock"):
            if snapshot := ask(path):
                return snapshot
        return {"link": {"connected": False}, "agents": {}, "captured": 0}

    def stop(self, timeout: float = 5.0, number: signal.Signals = signal.SIGTERM) -> dict[str, Any]:
        """End it as an operator does; its report."""
        self.process.send_signal(number)
        return self.ended(timeout)

    def ended(self, timeout: float = 5.0, code: int = 0) -> dict[str, Any]:
        """Wait for its end, expect this exit code, and return the report."""
        assert code == self.process.wait(timeout), self.log_text()
        assert "Traceback" not in self.log_text(), self.log_text()
        report = json.loads(self._report.read_text()) if self._report and self._report.exists() else {}
        if report.get("role") == "agent":
            assert_nothing_is_missing(report)
        return report

    def kill(self) -> None:
        """kill -9, and wait."""
        self.process.kill()
        self.process.wait()

    def cpu_seconds(self) -> float:
        """User and system time so far, from outside."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Resident, ring included."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def frames_of(path: Path) -> Iterator[Frame]:
    """Every packet of a file."""
    for _, time_ns, original, data in packets(path.read_bytes()):
        yield Frame(time_ns, original, bytes(data))


def udp_indexes(frames: Iterable[Frame], port: int, size: int) -> list[int]:
    """The index of every datagram to `port`; its bytes must be those of its index."""
    whole, cut = udp_copies(frames, port, size)
    assert not cut, f"{len(cut)} datagrams were cut on the way"
    return whole


def udp_copies(frames: Iterable[Frame], port: int, size: int) -> tuple[list[int], list[Frame]]:
    """(indexes of whole datagrams to `port`, frames that were cut); the bytes must be those of the index.

    A cut frame holds its headers and tells its original length.
    """
    indexes, cut = [], []
    for frame in frames:
        ethertype = int.from_bytes(frame.data[12:14], "big")
        start = UDP_HEADERS_BYTES.get(ethertype, 0)
        if not start or int.from_bytes(frame.data[start - 6 : start - 4], "big") != port:
            continue
        if frame.data[23 if ethertype == 0x0800 else 20] != 17:
            continue
        assert frame.original_bytes == start + size, "the original length of a copy was lost"
        payload = frame.data[start : start + size]
        if len(payload) < size:
            cut.append(frame)
            continue
        index = int.from_bytes(payload[:INDEX_BYTES], "big")
        assert payload == udp_payload(index, size), f"datagram {index} was changed on the way"
        indexes.append(index)
    return indexes, cut


def wait_for(condition: Callable[[], Any], what: str, timeout: float = PATIENCE_SECONDS) -> Any:
    """Poll until `condition()` is true; its value."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout} s in vain for {what}")


def assert_nothing_is_missing(ledger: dict[str, Any]) -> None:
    """Of an agent that ended, whatever became of its link: each record was delivered, or counted as lost."""
    lost = sum(ledger[key] for key in ("capped", "dropped_by_ring", "unsupported_gso", "lost_on_link"))
    assert ledger["captured"] == ledger["delivered"] + lost
    assert ledger["in_flight"] == 0


def assert_ledger_closes(ledger: dict[str, Any], collector: dict[str, Any], name: str = "vm") -> None:
    """The identity holds exactly after a drain, and both sides counted the same."""
    assert_nothing_is_missing(ledger)
    received = collector["agents"][name]
    assert received["received"] - received["unsupported_gso"] == received["written"] == ledger["delivered"]
    assert received["gaps"] == 0


def assert_one_sentence(done: "subprocess.CompletedProcess[str]", code: int, words: list[str]) -> None:
    """A refusal: its exit code, one line of ours that has these words, and no traceback."""
    said = [line for line in done.stderr.splitlines() if line.startswith("guestagent: ")]
    assert code == done.returncode, done.stderr
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in said[0], done.stderr
