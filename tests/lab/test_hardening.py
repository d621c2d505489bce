"""What the processes may still do once they run: asked of the kernel, with the unit's own filters around them."""

import ctypes
import os
import re
import signal
import socket
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_send
from guestagent.observe.metrics import families
from guestagent.observe.status import ask
from tests.lab.rig import Rig, assert_ledger_closes, udp_indexes, wait_for
from tests.units import UNITS, allowed_calls, unit

NET_RAW = 1 << 13
NOBODY = 65534


def capabilities(pid: int) -> dict[str, int]:
    """CapEff and the like, by name, and NoNewPrivs."""
    found = re.findall(
        r"^(Cap\w+|NoNewPrivs|Seccomp):\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
    )
    return {name: int(value, 16) for name, value in found}


def test_root_by_hand_gives_up_what_it_does_not_need(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Started by root, the agent keeps CAP_NET_RAW and the collector nothing; neither can gain any by exec."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm)
    wait_for(lambda: capabilities(collector.pid)["NoNewPrivs"], "the collector to give up its privileges")
    for process, kept in ((agent, NET_RAW), (collector, 0)):
        has = capabilities(process.pid)

        assert {kept} == {has["CapEff"], has["CapPrm"], has["CapBnd"]}
        assert (0, 0, 1) == (has["CapInh"], has["CapAmb"], has["NoNewPrivs"])
    ledger, report = agent.stop(), collector.stop()
    assert_ledger_closes(ledger, report)
    assert not list((rig.directory / "run").glob("*.sock"))


@pytest.mark.root
def test_files_of_others_are_still_written(rig: Rig, pair: tuple[Host, Host]) -> None:
    """In another user's directory the report is written all the same; the capability for that is kept and named."""
    vm, _ = pair
    os.chown(rig.directory, NOBODY, NOBODY)
    (rig.directory / "run").mkdir()
    agent = rig.agent(vm, connected=False)
    wait_for(lambda: "keeping CAP_DAC_OVERRIDE" in agent.log_text(), "the agent to say so")

    assert agent.stop()["schema"] == "guestagent.ledger/1"


def confine(calls: set[str]) -> None:
    """What systemd does for SystemCallFilter and MemoryDenyWriteExecute, in a fresh child."""
    seccomp, libc = ctypes.CDLL("libseccomp.so.2"), ctypes.CDLL(None)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(0x00050000 | 1))  # SCMP_ACT_ERRNO(EPERM)
    for name in calls:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            seccomp.seccomp_rule_add_array(context, 0x7FFF0000, number, 0, None)  # SCMP_ACT_ALLOW
    libc.prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN: Linux 6.3
    if seccomp.seccomp_load(context):
        raise OSError("seccomp_load")


CONFINED = """
import os, sys
sys.path.insert(0, {root!r})
from tests.lab.test_hardening import confine
confine({calls!r})
os.execv(sys.executable, [sys.executable, "-m", "guestagent", *{arguments!r}])
"""


@pytest.mark.root
@pytest.mark.parametrize("engine", ["ring", "portable"])
def test_the_agent_lives_with_its_units_confinement(rig: Rig, pair: tuple[Host, Host], engine: str) -> None:
    """With CAP_NET_RAW alone, under the unit's system call filter and without W+X memory, it copies, reloads
    a filter, serves metrics and ends as it should."""
    vm, peer = pair
    collector = rig.collect(peer)
    settings = unit("guestagent")
    home = rig.directory / "home"
    home.mkdir()
    config = home / "agent.toml"
    config.write_text(
        f'to = "tcp://10.9.0.1"\ninterface = "eth0"\nfull = true\nagent_id = "vm"\nengine = "{engine}"\n'
        f'report = "{home}/vm.json"\nmetrics = "127.0.0.1:9795"\n'
    )
    arguments = ["run", "-c", str(config)]
    calls = allowed_calls(settings["SystemCallFilter"])
    script = CONFINED.format(root=str(UNITS.parents[1]), calls=calls, arguments=arguments)
    capability = settings["AmbientCapabilities"][0].removeprefix("CAP_").lower()
    only = f"-all,+{capability}"
    environment = {**rig.environment, "RUNTIME_DIRECTORY": str(home / "run")}
    log = (rig.directory / "confined.log").open("wb")
    process = vm.popen(
        ["setpriv", "--no-new-privs", f"--inh-caps={only}",
         f"--ambient-caps={only}", f"--bounding-set={only}", sys.executable, "-c", script],
        env=environment, stderr=log,
    )  # fmt: skip
    log.close()

    def said(text: str) -> bool:
        return text in (rig.directory / "confined.log").read_text()

    wait_for(lambda: said("connected to collector") or process.poll() is not None, "the agent to be connected")
    assert process.poll() is None, (rig.directory / "confined.log").read_text()
    has = capabilities(process.pid)
    vm.call(udp_send, "10.9.0.1", 9000, 100, 2000, 100)
    config.write_text(config.read_text() + 'filter = "port 9000"\n')
    process.send_signal(1)
    wait_for(lambda: said("read again: filter"), "the agent to take the filter")
    vm.call(udp_send, "10.9.0.1", 9001, 100, 2000, 100)
    vm.call(udp_send, "10.9.0.1", 9000, 100, 2000, 100, first_index=100)
    text = vm.call(_scrape)
    process.terminate()

    assert (0, NET_RAW, 2) == (process.wait(5), has["CapEff"], has["Seccomp"])
    report = collector.stop()
    assert udp_indexes(rig.frames(), 9000, 100) == list(range(200))
    assert udp_indexes(rig.frames(), 9001, 100) == []
    assert report["agents"]["vm"]["gaps"] == 0
    assert 'guestagent_captured_records_total{interface="eth0"}' in text
    assert "guestagent_link_connected 1.0" in text


@pytest.mark.root
def test_a_collector_with_workers_lives_with_its_units_confinement(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Without any capability, under the unit's system call filter and without W+X memory, workers are forked, hand
    connections over, read their config again, and one that was killed is replaced; no packet is lost."""
    vm, peer = pair
    home = rig.directory / "home"
    home.mkdir()
    config = home / "collect.toml"
    config.write_text(
        f'listen = "tcp://10.9.0.1"\nwrite = "{rig.captures}"\nworkers = 2\nreport = "{home}/collector.json"\n'
    )
    calls = allowed_calls(unit("guestagent-collector")["SystemCallFilter"])
    script = CONFINED.format(root=str(UNITS.parents[1]), calls=calls, arguments=["collect", "-c", str(config)])
    log = rig.directory / "confined.log"
    with log.open("wb") as stderr:
        process = peer.popen(
            ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-c", script],
            env={**rig.environment, "RUNTIME_DIRECTORY": str(home / "run")},
            stderr=stderr,
        )
    wait_for(lambda: "listens on" in log.read_text() or process.poll() is not None, "the collector to listen")
    assert process.poll() is None, log.read_text()
    agents = [rig.agent(vm, "--filter", f"udp port {port}", name=f"vm-{port}") for port in (9000, 9001, 9003)]

    def workers() -> list[dict[str, int]]:
        return list((ask(home / "run" / f"collector-{process.pid}.sock") or {}).get("workers", ()))

    before = workers()
    has = [capabilities(pid) for pid in (process.pid, *(one["pid"] for one in before))]
    for port in (9000, 9001, 9003):
        vm.call(udp_send, "10.9.0.1", port, 100, 2000, 100)
    os.kill(before[0]["pid"], signal.SIGKILL)
    wait_for(lambda: [one["restarts"] for one in workers()] == [1, 0], "a worker in the place of the killed one")
    config.write_text(config.read_text() + 'rotate_bytes = "1MB"\n')
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: log.read_text().count("read again: rotate_bytes") == 3, "the reload")
    for port in (9000, 9001, 9003):
        vm.call(udp_send, "10.9.0.1", port, 100, 2000, 100, first_index=100)
    for agent in agents:
        wait_for(lambda agent=agent: agent.status()["link"]["connected"], "the agent to be back")
        ledger = agent.stop()
        assert (0, 0) == (ledger["lost_on_link"], ledger["dropped_by_ring"])
    process.terminate()

    assert 0 == process.wait(5), log.read_text()
    assert {(0, 0, 0, 1, 2)} == {
        tuple(one[key] for key in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")) for one in has
    }
    for port in (9000, 9001, 9003):
        assert udp_indexes(rig.frames(f"vm-{port}"), port, 100) == list(range(200))
        assert {path.stat().st_mode & 0o777 for path in rig.files(f"vm-{port}")} == {0o640}


def _scrape() -> str:
    with urlopen("http://127.0.0.1:9795/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_metrics_are_the_books(rig: Rig, pair: tuple[Host, Host]) -> None:
    """What agent and collector tell Prometheus while they run is what their status tells, and a silent client holds
    nobody up."""
    vm, peer = pair
    collector = rig.collect(peer, "--metrics", f"unix:{rig.directory}/c.sock", "--log", "json")
    agent = rig.agent(vm, "--metrics", "127.0.0.1:9795")
    vm.call(udp_send, "10.9.0.1", 9000, 500, 5000, 100)
    wait_for(lambda: agent.status()["delivered"] >= 500, "the copies to be delivered")
    text, status = vm.call(_scrape), agent.status()
    served = _ask_unix(f"{rig.directory}/c.sock")
    ledger, report = agent.stop(), collector.stop()

    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert {family.name for family in families(status) if family.samples} <= names
    assert 'guestagent_collector_received_records_total{agent="vm"}' in served
    assert '"message": "collector ' in collector.log_text()
    assert_ledger_closes(ledger, report)


def _ask_unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(path)
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while part := client.recv(65536):
            answer += part
    return answer.decode()
