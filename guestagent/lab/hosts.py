"""Hosts in network namespaces, the cables between them and the processes inside; nothing of it outlives us.

    with Lab() as lab:
        agent, peer = lab.host("agent"), lab.host("peer")
        lab.link(agent, peer)
        server = peer.start(serve_http)
        agent.run(["ip", "route"])

Networks hang on our descriptors and every child dies with us, so even after a kill -9 the kernel clears up by itself.
Start processes from a thread that lives as long as they shall: the kernel ties a child to its parent's *thread*.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from guestagent.errors import HostError, RunError
from guestagent.lab.namespaces import Namespaces, die_with_parent, enter_user_namespace
from guestagent.lab.tasks import Task, fork

T = TypeVar("T")

RUN_TIMEOUT_SECONDS = 30.0
"""Longer than any command of ours needs; a hung one shall fail the test, not the whole run."""
GRACE_SECONDS = 2.0
"""What `close` gives its children between asking and killing: an agent drains two ring retire times and reports."""
OFFLOADS = ("tx", "tso", "gso", "gro", "tx-udp-segmentation")
"""All that makes a veth carry super-packets or unfinished checksums."""
LINK_A_ADDRESSES = ("10.9.0.2/24", "fd00:9::2/64")
LINK_B_ADDRESSES = ("10.9.0.1/24", "fd00:9::1/64")


class Child(Protocol):
    """What `close` needs of a process; both Popen and Task have it."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...


@dataclass(frozen=True, slots=True)
class Counters:
    """What an interface has counted since it was made."""

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int


class Host:
    """One host: a network of its own, and whatever is started inside it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.namespaces = Namespaces.create()
        self.cpus: frozenset[int] = frozenset()
        """The processors of what is started from here on; empty: all."""
        self._children: list[Child] = []
        self._closed = False

    def __repr__(self) -> str:
        return f"Host({self.name!r})"

    def popen(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a command inside; `options` are those of subprocess.Popen."""
        with _in_house_words(argv):
            process = subprocess.Popen(argv, preexec_fn=self._entrance(), **options)  # noqa: PLW1509 - see _entrance
        self._children.append(process)
        return process

    def run(
        self, argv: Sequence[str], check: bool = True, timeout: float = RUN_TIMEOUT_SECONDS, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command inside to its end and hand over its output as text; with `check`, failure raises RunError."""
        with _in_house_words(argv):
            options |= {"text": True, "timeout": timeout, "preexec_fn": self._entrance()}
            done = subprocess.run(argv, capture_output=True, check=False, **options)
        if check and done.returncode != 0:
            said = done.stderr.strip() or done.stdout.strip()
            raise RunError(f"`{' '.join(argv)}` on lab host {self.name} exited with {done.returncode}: {said}")
        return done

    def start(self, function: Callable[..., T], *arguments: Any, **named: Any) -> Task[T]:
        """Call a Python function in a forked child inside, and go on; see Task for its end and result."""
        title = f"{getattr(function, '__name__', function)} on lab host {self.name}"
        task = fork(title, self._entrance(), lambda: function(*arguments, **named))
        self._children.append(task)
        return task

    def call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Call a Python function in a forked child inside and return what it returns."""
        return self.start(function, *arguments, **named).result()

    def counters(self, ifname: str = "eth0") -> Counters:
        """The kernel's counters of one interface."""
        table = self.call(Path("/proc/net/dev").read_text)
        rows = {name.strip(): row.split() for name, _, row in (line.partition(":") for line in table.splitlines())}
        if ifname not in rows:
            raise RunError(f"lab host {self.name} has no interface {ifname}")
        values = [int(value) for value in rows[ifname]]
        return Counters(rx_packets=values[1], rx_bytes=values[0], tx_packets=values[9], tx_bytes=values[8])

    def wait_for_port(self, port: int, timeout: float = 5.0) -> None:
        """Return when a TCP listener or a UDP socket holds `port`; RunError when none does in time."""
        if not self.call(_port_held, port, timeout):
            raise RunError(f"nothing on lab host {self.name} listens on port {port} after {timeout} s")

    def close(self) -> None:
        """End what was started here, politely, then surely, and let the network go; may be called twice."""
        if self._closed:
            return
        living = [child for child in self._children if child.poll() is None]
        for child in living:
            child.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while any(child.poll() is None for child in living) and time.monotonic() < deadline:
            time.sleep(0.005)
        for child in living:
            child.kill()
            child.wait()
        for stray in self.namespaces.inhabitants():  # what our children had started and left behind
            with suppress(ProcessLookupError):
                os.kill(stray, signal.SIGKILL)
        self._closed = True
        self.namespaces.close()

    def _entrance(self) -> Callable[[], None]:
        """What a fresh child does first: tie its life to ours, then move inside; system calls alone, so no lock of
        another thread can be in its way."""
        parent, namespaces, cpus = os.getpid(), self.namespaces, self.cpus

        def enter() -> None:
            die_with_parent(parent)
            namespaces.enter()
            if cpus:
                os.sched_setaffinity(0, cpus)

        return enter


class Lab:
    """A set of hosts that ends with the `with` block; without root it makes us root of a user namespace first."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            enter_user_namespace()
        self._hosts: list[Host] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def host(self, name: str) -> Host:
        """A new host with nothing but loopback."""
        host = Host(name)
        self._hosts.append(host)
        host.run(["ip", "link", "set", "lo", "up"])
        return host

    def link(
        self,
        a: Host,
        b: Host,
        a_name: str = "eth0",
        b_name: str = "eth0",
        *,
        a_addresses: Sequence[str] = LINK_A_ADDRESSES,
        b_addresses: Sequence[str] = LINK_B_ADDRESSES,
        mtu: int = 1500,
        offloads: bool = True,
        a_mac: str | None = None,
        b_mac: str | None = None,
    ) -> None:
        """A cable between two hosts; its ends are up and have their addresses when this returns."""
        # Made inside `a` with its far end born inside `b`: no name of ours ever appears on the real host.
        far_end = ["peer", "name", b_name, *_end(b_mac, mtu), "netns", f"/proc/self/fd/{b.namespaces.net}"]
        cable = ["ip", "link", "add", a_name, *_end(a_mac, mtu), "type", "veth", *far_end]
        a.run(cable, pass_fds=[b.namespaces.net])
        for host, name, addresses in ((a, a_name, a_addresses), (b, b_name, b_addresses)):
            if not offloads:
                host.run(["ethtool", "-K", name, *(word for feature in OFFLOADS for word in (feature, "off"))])
            host.run(["ip", "link", "set", name, "up"])
            for address in addresses:
                # Duplicate detection would keep an IPv6 address unusable for a second or two.
                host.run(["ip", "address", "add", address, "dev", name, *(["nodad"] if ":" in address else [])])

    def bridge(self, *hosts: Host, name: str = "eth0", mtu: int = 1500, offloads: bool = True) -> Host:
        """A switch with all `hosts` on it, the n-th as 10.9.0.n/24 and fd00:9::n/64; returned as a host with br0."""
        switch = self.host("switch")
        # Snooping without a querier may hold neighbour discovery back.
        switch.run(["ip", "link", "add", "br0", "mtu", str(mtu), "type", "bridge", "mcast_snooping", "0"])
        switch.run(["ip", "link", "set", "br0", "up"])
        for number, host in enumerate(hosts, start=1):
            port, addresses = f"port{number}", (f"10.9.0.{number}/24", f"fd00:9::{number:x}/64")
            self.link(host, switch, name, port, a_addresses=addresses, b_addresses=(), mtu=mtu, offloads=offloads)
            switch.run(["ip", "link", "set", port, "master", "br0"])
        return switch

    def close(self) -> None:
        """End all hosts; may be called twice, and again after a Ctrl-C inside it."""
        while self._hosts:
            self._hosts[-1].close()
            self._hosts.pop()


@contextmanager
def _in_house_words(argv: Sequence[str]) -> Iterator[None]:
    """Turn what subprocess raises into our errors, in one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise HostError(f"the lab needs `{argv[0]}`, which this machine lacks: install it") from error
    except PermissionError as error:
        raise HostError(f"the lab may not start `{argv[0]}`: {error.strerror}; move it, or run with sudo") from error
    except subprocess.TimeoutExpired as error:
        raise RunError(f"`{' '.join(argv)}` did not end within {error.timeout} s") from error
    except subprocess.SubprocessError as error:
        raise HostError(f"cannot start `{argv[0]}` inside a network namespace: run with sudo") from error


def _end(mac: str | None, mtu: int) -> list[str]:
    return [*(["address", mac] if mac else []), "mtu", str(mtu)]


def _port_held(port: int, timeout: float) -> bool:
    """Poll the kernel's socket tables; runs inside the host."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
            for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                _, local, _, now, *_ = row.split()
                if now == state and int(local.rpartition(":")[2], 16) == port:
                    return True
        time.sleep(0.01)
    return False
