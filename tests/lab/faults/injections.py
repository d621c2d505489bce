"""How each fault is made and unmade: context managers over a stage, entered for the time that the fault lasts."""

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from guestagent.lab.hosts import Host
from tests.lab.faults.relay import Weather
from tests.lab.faults.stage import DISK_BYTES, Stage, signal_to
from tests.lab.faults.strangers import harass
from tests.lab.rig import COLLECTOR, PORT, Process, wait_for

Injection = Callable[[Stage], AbstractContextManager[None]]
FLAPS = 20
STOPPED_SECONDS, AWAKE_SECONDS = 0.6, 0.003
"""Less than the seconds after which a collector counts as silent, and less than 7 MB/s take."""
LEAST_FILES = 3
"""All that is open stays, nothing can be opened: the three lowest numbers are taken."""
DISK_MARGIN_BYTES = 2_000_000
"""What comes while the file system is made smaller must fit, or the kernel refuses."""


def weather(**what: float) -> Injection:
    """The wire between VM and collector becomes bad."""
    Weather(**what)  # type: ignore[arg-type]  # a wrong name is found at once

    @contextmanager
    def bad_weather(stage: Stage) -> Iterator[None]:
        stage.relay.weather(**what)
        yield
        stage.relay.weather()

    return bad_weather


# -- the collector ------------------------------------------------------------------------------------------------


@contextmanager
def collector_killed(stage: Stage) -> Iterator[None]:
    """kill -9; another one is started in the same files."""
    stage.collector.kill()
    yield
    stage.collector = stage.collect()


@contextmanager
def collector_upgraded(stage: Stage) -> Iterator[None]:
    """SIGTERM, and a new process later."""
    stage.collector.stop(10.0)
    yield
    stage.collector = stage.collect()


@contextmanager
def collector_stopped(stage: Stage) -> Iterator[None]:
    """SIGSTOP: the kernel takes its bytes until the window is zero, nobody answers."""
    signal_to(stage.collector, signal.SIGSTOP)
    yield
    signal_to(stage.collector, signal.SIGCONT)


@contextmanager
def collector_slow(stage: Stage) -> Iterator[None]:
    """It gets half a percent of a processor: stopped and woken by turns, by a process beside it."""
    brake = stage.site.start(_brake, stage.collector.pid)
    yield
    brake.kill()
    brake.wait()
    signal_to(stage.collector, signal.SIGCONT)


def _brake(pid: int) -> None:
    while True:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        os.kill(pid, signal.SIGCONT)
        time.sleep(AWAKE_SECONDS)


@contextmanager
def disk_full(stage: Stage) -> Iterator[None]:
    """The collector's file system has no room left."""
    stage.resize_disk(stage.disk_used_bytes() + DISK_MARGIN_BYTES)
    yield
    stage.resize_disk(DISK_BYTES)


@contextmanager
def strangers(stage: Stage) -> Iterator[None]:
    """Half-open connections, slow hellos, garbage and resets at the collector's port, all at once."""
    attack = stage.site.start(harass, COLLECTOR, (PORT,))
    yield
    attack.kill()
    attack.wait()


# -- the collector's name and port ----------------------------------------------------------------------------------


def named(what: str) -> Injection:
    """The name server does this while the connection breaks."""

    @contextmanager
    def bad_name(stage: Stage) -> Iterator[None]:
        assert stage.names is not None
        stage.names.says(what)
        stage.break_connection()
        yield
        stage.names.says(COLLECTOR)

    return bad_name


def impostor(speaks: bytes | None) -> Injection:
    """Somebody else holds the collector's port: with bytes that are no TLS, or accepting and silent."""

    @contextmanager
    def other_server(stage: Stage) -> Iterator[None]:
        stage.collector.kill()
        other = stage.site.start(_serve, speaks)
        stage.site.wait_for_port(PORT)
        yield
        other.kill()
        other.wait()
        stage.collector = stage.collect()

    return other_server


def _serve(speaks: bytes | None) -> None:
    held = []
    with socket.create_server((COLLECTOR, PORT)) as server:
        while True:
            one, _ = server.accept()
            held.append(one)
            with suppress(OSError):
                if speaks is not None:
                    one.sendall(speaks)


# -- NICs and routes --------------------------------------------------------------------------------------------------


def commands(host: str, broken: tuple[str, ...], mended: tuple[str, ...]) -> Injection:
    """ip commands on a host of the stage, and those that undo them."""

    @contextmanager
    def ip_commands(stage: Stage) -> Iterator[None]:
        where: Host = getattr(stage, host)
        for words in broken:
            where.run(["ip", *words.split()])
        yield
        for words in mended:
            where.run(["ip", *words.split()])

    return ip_commands


@contextmanager
def flaps(stage: Stage) -> Iterator[None]:
    """The tapped side NIC goes down and up, again and again."""
    lines = "".join(f"link set eth2 {state}\n" for _ in range(FLAPS) for state in ("down", "up"))
    stage.vm.run(["ip", "-batch", "-"], input=lines + "link set eth2 down\n")
    yield
    stage.vm.run(["ip", "link", "set", "eth2", "up"])


@contextmanager
def nic_gone(stage: Stage) -> Iterator[None]:
    """The tapped side NIC is removed and made anew."""
    stage.vm.run(["ip", "link", "delete", "eth2"])
    yield
    stage.plug_side()
    wait_for(lambda: stage.agent.status().get("interfaces_up", {}).get("eth2"), "eth2 to be captured again")


@contextmanager
def nic_renamed(stage: Stage) -> Iterator[None]:
    """The tapped side NIC gets another name under load, and its own again."""
    for was, becomes in (("eth2", "ens9"), ("ens9", "eth2")):
        stage.vm.run(["ip", "link", "set", was, "down"])
        stage.vm.run(["ip", "link", "set", was, "name", becomes])
        stage.vm.run(["ip", "link", "set", becomes, "up"])
        if becomes == "ens9":
            yield
    stage.vm.run(["ip", "address", "replace", "10.7.0.2/24", "dev", "eth2"])
    wait_for(lambda: stage.agent.status().get("interfaces_up", {}).get("eth2"), "eth2 to have its name again")


# -- the agent ----------------------------------------------------------------------------------------------------


@contextmanager
def agent_killed(stage: Stage) -> Iterator[None]:
    """kill -9; another one is started."""
    stage.agent.kill()
    yield
    stage.agent = stage.tap()


@contextmanager
def agent_restarted(stage: Stage) -> Iterator[None]:
    """SIGTERM, and a new process: an upgrade."""
    stage.agent.stop(5.0)
    yield
    stage.agent = stage.tap()


@contextmanager
def agent_paused(stage: Stage) -> Iterator[None]:
    """SIGSTOP: a suspend, a migration, a hang."""
    signal_to(stage.agent, signal.SIGSTOP)
    yield
    signal_to(stage.agent, signal.SIGCONT)


@contextmanager
def clock_set(stage: Stage) -> Iterator[None]:
    """The agent's wall clock jumps a day forward, and back."""
    signal_to(stage.agent, signal.SIGUSR1)
    yield
    signal_to(stage.agent, signal.SIGUSR1)


def out_of_files(who: str) -> Injection:
    """Agent or collector may open nothing more, while the connection breaks."""

    @contextmanager
    def no_descriptors(stage: Stage) -> Iterator[None]:
        process: Process = getattr(stage, who)
        was = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (LEAST_FILES, was[1]))
        stage.break_connection()
        yield
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, was)

    return no_descriptors


@contextmanager
def second_agent(stage: Stage) -> Iterator[None]:
    """Another agent taps the same NICs to the same collector."""
    other = stage.tap(name="other")
    yield
    if other.process.poll() is None:
        other.stop(5.0)
