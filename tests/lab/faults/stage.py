"""The place where faults happen: a VM in production under tap, its collector behind a wire that can be made bad.

peer ──── eth0 VM eth1 ──── wire ──── site (collector)
           │  eth2                       production runs to the peer, copies to the site; all three are tapped
          side
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from guestagent.lab.hosts import Lab
from tests.lab.faults.names import NameServer
from tests.lab.faults.production import BRISK, Pace, Production
from tests.lab.faults.relay import Relay
from tests.lab.rig import COLLECTOR, Process, Rig, wait_for

PEER, SIDE = "10.8.0.1", "10.7.0.1"
COLLECTOR_NAME = "collector.lab"
AGENT = "vm"
VM_SIDE_MAC = "02:00:00:00:00:77"
RECOVERY_SECONDS = 20.0
DISK_BYTES = 4 << 30
"""A tmpfs takes what is written, no more."""
LOSSES = ("capped", "dropped_by_ring", "unsupported_gso", "lost_on_link")
CLOCK = """
import os, signal, time
real_ns, real, step = time.time_ns, time.time, 0
def turn(*_):
    global step
    step = 0 if step else 86_400
time.time_ns = lambda: real_ns() + step * 1_000_000_000
time.time = lambda: real() + step
signal.signal(signal.SIGUSR1, turn)
"""
"""A sitecustomize for the agent alone: the machine's clock is everybody's."""


class Scene(NamedTuple):
    """How agent and collector are set up."""

    to: str = f"tcp://{COLLECTOR}"
    agent: tuple[str, ...] = ("--full",)
    is_secure: bool = False


SCENES = {
    "path": Scene(),
    "collector": Scene(),
    "nic": Scene(),
    "agent": Scene(),
    "governed": Scene(agent=("--cpu", "60", "--yield", "off", "--ring", "8MiB")),
    "names": Scene(to=f"tls://{COLLECTOR_NAME}", is_secure=True),
}


class Books(NamedTuple):
    """What an agent says at one moment."""

    captured: int
    settled: int
    """Delivered or counted as lost."""
    losses: dict[str, int]


class Stage:
    """One lab with everything in it; `begin` starts agent, collector and production."""

    def __init__(self, lab: Lab, directory: Path, scene: str, pace: Pace = BRISK) -> None:
        self.scene, self.rig = SCENES[scene], Rig(directory)
        self.vm, self.peer, self.site, self.side, wire = (
            lab.host(name) for name in ("vm", "peer", "site", "side", "wire")
        )
        self._lab = lab
        lab.link(self.vm, self.peer, a_addresses=["10.8.0.2/24"], b_addresses=[f"{PEER}/24"])
        bare: dict[str, Any] = {"offloads": False, "b_addresses": ()}
        lab.link(self.vm, wire, "eth1", "left", a_addresses=["10.9.0.2/24"], **bare)
        lab.link(self.site, wire, "eth0", "right", a_addresses=[f"{COLLECTOR}/24"], **bare)
        self.plug_side()
        self.relay = Relay(wire, "left", "right")
        self._prepare_files()
        self.names = NameServer(self.peer, self.vm, PEER, directory) if self.scene.is_secure else None
        self.before = self.remains()
        self.collector = self.collect()
        self.agent = self.tap()
        self.production = Production(self.vm, self.peer, PEER, directory / "transfers", pace)

    def _prepare_files(self) -> None:
        directory = self.rig.directory
        self.rig.captures.mkdir()
        self.resize_disk(DISK_BYTES, "")
        (directory / "clock").mkdir()
        (directory / "clock/sitecustomize.py").write_text(CLOCK)
        if self.scene.is_secure:
            from guestagent import pki

            for kind, name, hosts in (("init", "", ()), ("collector", "c", (COLLECTOR_NAME,)), ("agent", AGENT, ())):
                pki.make(kind, name, hosts, str(directory / "pki"))

    # -- parts that faults replace ------------------------------------------------------------------------------------

    def break_connection(self, seconds: float = 0.3) -> None:
        """The wire resets whatever crosses it."""
        self.relay.weather(reset=1.0)
        time.sleep(seconds)
        self.relay.weather()

    def plug_side(self, name: str = "eth2") -> None:
        """The tapped NIC that carries no production."""
        addresses = {"a_addresses": ["10.7.0.2/24"], "b_addresses": [f"{SIDE}/24"]}
        self._lab.link(self.vm, self.side, name, a_mac=VM_SIDE_MAC, **addresses)

    def resize_disk(self, size: int, options: str = "remount,") -> None:
        """The collector's own file system, of this many bytes."""
        where = str(self.rig.captures)
        self.site.run(["mount", "-t", "tmpfs", "-o", f"{options}size={size}", "none", where])

    def disk_used_bytes(self) -> int:
        """Of it."""
        return self.site.call(_used_bytes, str(self.rig.captures))

    def _flags(self, name: str) -> list[str]:
        folder = self.rig.directory / "pki"
        pair = [f"--tls-ca={folder}/ca.crt", f"--tls-cert={folder}/{name}.crt", f"--tls-key={folder}/{name}.key"]
        return pair if self.scene.is_secure else []

    def collect(self) -> Process:
        """Start the collector; it goes on in the files that are there."""
        return self.rig.collect(self.site, *self._flags("c"), scheme="tls" if self.scene.is_secure else "tcp")

    def tap(self, name: str = AGENT) -> Process:
        """Start an agent, and wait for its collector's answer."""
        self.rig.environment["PYTHONPATH"] = f"{self.rig.directory}/clock:{os.getcwd()}"
        arguments = ("-i", "eth*", *self.scene.agent, *self._flags(AGENT))
        try:
            return self.rig.agent(self.vm, *arguments, to=self.scene.to, name=name, full=False)
        finally:
            del self.rig.environment["PYTHONPATH"]

    # -- what can be seen ---------------------------------------------------------------------------------------------

    def words(self, who: str, log_from: int) -> list[str]:
        """What `agent` or `collector` tells an operator: its status now, and what it logged since."""
        process = self.agent if who == "agent" else self.collector
        lines = process.log_text()[log_from:].splitlines()
        if who == "agent":
            status = process.status()
            told = [status["link"].get(key, "") for key in ("text", "trouble")] + [status.get("collector_note", "")]
            told += [status.get("limits", {}).get("reason", "")]
            told += [f"interface {name} is down" for name, up in status.get("interfaces_up", {}).items() if not up]
            return [*told, *lines]
        return lines

    def books(self) -> Books:
        """The agent's ledger as of now."""
        status = wait_for(lambda: (now := self.agent.status()).get("role") and now, "the agent to answer")
        losses = {key: status[key] for key in LOSSES}
        return Books(status["captured"], status["delivered"] + sum(losses.values()), losses)

    def wait_until_settled(self) -> float:
        """All that is captured by now is delivered or counted, and the link stands; the seconds that took."""
        start, goal = time.monotonic(), self.books().captured

        def is_well() -> bool:
            status = self.agent.status()
            lost = sum(status.get(key, 0) for key in LOSSES)
            return status["link"]["connected"] and status["delivered"] + lost >= goal

        wait_for(is_well, "everything to be settled", RECOVERY_SECONDS)
        return time.monotonic() - start

    def remains(self) -> list[str]:
        """What an agent or collector could leave behind: devices, routes, rules, sockets, files, processes."""
        looks = (
            "ip -j link",
            "ip route",
            "ip -6 route",
            "ip rule",
            "tc qdisc",
            "nft list ruleset",
            "ss -0nH",
            "ss -lntuxH",
        )
        found = []
        for host in (self.vm, self.site):
            for look in looks:
                text = host.run(look.split()).stdout
                found += [
                    f"{host.name}: {look}: {line}" for line in (_links(text) if "-j" in look else text.splitlines())
                ]
            for pid in host.namespaces.inhabitants():
                if "guestagent" in (command := _command(pid)):
                    found.append(f"{host.name}: {command}")
        found += [f"file {path.name}" for path in (self.rig.directory / "run").glob("*")]
        return sorted(found)


def signal_to(process: Process, number: signal.Signals) -> None:
    """Send it."""
    os.kill(process.pid, number)


def descriptors(process: Process) -> int:
    """Open files."""
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def anonymous_bytes(process: Process) -> int:
    """Resident memory of its own: without the ring, code and files (RssAnon, proc(5))."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    """Did it come true in time?"""
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return done


def _links(text: str) -> list[str]:
    """Devices without their numbers, which a NIC that was made anew has others of."""
    keys = ("ifname", "mtu", "address", "operstate", "promiscuity", "qdisc")
    return [str({key: link.get(key) for key in keys}) for link in json.loads(text)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _used_bytes(path: str) -> int:
    facts = os.statvfs(path)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize
