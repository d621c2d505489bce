"""One flow that would break the budget is cut to its headers; the 500 small ones beside it are copied whole."""

import os
import subprocess
import time

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_send
from guestagent.lab.traffic import page, serve_http
from tests.lab.flows import (
    NAME_FLOWS,
    NAMES_PORT,
    PAGE_BYTES,
    PAGES_PORT,
    Conversations,
    ask_names,
    ask_pages,
    serve_names,
)
from tests.lab.governed import LEAST_PACE
from tests.lab.rig import Rig, assert_ledger_closes

pytestmark = pytest.mark.alone

PEER, VM = "10.9.0.3", "10.9.0.2"
SECONDS = 7.0
ELEPHANT_AFTER_SECONDS, ELEPHANT_SECONDS = 1.0, 4
FLAGS = ("--yield", "off", "--ring", "128MiB")
"""An elephant of 17 Gbit/s fills the default ring in 30 ms, as long as it takes to know it on a busy machine."""
CPU_PERCENT, CPU_PERCENT_OF_UDP_IN, GATE = 5, 3, 1.3
"""In a slow hour this machine brings 110,000 small datagrams a second into the VM, and 5 % copy them whole."""
ELEPHANT_PORT = 5201
"""iperf3's."""
FIN, SYN, RST = 0x01, 0x02, 0x04
LEAST_FLOWS, PACKETS_PER_SECOND, PACKETS_OF_A_PAGE = 500, 2000, 10
MOST_HEADERS_BYTES = 66
"""Ethernet, IPv4, TCP with timestamps."""


@pytest.mark.parametrize("elephant", ["TCP in", "TCP out", "UDP in", "UDP out"])
def test_small_flows_are_whole_beside_an_elephant(rig: Rig, lab: Lab, elephant: str) -> None:
    """Every question, answer and page is there byte for byte; the elephant is there with headers, begin and end; the
    agent's own time stays within the budget.
    """
    peer, vm, third = lab.host("peer"), lab.host("vm"), lab.host("collector")
    lab.bridge(third, vm, peer)
    percent = CPU_PERCENT_OF_UDP_IN if elephant == "UDP in" else CPU_PERCENT
    collector, agent = rig.collect(third), rig.agent(vm, "--cpu", str(percent), *FLAGS, full=False)
    servers = [peer.start(serve_names), peer.start(serve_http, PAGES_PORT)]
    peer.popen(["iperf3", "-s"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for port in (NAMES_PORT, PAGES_PORT, ELEPHANT_PORT):
        peer.wait_for_port(port)
    names, pages = vm.start(ask_names, PEER, SECONDS), vm.start(ask_pages, PEER, SECONDS)
    time.sleep(ELEPHANT_AFTER_SECONDS)
    start, own_seconds = time.monotonic(), agent.cpu_seconds()
    let_pass(elephant, vm, peer)
    own_cores = (agent.cpu_seconds() - own_seconds) / (time.monotonic() - start)
    limits = agent.status()["limits"]
    (asked, answered), fetched = names.result(), pages.result()
    ledger, report = agent.stop(), collector.stop()
    for server in servers:
        server.terminate()

    assert_ledger_closes(ledger, report)
    assert own_cores <= GATE * percent / 100 * (os.cpu_count() or 1)
    assert (limits["slice"], limits["sample"]) == ("full", 1.0), limits["reason"]
    assert limits["heavy_flows"] > 0
    found = Conversations(rig.frames(), ELEPHANT_PORT)
    assert sorted(found.questions) == list(range(asked))
    assert len(found.answers) == len(set(found.answers)) >= answered
    assert found.damaged == 0
    assert found.whole_pages(page(PAGE_BYTES)) == len(found.requests) == fetched
    assert NAME_FLOWS + fetched >= LEAST_FLOWS
    assert asked + answered + PACKETS_OF_A_PAGE * fetched >= LEAST_PACE * SECONDS * PACKETS_PER_SECOND
    cut = sum(len(frame.data) <= MOST_HEADERS_BYTES < frame.original_bytes for frame in found.elephant)
    assert cut > 1000
    if elephant.startswith("TCP"):
        assert found.elephant_flags & SYN
        assert found.elephant_flags & (FIN | RST), "iperf3 may leave by either"


def let_pass(elephant: str, vm: Host, peer: Host) -> None:
    """Some seconds of it, as fast as this machine can."""
    protocol, way = elephant.split()
    if protocol == "TCP":
        reverse = ["-R"] if way == "in" else []
        vm.run(["iperf3", "-c", PEER, "-t", str(ELEPHANT_SECONDS), *reverse])
        return
    sender, address = (vm, PEER) if way == "out" else (peer, VM)
    task = sender.start(udp_send, address, ELEPHANT_PORT, 10**9, None, 128)
    time.sleep(ELEPHANT_SECONDS)
    task.terminate()
