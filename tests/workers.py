"""`collect --workers` as a process, and agents on sockets that knock at it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guestagent import pki
from guestagent.links.secure import Credentials
from guestagent.observe.status import ask
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Deframer, Kind
from guestagent.tapstream.hello import encode_agent_hello
from tests.captures import numbers, packet
from tests.fakes import agent_hello, packets_frame

WORKERS = 3
PATIENCE_SECONDS = 10.0
NAMES = [f"vm-{number}" for number in range(12)]


class Collector:
    """`guestagent collect --workers 3`, started as a user starts it."""

    def __init__(self, root: Path, *arguments: str, scheme: str = "tcp", before: Sequence[str] = ()) -> None:
        self.root, self.captures = root, root / "captures"
        self._log, self._report = root / "log", root / "report.json"
        argv = [*before, sys.executable, "-m", "guestagent", "collect", "--listen", f"{scheme}://127.0.0.1:0"]
        argv += ["--write", str(self.captures), "--workers", str(WORKERS), "--report", str(self._report), *arguments]
        environment = {**os.environ, "RUNTIME_DIRECTORY": str(root / "run"), "GUESTAGENT_TRACEBACK": "1"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(argv, env=environment, stderr=log, stdin=subprocess.DEVNULL)
        until(lambda: "listens on" in self.log(), "the collector to listen")
        self.port = int(self.log().partition("listens on 127.0.0.1:")[2].partition(",")[0])

    def log(self) -> str:
        """What it and its workers said."""
        return self._log.read_text()

    def status(self) -> dict[str, Any]:
        """Its snapshot, {} while it has none."""
        return ask(self.root / "run" / f"collector-{self.process.pid}.sock") or {}

    def worker_pids(self) -> list[int]:
        """Of all that are there."""
        return [one["pid"] for one in self.status().get("workers", ()) if one["pid"]]

    def stop(self) -> dict[str, Any]:
        """End it as an operator does; the report."""
        self.process.send_signal(signal.SIGTERM)
        assert 0 == self.process.wait(PATIENCE_SECONDS), self.log()
        assert "Traceback" not in self.log(), self.log()
        assert "bug of ours" not in self.log(), self.log()
        assert [] == list((self.root / "run").iterdir()), "sockets are left behind"
        report: dict[str, Any] = json.loads(self._report.read_text())
        return report


class Agent:
    """An agent's side of one run; it comes back as often as it is told to."""

    def __init__(self, name: str, port: int, tls: Credentials | None = None, **changes: Any) -> None:
        self.name, self._port, self._tls = name, port, tls
        self._hello = agent_hello(os.urandom(16).hex(), agent_id=name, **changes)
        self.sequence = self.acknowledged = 0
        self.socket: socket.socket | None = None
        self.leases: list[dict[str, Any]] = []

    def connect(self) -> dict[str, Any]:
        """A new connection; the collector's answer."""
        plain = socket.create_connection(("127.0.0.1", self._port), PATIENCE_SECONDS)
        plain.settimeout(PATIENCE_SECONDS)
        self.socket = self._tls.wrap(plain, "127.0.0.1") if self._tls else plain
        self._deframer = Deframer()
        self._deframer.welcome()
        self.say(frames.PREFACE + frames.encode_json(Kind.HELLO, encode_agent_hello(self._hello)))
        answer: dict[str, Any] = {}
        while not answer:
            answer = next((value for kind, _, value in self.hear() if kind == Kind.HELLO), {})
        return answer

    def say(self, data: bytes) -> None:
        """Send everything."""
        assert self.socket is not None
        while data:
            data = data[self.socket.send(data) :]

    def hear(self) -> list[tuple[Kind, int, dict[str, Any]]]:
        """The next frames."""
        assert self.socket is not None
        space = self._deframer.space()[: 1 if self._tls else None]  # a secure socket fills all that it is given
        self._deframer.filled(self.socket.recv_into(space))
        heard = []
        for frame in self._deframer.frames():
            value = frames.decode_json(frame)
            heard.append((Kind(frame.kind), frame.sequence, value))
            if frame.kind == Kind.ACK:
                self.acknowledged = frame.sequence
            if frame.kind == Kind.LEASE:
                self.leases.append(value)
        return heard

    def send(self, count: int) -> None:
        """So many frames of one packet each; the packet's number is the frame's."""
        for _ in range(count):
            self.sequence += 1
            self.say(packets_frame(self.sequence, [packet(self.sequence)]))
        while self.acknowledged < self.sequence:
            self.hear()

    def leave(self) -> None:
        """Goodbye, and wait for the end."""
        self.say(frames.encode_json(Kind.BYE, {"reason": "done"}))
        assert self.socket is not None
        while self.socket.recv(4096):
            pass
        self.drop()

    def drop(self) -> None:
        """Without goodbye."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def until(condition: Callable[[], Any], what: str) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:.0f} s in vain for {what}"
        time.sleep(0.01)


def written(captures: Path, name: str) -> list[int]:
    """The numbers of all packets of an agent, in the order of its files."""
    return [number for path in sorted((captures / name).glob("*.pcapng")) for number in numbers(path)]


class Keys:
    """An authority, and certificates from it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        pki.make("init", "", (), str(folder))
        pki.make("collector", "collector-1", ("127.0.0.1",), str(folder))

    def of(self, name: str) -> list[str]:
        """Authority, certificate and key."""
        return [str(self._folder / one) for one in ("ca.crt", f"{name}.crt", f"{name}.key")]

    def flags(self) -> list[str]:
        """The collector's."""
        return [
            f"--tls-{flag}={path}" for flag, path in zip(("ca", "cert", "key"), self.of("collector-1"), strict=True)
        ]

    def agent(self, name: str) -> Credentials:
        """A new certificate for an agent."""
        pki.make("agent", name, (), str(self._folder))
        return Credentials(*self.of(name), server_side=False)
