"""Hosts of the lab are reachable, apart from the machine, and leave nothing behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import guestagent
from guestagent.errors import HostError, RunError
from guestagent.lab.hosts import Host, Lab
from guestagent.lab.traffic import ping, serve_http

PEER4, PEER6 = "10.9.0.1", "fd00:9::1"
SOURCE = Path(guestagent.__file__).parents[1]
SETTLE_SECONDS = 5.0
OWNER = """
import json, os, sys, time
from guestagent.lab.hosts import Lab
from guestagent.lab.traffic import ping

with Lab() as lab:
    agent, peer = lab.host("agent"), lab.host("peer")
    lab.link(agent, peer)
    children = [agent.popen(["sleep", "60"]), peer.start(time.sleep, 60)]
    pings = agent.call(ping, "10.9.0.1", 1) + agent.call(ping, "fd00:9::1", 1)
    print(json.dumps({"pids": [child.pid for child in children], "pings": pings}), flush=True)
    if sys.argv[1:] == ["stay"]:
        time.sleep(60)
"""


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold soon; the kernel takes networks down in the background."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for its new parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def first_line(process: "subprocess.Popen[str]") -> str:
    """What a process says first."""
    assert process.stdout is not None
    return process.stdout.readline()


def machine() -> list[str]:
    """What a leftover of a lab would show up in."""
    words = [
        subprocess.run(["ip", what], capture_output=True, text=True, check=True).stdout for what in ("link", "netns")
    ]
    return [*words, Path("/proc/self/mounts").read_text()]


def own(python: str, *arguments: str, before: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """A process that owns a lab of two hosts with a child in each."""
    argv = [*before, python, "-c", OWNER, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd="/"
    )


def test_two_hosts_reach_each_other_over_both_families(pair: tuple[Host, Host]) -> None:
    """Every echo request is answered over IPv4 and over IPv6, and an address that nobody has answers none."""
    agent, _ = pair
    assert [agent.call(ping, address) for address in (PEER4, PEER6)] == [3, 3]
    assert agent.call(ping, "10.9.0.77", 1) == 0


def test_hosts_see_only_their_own_network(pair: tuple[Host, Host]) -> None:
    """A host's interfaces, /sys included, are loopback and its end of the cable; the machine gains none."""
    agent, _ = pair
    assert {name for _, name in agent.call(socket.if_nameindex)} == {"lo", "eth0"}
    if Path("/proc/self/uid_map").read_text().split()[:2] == ["0", "0"]:  # users may not get a /sys of their own
        assert set(agent.call(os.listdir, "/sys/class/net")) == {"lo", "eth0"}


def test_counters_count(pair: tuple[Host, Host]) -> None:
    """What one end has sent is what the other end has received."""
    agent, peer = pair
    agent.call(ping, PEER4, 5)
    assert eventually(lambda: agent.counters().tx_packets == peer.counters().rx_packets >= 5)
    with pytest.raises(RunError, match="no interface eth7"):
        agent.counters("eth7")


def test_link_takes_names_macs_and_mtu(lab: Lab) -> None:
    """Names, MAC addresses, MTU and addresses of a cable are the ones that were asked for."""
    a, b = lab.host("a"), lab.host("b")
    macs = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
    lab.link(
        a,
        b,
        "wan0",
        "lan0",
        a_addresses=["192.0.2.1/30"],
        b_addresses=["192.0.2.2/30"],
        mtu=9000,
        a_mac=macs[0],
        b_mac=macs[1],
    )
    for host, name, mac in ((a, "wan0", macs[0]), (b, "lan0", macs[1])):
        (link,) = json.loads(host.run(["ip", "-json", "link", "show", name]).stdout)
        assert (link["address"], link["mtu"]) == (mac, 9000)
    assert b.call(ping, "192.0.2.1") == 3


@pytest.mark.parametrize("offloads, state", [(True, "on"), (False, "off")])
def test_offloads_are_as_asked(lab: Lab, offloads: bool, state: str) -> None:
    """With offloads=False no end segments or leaves checksums to the wire; by default both ends do."""
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b, offloads=offloads)
    switched = ("tcp-segmentation-offload", "tx-checksum-ip-generic", "tx-udp-segmentation")
    for host in (a, b):
        features = dict(
            line.strip().split(": ") for line in host.run(["ethtool", "-k", "eth0"]).stdout.splitlines()[1:]
        )
        assert {features[name] for name in switched} == {state}
        assert offloads or features["generic-receive-offload"] == "off"


def test_bridge_joins_three(lab: Lab) -> None:
    """Three hosts on one switch reach each other over both families."""
    hosts = [lab.host(name) for name in ("agent", "peer", "collector")]
    lab.bridge(*hosts)
    for host in hosts:
        for number in (1, 2, 3):
            assert [host.call(ping, f"10.9.0.{number}", 1), host.call(ping, f"fd00:9::{number}", 1)] == [1, 1]


def test_call_and_start_hand_over_result_or_traceback(lab: Lab) -> None:
    """A function's value comes back, large ones too; what it raised comes back as text, and so does its death."""
    host = lab.host("a")
    assert host.call(bytes, 10_000_000) == bytes(10_000_000)
    with pytest.raises(RunError, match="ValueError: invalid literal"):
        host.call(int, "x")
    with pytest.raises(RunError, match="pickle"):
        host.call(lambda: lambda: None)
    sleeper = host.start(time.sleep, 60)
    assert not sleeper.join(0.01)
    sleeper.terminate()
    with pytest.raises(RunError, match=r"without a result \(exit code -15\)"):
        sleeper.result()


def test_run_says_what_went_wrong(lab: Lab) -> None:
    """A failing, a missing and a hanging command each raise one sentence that names it."""
    host = lab.host("a")
    with pytest.raises(RunError, match="`false` on lab host a exited with 1"):
        host.run(["false"])
    assert host.run(["false"], check=False).returncode == 1
    with pytest.raises(HostError, match="no-such-command"):
        host.run(["no-such-command"])
    with pytest.raises(RunError, match="did not end within"):
        host.run(["sleep", "60"], timeout=0.1)


def test_wait_for_port(lab: Lab) -> None:
    """It returns once a server listens, and raises where none does."""
    host = lab.host("a")
    host.start(serve_http)
    host.wait_for_port(80)
    with pytest.raises(RunError, match="port 81"):
        host.wait_for_port(81, timeout=0.05)


def test_close_leaves_nothing(lab: Lab) -> None:
    """After close, called twice, every child is gone, grandchildren and the deaf to SIGTERM too; so is the cable."""
    before = machine()
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b)
    shell = a.popen(["sh", "-c", "trap '' TERM; sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    pids = [shell.pid, int(first_line(shell)), a.start(time.sleep, 60).pid]
    a.close()
    shell.communicate()
    assert eventually(lambda: all(map(ended, pids)))
    assert eventually(lambda: {name for _, name in b.call(socket.if_nameindex)} == {"lo"})
    lab.close()
    lab.close()
    assert machine() == before


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("lab")
def test_nothing_outlives_the_owner(end: signal.Signals) -> None:
    """However the owner of a lab ends, kill -9 included, its children end and the machine is as before."""
    before = machine()
    with own(sys.executable, "stay") as owner:
        pids = json.loads(first_line(owner))["pids"]
        assert not any(map(ended, pids))
        owner.send_signal(end)
    assert eventually(lambda: all(map(ended, pids)))
    assert machine() == before


@pytest.mark.usefixtures("lab")
def test_works_without_root() -> None:
    """A user without any privilege gets the same lab in a user namespace."""
    unprivileged = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    python = next(filter(None, (usable(unprivileged, name) for name in (sys.executable, system_python()))), None)
    if python is None:
        pytest.skip("cannot run a Python >= 3.11 as another user here")
    with own(python, before=unprivileged) as owner:
        said = first_line(owner)
    if not said and not namespaces_for_all(unprivileged):
        pytest.skip("this kernel gives users no namespaces")
    assert json.loads(said)["pings"] == 2


def system_python() -> str | None:
    """The distribution's own interpreter, readable by all users."""
    return shutil.which("python3", path=os.defpath)


def usable(user: tuple[str, ...], python: str | None) -> str | None:
    """The interpreter, if that user can run it with our package."""
    if python is None:
        return None
    probe = [*user, python, "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import guestagent.lab.hosts"]
    return None if subprocess.run(probe, capture_output=True, check=False, cwd="/").returncode else python


def namespaces_for_all(user: tuple[str, ...]) -> bool:
    """Whether the kernel lets that user make namespaces at all."""
    return (
        subprocess.run([*user, "unshare", "--user", "--net", "true"], capture_output=True, check=False).returncode == 0
    )
