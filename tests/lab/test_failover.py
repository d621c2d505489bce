"""Several collectors: another one takes over, the preferred one gets the run back, and each packet is there once."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_send
from guestagent.merge import merge
from tests.lab.rig import PORT, Process, Rig, frames_of, udp_indexes, wait_for

PACE = 5000
PAYLOAD_BYTES = 258
SWITCH_SECONDS = 3.0
GATE = 1.3


def serves(agent: Process, address: str) -> Callable[[], bool]:
    """Does this collector serve the agent?"""

    def answer() -> bool:
        link = agent.status()["link"]
        return link["connected"] and f"at {address}:{PORT}" in link["text"]

    return answer


def collect(rig: Rig, host: Host, address: str) -> Process:
    """A collector of its own name, though this machine has one id."""
    config = rig.directory / f"{host.name}.toml"
    config.write_text(f"collector_id = '{host.name}'\n")
    config.chmod(0o600)
    where = str(rig.captures / host.name)
    return rig.collect(host, "-c", str(config), write=where, listen=address, report=f"{host.name}.json")


def kill(collector: Process, _host: Host) -> None:
    """The process dies."""
    collector.kill()


def unplug(_collector: Process, host: Host) -> None:
    """The host is gone from the network: nothing answers, nothing refuses."""
    host.run(["ip", "link", "set", "eth0", "down"])


@pytest.mark.parametrize("fault", [kill, unplug])
def test_another_takes_over_and_gives_back(rig: Rig, lab: Lab, fault: Callable[[Process, Host], None]) -> None:
    """Killed or unplugged, the first collector is replaced within 3 s and taken back; merged, each packet is once."""
    first, second, vm = (lab.host(name) for name in ("first", "second", "vm"))
    lab.bridge(first, second, vm)
    a, b = collect(rig, first, "10.9.0.1"), collect(rig, second, "10.9.0.2")
    agent = rig.agent(vm, "--to", "tcp://10.9.0.1", to="tcp://10.9.0.2")
    wait_for(serves(agent, "10.9.0.1"), "the preferred collector to serve")
    sender = vm.start(udp_send, "10.9.0.2", 9000, 60 * PACE, PACE, PAYLOAD_BYTES)
    time.sleep(1)
    fault(a, first)
    start = time.monotonic()
    wait_for(serves(agent, "10.9.0.2"), "the second collector to serve")
    took_seconds = time.monotonic() - start
    if fault is kill:
        a = collect(rig, first, "10.9.0.1")
    else:
        first.run(["ip", "link", "set", "eth0", "up"])
    wait_for(serves(agent, "10.9.0.1"), "the preferred collector to serve again", 20)
    time.sleep(1)
    sender.terminate()
    ledger = agent.stop()
    reports = [a.stop(), b.stop()]
    out = rig.directory / "merged.pcapng"
    said = merge([str(path) for path in sorted(rig.captures.rglob("*.pcapng"))], str(out))

    assert took_seconds < SWITCH_SECONDS * GATE
    assert ledger["captured"] == ledger["delivered"]
    assert ledger["lost_on_link"] == ledger["dropped_by_ring"] == ledger["in_flight"] == 0
    assert [report["agents"]["vm"]["gaps"] for report in reports] == [0, 0]
    indexes = udp_indexes(frames_of(Path(out)), 9000, PAYLOAD_BYTES)
    assert sorted(indexes) == list(range(len(indexes)))
    assert len(indexes) > 6 * PACE
    assert " 0 frames of the runs are in none of the files" in said
