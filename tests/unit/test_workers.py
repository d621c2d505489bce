"""Several workers behind one port, as processes: each agent has one writer, whatever door it comes through."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from guestagent import pki
from guestagent.collector.handover import open_mail, owner_of
from guestagent.links.secure import Credentials
from guestagent.model import Interface
from guestagent.observe.status import ask
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Deframer, Kind
from guestagent.tapstream.hello import encode_agent_hello
from guestagent.worker import Post, _let_go
from tests.fakes import agent_hello, packets_frame
from tests.unit.test_leases import WHOLE
from tests.unit.test_sinks import numbers, packet

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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Collector]]:
    """Starts collectors that end with the test."""
    started: list[Collector] = []

    def begin(*arguments: str, **options: Any) -> Collector:
        started.append(Collector(tmp_path, *arguments, **options))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


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


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_each_agent_has_one_writer_whatever_door_it_comes_through(
    start: Callable[..., Collector], tmp_path: Path, scheme: str
) -> None:
    """Twelve agents come three times through doors that the kernel picks: one file each, each packet in it once."""
    keys = Keys(tmp_path / "pki") if scheme == "tls" else None
    collector = start(*(keys.flags() if keys else ()), scheme=scheme)
    agents = [Agent(name, collector.port, keys.agent(name) if keys else None) for name in NAMES]
    for visit in range(3):
        for agent in agents:
            assert (agent.sequence or None) == agent.connect()["held_sequence"]
            agent.send(4)
            if visit < 2:
                agent.drop()
    status = collector.status()
    for agent in agents:
        agent.leave()
    report = collector.stop()

    assert len(NAMES) == status["connections"]
    assert WORKERS == len(status["workers"]) == len({one["pid"] for one in status["workers"]})
    assert sum(one["handed_over"] for one in report["workers"]) > len(NAMES), "the doors were the right ones by chance"
    assert set(NAMES) == set(report["agents"])
    for name in NAMES:
        row = report["agents"][name]
        assert (12, 12, 0, []) == (row["received"], row["written"], row["gaps"], row["unclean_ends"])
        assert list(range(1, 13)) == written(collector.captures, name)
        assert 1 == len(list((collector.captures / name).glob("*.pcapng")))


def test_a_worker_that_dies_costs_no_packet(start: Callable[..., Collector]) -> None:
    """kill -9 of each worker: another one takes its place, its agents come back and go on where the file stands."""
    collector = start()
    agents = [Agent(name, collector.port) for name in NAMES]
    for agent in agents:
        agent.connect()
        agent.send(3)
    first = collector.worker_pids()
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(set(collector.worker_pids()) - set(first)) == WORKERS, "new workers")
    for agent in agents:
        agent.drop()
        assert 3 == agent.connect()["held_sequence"]
        agent.send(3)
        agent.leave()
    report = collector.stop()

    assert [1] * WORKERS == [one["restarts"] for one in report["workers"]]
    assert WORKERS == collector.log().count("it starts again")
    for name in NAMES:
        assert list(range(1, 7)) == written(collector.captures, name)


def test_workers_end_with_the_process_above(start: Callable[..., Collector]) -> None:
    """kill -9 of the process above: no worker is left, and the next collector takes the directory over."""
    collector = start()
    agent = Agent("vm-1", collector.port)
    agent.connect()
    agent.send(3)
    workers = collector.worker_pids()
    collector.process.kill()
    collector.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the workers to end")
    agent.drop()
    again = start()
    agent._port = again.port
    assert 3 == agent.connect()["held_sequence"]
    agent.leave()
    again.process.send_signal(signal.SIGTERM)
    assert 0 == again.process.wait(PATIENCE_SECONDS)


def test_leases_are_decided_where_all_workers_are_seen(start: Callable[..., Collector]) -> None:
    """Agents of one domain get leases on each other across workers; an address that two of them have is nobody's."""
    collector = start()
    agents = [
        Agent(
            name,
            collector.port,
            dedupe="vpc",
            interfaces=(Interface(0, "eth0", "02:00:00:00:00:01", 1500, addresses=(address,)),),
        )
        for name, address in (("vm-0", "10.0.0.1"), ("vm-1", "10.0.0.2"), ("vm-2", "10.0.0.3"), ("vm-3", "10.0.0.3"))
    ]
    assert len({owner_of(agent.name, WORKERS) for agent in agents}) > 1
    for agent in agents:
        agent.connect()
    for sequence in (1, 2):
        for agent in agents:
            report = {"limits": WHOLE, "interfaces": {"0": {"dropped_by_ring": 0}}}
            agent.say(frames.encode_json(Kind.REPORT, report, sequence=sequence))

    def heard(agent: Agent) -> bool:
        agent.hear()
        return bool(agent.leases and agent.leases[-1]["peers"])

    expected = [["10.0.0.2"], ["10.0.0.1"], ["10.0.0.1", "10.0.0.2"], ["10.0.0.1", "10.0.0.2"]]
    for agent, peers in zip(agents, expected, strict=True):
        # At first the address may be one agent's: that of another worker may not have been seen yet.
        until(lambda agent=agent, peers=peers: heard(agent) and agent.leases[-1]["peers"] == peers, f"{agent.name}")
    for agent in agents:
        agent.leave()
    collector.stop()


def test_a_fault_that_no_restart_mends_ends_all(start: Callable[..., Collector], tmp_path: Path) -> None:
    """A capture that a worker can't read at its start is one sentence and exit code 2."""
    (tmp_path / "captures" / "vm-1").mkdir(parents=True)
    capture = tmp_path / "captures" / "vm-1" / "x.pcapng"
    capture.write_bytes(b"x")
    capture.chmod(0)
    collector = start(before=("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ())
    assert 2 == collector.process.wait(PATIENCE_SECONDS)
    assert "Traceback" not in collector.log()


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_a_reload_keeps_every_connection(start: Callable[..., Collector], tmp_path: Path, workers: int) -> None:
    """SIGHUP: other quotas and another list of agents at once; a bad file changes nothing and says why; nobody is lost.

    Only the agent that is not on the list any more is cut off, and told so.
    """
    keys, config = Keys(tmp_path / "pki"), tmp_path / "collect.toml"

    def write(text: str) -> None:
        config.write_text(text)
        config.chmod(0o600)

    def reload(text: str, said: str, times: int) -> None:
        write(text)
        collector.process.send_signal(signal.SIGHUP)
        until(lambda: collector.log().count(said) == times, said)

    write('tls = {allow = ["vm-*"]}\n')
    collector = start("-c", str(config), "--workers", str(workers), *keys.flags(), scheme="tls")
    stays, goes, comes = (Agent(name, collector.port, keys.agent(name)) for name in ("vm-1", "vm-2", "vm-3"))
    name = stays.connect()["collector_id"]
    goes.connect()
    for agent in (stays, goes):
        agent.send(3)
    everybody = workers if workers == 1 else workers + 1
    good = 'rotate_bytes = "2kB"\ntls = {allow = ["vm-1", "vm-3"]}\n'
    reload(good, "the config was read again: tls_allow, rotate_bytes", everybody)
    while not any(kind == Kind.BYE and "not on the list" in value["reason"] for kind, _, value in goes.hear()):
        pass
    goes.drop()
    stays.send(40)
    reload('rotate_bytes = "no size"\n', "the old one stays in force", 1)
    reload(f'{good}collector_id = "other"\n', "what is read at the start alone: collector_id", everybody)
    stays.send(3)
    if workers > 1:  # the successor of a worker obeys what is in force, not what waits for a restart
        os.kill(collector.status()["workers"][owner_of("vm-3", workers)]["pid"], signal.SIGKILL)
        until(lambda: sum(one["restarts"] for one in collector.status()["workers"]) == 1, "another worker")
    assert name == comes.connect()["collector_id"]
    comes.send(3)
    for agent in (stays, comes):
        agent.leave()
    report = collector.stop()

    assert 46 == report["agents"]["vm-1"]["written"]
    assert list(range(1, 47)) == sorted(written(collector.captures, "vm-1"))
    assert 1 < len(list((collector.captures / "vm-1").glob("*.pcapng"))), "the new quota holds"


def test_the_certificate_names_files_and_worker(start: Callable[..., Collector], tmp_path: Path) -> None:
    """A hello in another agent's name changes nothing: the certificate's name says who writes, and where."""
    keys = Keys(tmp_path / "pki")
    collector = start(*keys.flags(), scheme="tls")
    real, claimed = "vm-1", "vm-3"
    assert owner_of(real, WORKERS) != owner_of(claimed, WORKERS)
    agent = Agent(claimed, collector.port, keys.agent(real))
    for visit in (1, 2):
        assert (agent.sequence or None) == agent.connect()["held_sequence"]
        agent.send(2 * visit)
        agent.drop()
    collector.stop()

    assert [1, 2, 3, 4, 5, 6] == written(collector.captures, real)
    assert {real} == {path.name for path in collector.captures.iterdir() if path.is_dir()}


@pytest.mark.parametrize("has_proc", [True, False])
def test_a_worker_lets_go_of_what_is_open(monkeypatch: pytest.MonkeyPatch, has_proc: bool) -> None:
    """The fork keeps what its post names and no other descriptor, and does not try each number that there may be."""
    monkeypatch.setattr(os, "sysconf", {"SC_OPEN_MAX": 2**30}.__getitem__)
    monkeypatch.setattr(os, "closerange", mock.Mock(side_effect=AssertionError))
    if not has_proc:
        monkeypatch.setattr(os, "listdir", mock.Mock(side_effect=FileNotFoundError))
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(open_mail(2)) as mail, socket.socket() as door:
        post = Post(None, None, None, 0, [(None, door)], mail, -1)  # type: ignore[arg-type]
        kept = {0, 1, 2, *(one.fileno() for one in (theirs, mail.inboxes[0], *mail.outboxes, door))}
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            try:
                _let_go(post, theirs)  # type: ignore[arg-type]
                theirs.sendall(json.dumps([one for one in range(2000) if is_open(one)]).encode())
            finally:
                os._exit(0)
        theirs.close()
        assert kept == set(json.loads(ours.recv(1 << 16)))
        os.waitpid(pid, 0)
        assert time.monotonic() - began < PATIENCE_SECONDS


def is_open(descriptor: int) -> bool:
    """Does this process have it?"""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
