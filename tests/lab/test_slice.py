"""`--slice headers`: of whatever carries TCP or UDP the headers are copied and not a byte behind them."""

import subprocess

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import inject, udp_send
from guestagent.lab.traffic import fetch_pages, serve_http
from tests.frames import (
    C_TAG,
    DESTINATION,
    FRAGMENT,
    HOP,
    IPV4,
    IPV6,
    MORE_FRAGMENTS,
    ROUTING,
    S_TAG,
    TCP,
    UDP,
    chained,
    ethernet,
    ipv4,
    ipv6,
    tcp,
    udp,
)
from tests.lab.rig import Rig, assert_ledger_closes

SECRET = b"~payload"
BODY = SECRET * 60
OPTIONS = bytes([7, 39, 4]) + bytes(37)
"""Record route, padded to the 40 bytes that an IPv4 header has room for."""
STAMPS = bytes([1, 1, 8, 10]) + bytes(8)
TRANSPORTS = {"TCP": (TCP, tcp(BODY, options=STAMPS)), "UDP": (UDP, udp(BODY))}
SHAPES = {
    "IPv4": lambda protocol, segment: ethernet(IPV4, ipv4(protocol, segment)),
    "IPv4 options": lambda protocol, segment: ethernet(IPV4, ipv4(protocol, segment, options=OPTIONS)),
    "first fragment": lambda protocol, segment: ethernet(IPV4, ipv4(protocol, segment, fragment=MORE_FRAGMENTS)),
    "later fragment": lambda protocol, _: ethernet(IPV4, ipv4(protocol, BODY, fragment=60)),
    "IPv6": lambda protocol, segment: ethernet(IPV6, ipv6(protocol, segment)),
    "IPv6 hop-by-hop": lambda protocol, segment: ethernet(IPV6, chained([HOP], protocol, segment)),
    "IPv6 four extensions": lambda protocol, segment: ethernet(
        IPV6, chained([HOP, DESTINATION, ROUTING, DESTINATION], protocol, segment, 24)
    ),
    "IPv6 fragment": lambda protocol, segment: ethernet(IPV6, chained([FRAGMENT], protocol, segment)),
    "one tag": lambda protocol, segment: ethernet(IPV4, ipv4(protocol, segment), [C_TAG]),
    "two tags": lambda protocol, segment: ethernet(IPV6, ipv6(protocol, segment), [S_TAG, C_TAG]),
}
FRAMES = {
    f"{name} in {shape}": make(protocol, segment)
    for shape, make in SHAPES.items()
    for name, (protocol, segment) in TRANSPORTS.items()
}


@pytest.mark.parametrize("outbound", [True, False])
def test_no_payload_is_copied(rig: Rig, lab: Lab, outbound: bool) -> None:
    """Options, extension headers, fragments, tags: every frame is there, with its length, and none with its payload."""
    vm, peer, side = lab.host("vm"), lab.host("peer"), lab.host("side")
    lab.link(vm, peer, "eth1", "eth1", a_addresses=["10.9.0.2/24"], b_addresses=["10.9.0.1/24"])
    lab.link(vm, side, a_addresses=[], b_addresses=[])
    assert all(SECRET in frame for frame in FRAMES.values())
    collector, agent = rig.collect(peer), rig.agent(vm, "--slice", "headers")
    (vm if outbound else side).call(inject, "eth0", list(FRAMES.values()), 500)
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    copies = list(rig.frames())
    leaking = [frame.data for frame in copies if SECRET in frame.data]
    assert not leaking
    for name, frame in FRAMES.items():
        assert any(
            len(copy.data) >= 34 and frame.startswith(copy.data) and copy.original_bytes == len(frame)
            for copy in copies
        ), name


def test_real_conversations_keep_their_headers_alone(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Pages and datagrams, offloads on: tshark finds every segment's length, and no byte of data behind its headers."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm, "--slice", "headers")
    peer.start(serve_http, 8080)
    peer.wait_for_port(8080)
    for address in ("10.9.0.1", "fd00:9::1"):
        vm.call(fetch_pages, address, 20, 20_000, 8080)
        vm.call(udp_send, address, 9000, 200, None, 400)
    ledger, report = agent.stop(), collector.stop()

    assert_ledger_closes(ledger, report)
    (file,) = rig.files()
    fields = ["-T", "fields", "-e", "tcp.len", "-e", "udp.length", "-e", "tcp.payload", "-e", "udp.payload"]
    argv = ["tshark", "-r", str(file), "-Y", "tcp || (udp.dstport == 9000 && !icmp && !icmpv6)", *fields]
    rows = [
        line.split("\t")
        for line in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    ]
    assert sum(int(row[0]) for row in rows if row[0]) > 2 * 20 * 20_000
    assert sum(row[1] == "408" for row in rows) == 400
    assert not any(row[2] or row[3] for row in rows)
