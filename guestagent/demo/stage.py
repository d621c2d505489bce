"""The demo's stage: two hosts, their traffic, the agent and the collector as processes, and the outcome."""

import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestagent.collector.sinks import reader
from guestagent.collector.summary import WELL_KNOWN_PORTS, Summary, summarize
from guestagent.errors import GuestagentError, HostError, RunError
from guestagent.lab.hosts import Host, Lab
from guestagent.lab.tasks import Task
from guestagent.lab.traffic import BULK_PORT, DNS_PORT, HTTP_PORT, mixed, ping, serve_all
from guestagent.observe.status import ask
from guestagent.observe.words import LiveLine, ledger_sentence

AGENT_ID = "demo-vm"
VM4, VM6, PEER4, PEER6 = "10.9.0.2", "fd00:9::2", "10.9.0.1", "fd00:9::1"
RUN_WORDS = ("run", "-i", "eth0", "--to", f"tcp://{PEER4}", "--full", "--agent-id", AGENT_ID)
COLLECT_WORDS = ("collect", "--listen", f"tcp://{PEER4}:4795", "--write")
CAPTURES = "captures"
STATUS_DIRECTORY = Path("/run")
"""Each host gets an empty one of its own: status sockets there vanish with the host, even after a kill -9."""
READY_SECONDS = 10.0
"""An interpreter starts in 0.2 s; a small, busy VM may need many times that."""
END_SECONDS = 10.0
"""The agent drains and ends in under 2 s, the collector at once."""
LOOK_SECONDS, LIVE_SECONDS = 0.02, 0.5
SERVICES = {**WELL_KNOWN_PORTS, BULK_PORT: "bulk stream"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo shows in the end."""

    capture: Path
    seconds: float
    """How long the traffic really took."""
    traffic: dict[str, int]
    agent: dict[str, Any]
    collector: dict[str, int]
    cpu_seconds: float
    """Of the agent, while there was traffic."""
    summary: Summary

    def trouble(self) -> str:
        """By how much the ledger does not close between one stage and the next; empty where it does."""
        agent, collector = self.agent, self.collector
        differences = {
            "captured and not accounted for": agent["in_flight"],
            "delivered and not written": agent["delivered"] - collector["written"],
            "written and not in the file": collector["written"] - self.summary.packets,
            "missing in the sequence": collector["gaps"],
        }
        return ", ".join(f"{count:,} {what}" for what, count in differences.items() if count)


class Steps:
    """Where the demo is: one line on a terminal, else a line for each step."""

    def __init__(self) -> None:
        self._live = LiveLine()
        self.update, self.clear = self._live.show, self._live.clear

    def say(self, text: str) -> None:
        """The next step begins."""
        self.update(text)
        if not self._live.is_on:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


class _Daemon:
    """The agent or the collector: a process, its log and its report."""

    def __init__(self, role: str, host: Host, folder: Path, words: Sequence[str]) -> None:
        """Start `guestagent WORDS` on its host, out of reach of our terminal's Ctrl-C."""
        self.role = role
        self._host = host
        self._log, self._report = folder / f"{role}.log", folder / f"{role}.json"
        # The child shall import what we import, whatever lies in its directory.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment["RUNTIME_DIRECTORY"] = str(STATUS_DIRECTORY)
        command = [sys.executable, "-P", "-m", "guestagent", *words, "--report", str(self._report)]
        with self._log.open("wb") as log:
            self.process = host.popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def status(self) -> dict[str, Any] | None:
        """What it says of itself; None before it listens. Raises where it has ended."""
        if self.process.poll() is not None:
            raise self._failure("ended by itself")
        return self._host.call(ask, STATUS_DIRECTORY / f"{self.role}-{self.process.pid}.sock")

    def wait_until(self, ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask until `ready` likes the answer, and return it."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            snapshot = self.status()
            if snapshot is not None and ready(snapshot):
                return snapshot
            time.sleep(LOOK_SECONDS)
        raise self._failure(f"was not ready after {READY_SECONDS:.0f} s")

    def stop(self) -> dict[str, Any]:
        """End it as systemd would, and read its report."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            if self.process.wait(END_SECONDS) == 0:
                report: dict[str, Any] = json.loads(self._report.read_bytes())
                return report
        raise self._failure("did not end well")

    def _failure(self, what: str) -> GuestagentError:
        last = (self._log.read_text(errors="replace").splitlines() or ["it said nothing"])[-1]
        kind = HostError if self.process.returncode == HostError.exit_code else RunError
        return kind(f"the {self.role} {what} ({self._log}): {last.removeprefix('guestagent: ')}")


class Stage:
    """The two hosts and all that runs on them."""

    def __init__(self, lab: Lab, here: Path) -> None:
        self.steps = Steps()
        self._lab, self._here = lab, here
        self._daemons: list[_Daemon] = []
        self._folder: Path | None = None

    def play(self, seconds: float) -> Outcome:
        """From the cable to the summary."""
        self.steps.say("making two hosts and a cable")
        vm, peer = self._lab.host("vm"), self._lab.host("peer")
        self._lab.link(vm, peer)
        for host in (vm, peer):
            host.run(["mount", "-t", "tmpfs", "guestagent", str(STATUS_DIRECTORY)])
        self._folder = _new_folder(self._here)
        capture = self._folder / f"{AGENT_ID}.pcapng"

        self.steps.say("starting servers and the collector on the peer, the agent on the vm")
        peer.start(serve_all)
        collector = self._start("collector", peer, [*COLLECT_WORDS, str(capture)])
        collector.wait_until(lambda _: True)
        agent = self._start("agent", vm, RUN_WORDS)
        before = agent.wait_until(lambda snapshot: bool(snapshot["link"] and snapshot["link"]["connected"]))
        for port in (HTTP_PORT, DNS_PORT, BULK_PORT):
            peer.wait_for_port(port)

        self.steps.say(f"traffic for {seconds:g} s: web pages, names, bulk streams and pings over IPv4 and IPv6")
        started = time.monotonic()
        traffic = self._watch(vm.start(_use_everything, seconds), seconds)
        took_seconds = time.monotonic() - started
        after = agent.wait_until(lambda _: True)

        self.steps.say("ending agent and collector")
        ledger, received = agent.stop(), collector.stop()["agents"][AGENT_ID]
        self.steps.say("reading the capture")
        cpu_seconds = after["cpu_seconds"] - before["cpu_seconds"]
        return Outcome(capture, took_seconds, traffic, ledger, received, cpu_seconds, _summary(capture))

    def _start(self, role: str, host: Host, words: Sequence[str]) -> _Daemon:
        assert self._folder is not None
        self._daemons.append(_Daemon(role, host, self._folder, words))
        return self._daemons[-1]

    def _watch(self, clients: Task[dict[str, int]], seconds: float) -> dict[str, int]:
        """Show how it goes until the clients are done, and return their counts."""
        started = time.monotonic()
        while not clients.join(LIVE_SECONDS):
            passed = min(seconds, time.monotonic() - started)
            for snapshot in [daemon.status() for daemon in self._daemons]:
                if snapshot and snapshot["role"] == "agent":
                    self.steps.update(f"traffic {passed:.0f}/{seconds:.0f} s: {ledger_sentence(snapshot)}")
        try:
            return clients.result()
        except RunError as error:
            raise RunError(f"the demo's own traffic failed: {str(error).splitlines()[-1]}") from error

    @property
    def has_daemons(self) -> bool:
        """Whether anything of ours was started that writes."""
        return bool(self._daemons)

    def discard(self) -> None:
        """After an interruption nobody needs half a capture, or daemons that drain."""
        self.steps.clear()
        for daemon in self._daemons:
            daemon.process.kill()
            daemon.process.wait()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):  # captures of earlier demos stay
                (self._here / CAPTURES).rmdir()


def _use_everything(seconds: float) -> dict[str, int]:
    """The clients on the vm; returns their counts."""
    return {"pings": ping(PEER4) + ping(PEER6), **mixed(seconds, PEER4, PEER6)}


def _new_folder(here: Path) -> Path:
    """captures/demo-TIME below `here`; a temporary directory where that can't be written or our hosts can't see it."""
    folder = here / CAPTURES / time.strftime("demo-%Y%m%d-%H%M%S")
    with suppress(OSError):
        if not folder.is_relative_to(STATUS_DIRECTORY):
            folder.mkdir(parents=True)
            return folder
    try:
        return Path(tempfile.mkdtemp(prefix="guestagent-demo-"))
    except OSError as error:
        raise RunError(f"the capture can be kept neither in {folder} nor in a temporary directory: {error}") from error


def _summary(capture: Path) -> Summary:
    with capture.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return summarize(((original, frame) for _, _, original, frame in reader.packets(data)), SERVICES)
