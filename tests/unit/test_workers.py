"""Several workers behind one port, as processes: each agent has one writer, whatever door it comes through."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest

from guestagent.collector.handover import open_mail, owner_of
from guestagent.model import Interface
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.worker import Post, _let_go
from tests.unit.test_leases import WHOLE
from tests.workers import NAMES, PATIENCE_SECONDS, WORKERS, Agent, Collector, Keys, until, written


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
