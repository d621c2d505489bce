"""What an operator does with it: watch live, ask for status, change the NIC, read the file while it grows."""

import json
import os
import subprocess
import sys
import time

import pytest

from guestagent.capture.interfaces import select
from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_send
from tests.lab.rig import Rig, assert_ledger_closes, udp_indexes, wait_for


def test_standard_output_feeds_tshark_live(rig: Rig, pair: tuple[Host, Host]) -> None:
    """`collect --write - | tshark -r -` prints packets while they come, and ends with the collector."""
    vm, peer = pair
    listen = ["collect", "--listen", "tcp://10.9.0.1:4795", "--write", "-"]
    collector = rig.start(peer, *listen, stdout=subprocess.PIPE)
    lines = rig.directory / "lines"
    with lines.open("wb") as output:
        tshark = peer.popen(
            ["tshark", "-l", "-n", "-r", "-", "-Y", "udp.dstport == 9000 && !icmp"],
            stdin=collector.process.stdout,
            stdout=output,
            stderr=subprocess.DEVNULL,
        )
    assert collector.process.stdout is not None
    collector.process.stdout.close()
    agent = rig.agent(vm)
    vm.call(udp_send, "10.9.0.1", 9000, 500, 1000, 100)
    wait_for(lambda: lines.read_text().count("\n") == 500, "500 lines of tshark")
    assert tshark.poll() is None
    agent.stop()
    collector.stop()
    assert tshark.wait(5) == 0


def test_a_file_that_grows_is_readable_at_any_time(rig: Rig, pair: tuple[Host, Host]) -> None:
    """While the collector writes, tshark reads the file: whole packets in order, at most cut short at its end."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm)
    sender = vm.start(udp_send, "10.9.0.1", 9000, 30_000, 10_000, 300)
    wait_for(rig.files, "the file")
    time.sleep(0.5)
    counts = []
    for _ in range(5):
        done = subprocess.run(["tshark", "-n", "-r", rig.files()[0]], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "cut short" in done.stderr, done.stderr
        counts.append(len(done.stdout.splitlines()))
    sender.result(30)
    agent.stop()
    collector.stop()
    assert counts == sorted(counts)
    assert counts[0] > 1000
    end = subprocess.run(["tshark", "-n", "-r", rig.files()[0]], capture_output=True, text=True, check=True)
    assert len(end.stdout.splitlines()) >= 30_000


def test_status_tells_what_runs(rig: Rig, pair: tuple[Host, Host]) -> None:
    """`status` names agent and collector with their ledgers; `--json` is a versioned object; 1 where nothing runs."""
    vm, peer = pair
    command = [sys.executable, "-m", "guestagent", "status"]
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(rig.directory / "run")}
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 1
    collector, agent = rig.collect(peer), rig.agent(vm, "--slice", "headers", "--filter", "udp")
    vm.call(udp_send, "10.9.0.1", 9000, 500, 1000, 100)
    wait_for(lambda: agent.status()["delivered"] >= 500, "the packets to be delivered")
    text = subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout
    snapshot = json.loads(
        subprocess.run([*command, "--json"], env=environment, capture_output=True, check=True, text=True).stdout
    )
    agent.stop()
    collector.stop()

    assert "connected to collector" in text
    assert "slice headers, filter 'udp'" in text
    assert snapshot["schema"] == "guestagent.status/1"
    assert {"agent", "collector"} == {one["role"] for one in snapshot["running"].values()}


def test_changes_of_the_nic_are_followed(rig: Rig, lab: Lab) -> None:
    """A new MTU and MAC are told in band; a NIC that is removed and made anew is captured again within 5 s."""
    vm, peer, side = lab.host("vm"), lab.host("peer"), lab.host("side")
    lab.link(vm, peer, "eth1", "eth1", a_addresses=["10.9.0.2/24"], b_addresses=["10.9.0.1/24"])
    lab.link(vm, side, a_addresses=["10.8.0.2/24"], b_addresses=["10.8.0.1/24"])
    collector, agent = rig.collect(peer), rig.agent(vm)
    vm.run(["ip", "link", "set", "eth0", "mtu", "1400", "address", "02:00:00:00:00:77"])
    vm.call(udp_send, "10.8.0.1", 9000, 500, 2000, 100)
    vm.run(["ip", "link", "delete", "eth0"])
    time.sleep(1.5)
    assert agent.process.poll() is None
    lab.link(vm, side, a_addresses=["10.8.0.2/24"], b_addresses=["10.8.0.1/24"])
    wait_for(lambda: "made anew" in agent.log_text(), "the agent to bind again", 5.0)
    vm.call(udp_send, "10.8.0.1", 9000, 500, 2000, 100, first_index=500)
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    assert udp_indexes(rig.frames(), 9000, 100) == list(range(1000))


@pytest.mark.parametrize("clean", [True, False])
def test_nothing_is_left_behind(rig: Rig, pair: tuple[Host, Host], clean: bool) -> None:
    """After the end, clean or by kill -9, the host's devices, routes, queueing rules and sockets are as before."""
    vm, _ = pair

    def state() -> list[str]:
        looks = (["ip", "-o", "link"], ["ip", "route"], ["tc", "qdisc"], ["ss", "-0nH"], ["nft", "list", "ruleset"])
        return [vm.run(look).stdout for look in looks]

    before = state()
    agent = rig.agent(vm, connected=False)
    wait_for(lambda: agent.status().get("role"), "the agent to run")
    assert state()[:3] == before[:3], "no device, route or queueing rule of ours while it runs"
    agent.stop() if clean else agent.kill()
    wait_for(lambda: state() == before, "the packet socket to be gone")
    assert not clean or not list((rig.directory / "run").glob("agent*"))


def test_a_name_is_resolved_off_the_loop_and_retried(rig: Rig, pair: tuple[Host, Host]) -> None:
    """A collector's name that does not resolve keeps the agent capturing and saying so."""
    vm, _ = pair
    agent = rig.agent(vm, to="tcp://collector.invalid", connected=False)
    wait_for(lambda: "could not be resolved" in agent.log_text(), "the agent to say so")
    vm.call(udp_send, "10.9.0.1", 9000, 100, 1000, 100)
    assert wait_for(lambda: agent.status()["captured"] >= 100, "the ring to hold what came")
    assert agent.stop(2.5)["lost_on_link"] >= 100


def test_a_link_without_ethernet_frames_is_refused(pair: tuple[Host, Host]) -> None:
    """A TUN device carries bare IP packets: exit 3, and the sentence says what to tap instead."""
    vm, _ = pair
    vm.run(["ip", "tuntap", "add", "tun0", "mode", "tun"])
    done = vm.run([sys.executable, "-m", "guestagent", "run", "-i", "tun0"], check=False)
    assert done.returncode == 3
    assert "tun0 carries no Ethernet frames" in done.stderr


def test_globs_skip_what_a_master_shows_already(lab: Lab) -> None:
    """On a bridge, a glob takes the bridge and not its ports; a port that is named in full is taken."""
    one, two = lab.host("one"), lab.host("two")
    switch = lab.bridge(one, two)
    assert [link.name for link in switch.call(select, ["*r*"])] == ["br0"]
    assert [link.name for link in switch.call(select, ["br*", "port1"])] == ["br0", "port1"]


@pytest.mark.parametrize("promiscuous", [True, False])
def test_promiscuous_mode_is_asked_for_only_on_request(rig: Rig, pair: tuple[Host, Host], promiscuous: bool) -> None:
    """The interface turns promiscuous with `--promiscuous` alone, and back when the agent ends."""
    vm, _ = pair

    def level() -> str:
        return vm.run(["ip", "-d", "link", "show", "eth0"]).stdout.split("promiscuity ")[1].split()[0]

    agent = rig.agent(vm, *(["--promiscuous"] if promiscuous else []), connected=False)
    wait_for(lambda: agent.status().get("role"), "the agent to run")
    assert level() == ("1" if promiscuous else "0")
    agent.kill()
    assert wait_for(lambda: level() == "0", "the interface to be as before")
