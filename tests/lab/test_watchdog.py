"""An agent that can't look at its host goes on, and its manager knows."""

import resource
import socket
from contextlib import suppress

from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_send
from tests.lab.rig import Rig, assert_ledger_closes


def test_an_agent_without_files_goes_on_and_feeds_its_watchdog(rig: Rig, pair: tuple[Host, Host]) -> None:
    """No descriptor is left and a device changed: each second there is a beat and a report, and a flood is shed."""
    vm, peer = pair
    collector = rig.collect(peer)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(str(rig.directory / "notify"))
        rig.environment |= {"NOTIFY_SOCKET": str(rig.directory / "notify"), "WATCHDOG_USEC": "30000000"}
        agent = rig.agent(vm, "--rate", "1mbit", full=False)
        before = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        vm.run(["ip", "address", "add", "10.9.0.99/24", "dev", "eth0"])
        told(manager)
        vm.call(udp_send, "10.9.0.1", 9000, 6000, 1000, 600)
        beats = told(manager)
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, before)
    ledger = agent.stop()

    assert sum("WATCHDOG=1" in one for one in beats) in range(5, 9), beats
    assert any("a full copy would be" in one for one in beats), beats
    assert "Too many open files" in agent.log_text()
    assert_ledger_closes(ledger, collector.stop())


def told(manager: socket.socket) -> list[str]:
    """All that the manager was told so far."""
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(manager.recv(4096).decode())
    return found
