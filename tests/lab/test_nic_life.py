"""A NIC's life and its host's: whatever happens to them, the agent goes on by itself and its books stay right."""

import os
import signal
import time
from pathlib import Path

import pytest

from guestagent.capture.bpf import compose
from guestagent.capture.interfaces import describe, links
from guestagent.capture.ring import FEWEST_BLOCKS, Ring
from guestagent.collector.connection import SILENCE_SECONDS
from guestagent.lab.hosts import Lab
from guestagent.lab.packets import udp_send
from guestagent.privileges import keep_only
from tests.lab.rig import Process, Rig, assert_ledger_closes, udp_indexes, wait_for

SIDE = {"a_addresses": ["10.8.0.2/24"], "b_addresses": ["10.8.0.1/24"]}
"""Addresses of the tapped cable; the collector is reached by another one, so that it stays in reach."""
MAC = "02:00:00:00:00:77"
REBOUND_SECONDS = 5.0


class Site:
    """A VM whose eth0 is tapped and leads to a neighbour, and whose eth1 leads to the collector."""

    def __init__(self, lab: Lab, rig: Rig) -> None:
        self.lab, self.rig = lab, rig
        self.vm, self.peer, self.side = lab.host("vm"), lab.host("peer"), lab.host("side")
        lab.link(self.vm, self.peer, "eth1", "eth1", a_addresses=["10.9.0.2/24"], b_addresses=["10.9.0.1/24"])
        self.collector = rig.collect(self.peer)
        self.sent = 0

    def plug(self, name: str = "eth0", mac: str = MAC) -> None:
        """A new NIC."""
        self.lab.link(self.vm, self.side, name, a_mac=mac, **SIDE)

    def send(self, count: int = 200) -> None:
        """So many datagrams over the tapped NIC, numbered on."""
        self.vm.call(udp_send, "10.8.0.1", 9000, count, 4000, 100, first_index=self.sent)
        self.sent += count

    def is_up(self, agent: Process, name: str) -> bool:
        """Does the agent say that it captures from this interface?"""
        return bool(agent.status().get("interfaces_up", {}).get(name))

    def assert_all_is_there(self, agent: Process) -> None:
        """Every datagram once, and both ledgers agree."""
        ledger, report = agent.stop(), self.collector.stop()

        assert_ledger_closes(ledger, report)
        assert udp_indexes(self.rig.frames(), 9000, 100) == list(range(self.sent))


@pytest.fixture
def site(lab: Lab, rig: Rig) -> Site:
    """The usual three hosts, without eth0."""
    return Site(lab, rig)


def test_a_late_nic_is_waited_for(site: Site) -> None:
    """Started before its NIC is there, the agent says what it waits for and captures once it comes."""
    agent = site.rig.agent(site.vm, "--wait", connected=False)
    wait_for(lambda: "waiting: no interface 'eth0'" in agent.log_text(), "the agent to wait")
    site.plug()
    wait_for(lambda: agent.status()["link"]["connected"], "the agent to run", REBOUND_SECONDS)
    site.send()
    site.assert_all_is_there(agent)


def test_a_renamed_nic_is_captured_on(site: Site) -> None:
    """A rename loses nothing, and status and collector know the new name; a filter that is read again compiles."""
    site.plug()
    config = site.rig.directory / "agent.toml"
    config.write_text('filter = "udp"\n')
    agent = site.rig.agent(site.vm, "-c", str(config))
    site.send()
    for words in (["down"], ["name", "ens5"], ["up"]):
        site.vm.run(["ip", "link", "set", "ens5" if words == ["up"] else "eth0", *words])
    wait_for(lambda: site.is_up(agent, "ens5"), "the new name", REBOUND_SECONDS)
    config.write_text('filter = "udp or arp"\n')
    os.kill(agent.pid, signal.SIGHUP)
    wait_for(lambda: "read again: filter" in agent.log_text(), "the agent to take the filter")
    site.send()

    assert ["ens5"] == list(agent.status()["interfaces"])
    assert "eth0 is called ens5 now" in agent.log_text()
    site.assert_all_is_there(agent)


@pytest.mark.parametrize("name, mac", [("eth0", "02:00:00:00:00:88"), ("ens9", MAC)], ids=["same-name", "same-mac"])
def test_a_nic_made_anew_is_captured_again(site: Site, name: str, mac: str) -> None:
    """Gone, the NIC is waited for; it is known again by its name or by its MAC, and captured on the old socket."""
    site.plug()
    agent = site.rig.agent(site.vm, "--promiscuous")
    site.send()
    site.vm.run(["ip", "link", "delete", "eth0"])
    wait_for(lambda: "eth0 is gone" in agent.log_text(), "the agent to see that", REBOUND_SECONDS)
    assert agent.status()["interfaces_up"] == {"eth0": False}
    sockets = len(os.listdir(f"/proc/{agent.pid}/fd"))
    site.plug(name, mac)
    wait_for(lambda: site.is_up(agent, name), "the agent to bind again", REBOUND_SECONDS)
    site.send()

    assert sockets == len(os.listdir(f"/proc/{agent.pid}/fd"))
    assert "promiscuity 1" in site.vm.run(["ip", "-d", "link", "show", name]).stdout
    site.assert_all_is_there(agent)


@pytest.mark.parametrize("is_missed", [True, False])
def test_a_nic_that_was_away_is_captured_again(site: Site, is_missed: bool) -> None:
    """From another network namespace it comes back with its index, to which the kernel binds nothing; at once, too."""
    site.plug()
    agent = site.rig.agent(site.vm)
    site.send()
    index = site.vm.call(links)["eth0"].index
    there, back = (f"/proc/self/fd/{host.namespaces.net}" for host in (site.peer, site.vm))
    site.vm.run(["ip", "link", "set", "eth0", "netns", there], pass_fds=[site.peer.namespaces.net])
    if is_missed:
        wait_for(lambda: not site.is_up(agent, "eth0"), "the agent to miss it", REBOUND_SECONDS)
    site.peer.run(["ip", "link", "set", "eth0", "netns", back], pass_fds=[site.vm.namespaces.net])
    for words in (["link", "set", "eth0", "up"], ["address", "add", "10.8.0.2/24", "dev", "eth0"]):
        site.vm.run(["ip", *words])
    wait_for(lambda: "eth0 was made anew" in agent.log_text(), "the agent to bind again", REBOUND_SECONDS)
    site.send()

    assert site.vm.call(links)["eth0"].index == index
    site.assert_all_is_there(agent)


def test_a_hundred_flaps_leave_no_trace(site: Site) -> None:
    """After a hundred times down and up the capture goes on at once, with the same descriptors and memory."""
    site.plug()
    agent = site.rig.agent(site.vm)
    site.send()
    before = len(os.listdir(f"/proc/{agent.pid}/fd")), agent.memory_bytes()
    flaps = "".join(f"link set eth0 {state}\n" for _ in range(100) for state in ("down", "up"))
    site.vm.run(["ip", "-batch", "-"], input=flaps)
    site.send()
    after = len(os.listdir(f"/proc/{agent.pid}/fd")), agent.memory_bytes()

    assert before[0] == after[0]
    assert after[1] < before[1] + 4_000_000
    assert agent.log_text().count("Network is down") <= 2
    site.assert_all_is_there(agent)


def test_a_new_mtu_mac_and_address_cost_nothing(site: Site) -> None:
    """MTU, MAC and IP address change under load without a loss."""
    site.plug()
    agent = site.rig.agent(site.vm)
    load = site.vm.start(udp_send, "10.8.0.1", 9000, 4000, 2000, 100)
    for words in (["link", "set", "eth0", "mtu", "1400"], ["link", "set", "eth0", "address", "02:00:00:00:00:99"]):
        site.vm.run(["ip", *words])
    site.vm.run(["ip", "address", "add", "10.8.0.22/24", "dev", "eth0"])
    load.result()
    site.sent = 4000
    site.assert_all_is_there(agent)


def test_the_links_own_address_changes(site: Site) -> None:
    """The address that the stream uses is taken away: the agent connects again from the new one and loses nothing."""
    site.plug()
    agent = site.rig.agent(site.vm)
    site.send()
    for words in (["del", "10.9.0.2/24"], ["add", "10.9.0.3/24"]):
        site.vm.run(["ip", "address", *words, "dev", "eth1"])
    site.send()
    wait_for(lambda: agent.status()["link"]["reconnects"], "the agent to notice", 8.0)
    wait_for(lambda: agent.status()["link"]["connected"], "the agent to be back", REBOUND_SECONDS)
    site.send()
    site.assert_all_is_there(agent)


CLOCK = """
import signal, time
real_ns, real, step = time.time_ns, time.time, 0
def turn(*_):
    global step
    step = -86_400 if step > 0 else 86_400
time.time_ns = lambda: real_ns() + step * 1_000_000_000
time.time = lambda: real() + step
signal.signal(signal.SIGUSR1, turn)
"""
"""A sitecustomize for the agent alone: the machine's clock is everybody's. Kernel times stay as they are, so that the
two disagree by a day, as they do for what the ring holds when a clock is set."""


@pytest.mark.parametrize("engine", ["ring", "portable"])
def test_a_clock_that_is_set_changes_nothing(site: Site, tmp_path: Path, engine: str) -> None:
    """A day forward and two back: the agent streams on, sheds nothing and keeps its link."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock/sitecustomize.py").write_text(CLOCK)
    site.rig.environment["PYTHONPATH"] = f"{tmp_path}/clock:{os.getcwd()}"
    site.plug()
    agent = site.rig.agent(site.vm, "--engine", engine, full=False)
    for _ in range(3):
        site.send()
        os.kill(agent.pid, signal.SIGUSR1)
        time.sleep(0.5)
    site.send()
    wait_for(lambda: agent.status()["delivered"] >= site.sent, "the copies to be delivered")
    status = agent.status()

    assert (True, 0, False) == (status["link"]["connected"], status["link"]["reconnects"], status["limits"]["reduced"])
    site.assert_all_is_there(agent)


def test_a_long_pause_is_survived(site: Site) -> None:
    """Stopped for longer than the collector's patience, as by a suspend or a migration, the agent comes back as the
    same run with what its ring held, and the ledger closes."""
    site.plug()
    agent = site.rig.agent(site.vm)
    site.send()
    os.kill(agent.pid, signal.SIGSTOP)
    site.send()
    told = f"has been silent for {SILENCE_SECONDS:.0f} s"
    wait_for(lambda: told in site.collector.log_text(), "the collector to give up", SILENCE_SECONDS + 5)
    site.send()
    os.kill(agent.pid, signal.SIGCONT)
    wait_for(lambda: agent.status()["delivered"] >= site.sent, "all to be delivered", REBOUND_SECONDS)
    site.send()
    site.assert_all_is_there(agent)
    assert site.collector.log_text().count("streams eth0") == 2


def _rebind_without_privileges(ready: str, made: str) -> tuple[int, int]:
    """Open a ring, give up everything, follow the device to its successor; runs inside the VM's network."""
    link = links()["eth0"]
    ring = Ring(describe(link, 0), link.index, compose(), block_count=FEWEST_BLOCKS)
    keep_only()
    effective = int(Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0], 16)
    Path(ready).touch()
    while not Path(made).exists():
        time.sleep(0.01)
    ring.pause(True)  # meets no device, and says nothing
    ring.pause(False)
    ring.bind(links()["eth1"].index)
    time.sleep(1.0)
    captured = ring.statistics().captured
    ring.close()
    return effective, captured


def test_binding_again_needs_no_privilege(lab: Lab, tmp_path: Path) -> None:
    """Without any capability the old socket is bound to the new device, whatever that is called, and sees packets."""
    vm, side = lab.host("vm"), lab.host("side")
    lab.link(vm, side)
    ready, made = tmp_path / "ready", tmp_path / "made"
    task = vm.start(_rebind_without_privileges, str(ready), str(made))
    wait_for(ready.exists, "the ring to be open")
    vm.run(["ip", "link", "delete", "eth0"])
    lab.link(vm, side, "eth1")
    made.touch()
    time.sleep(0.3)
    side.call(udp_send, "10.9.0.2", 9000, 100, 1000, 100)
    effective, captured = task.result()

    assert effective == 0
    assert captured >= 100
