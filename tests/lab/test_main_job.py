"""The main job on real traffic: everything that crosses the NIC is in the copy, byte for byte, or counted."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from guestagent.lab.hosts import Host, Lab
from guestagent.lab.packets import udp_send, udp_send_segmented, udp_sink
from guestagent.lab.traffic import fetch_pages, send_bulk, serve_bulk, serve_http
from tests.lab.rig import Rig, assert_ledger_closes, udp_indexes, wait_for

DATAGRAMS = 100_000
"""Each way; 200,000 in all at 50,000 a second."""
PACE = 25_000


def test_every_datagram_of_both_directions_is_written_once(rig: Rig, pair: tuple[Host, Host]) -> None:
    """200,000 datagrams at 50 kpps, half each way, are in the pcapng byte-exact, none missing, none twice."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm)
    sinks = [vm.start(udp_sink, 9001), peer.start(udp_sink, 9000)]
    vm.wait_for_port(9001)
    peer.wait_for_port(9000)
    senders = [
        vm.start(udp_send, "10.9.0.1", 9000, DATAGRAMS, PACE, 512),
        peer.start(udp_send, "10.9.0.2", 9001, DATAGRAMS, PACE, 512),
    ]
    for sender in senders:
        sender.result(30)
    ledger, report = agent.stop(), collector.stop()
    for sink in sinks:
        sink.terminate()

    assert_ledger_closes(ledger, report)
    assert ledger["dropped_by_ring"] == 0
    for port in (9000, 9001):
        assert sorted(udp_indexes(rig.frames(), port, 512)) == list(range(DATAGRAMS))


@pytest.mark.parametrize("offloads", [True, False])
@pytest.mark.parametrize("outbound", [True, False])
def test_a_bulk_transfer_reassembles_to_the_same_bytes(rig: Rig, lab: Lab, offloads: bool, outbound: bool) -> None:
    """A TCP transfer, super-packets or not, is copied complete: tshark reassembles the very file."""
    vm, peer = lab.host("vm"), lab.host("peer")
    lab.link(vm, peer, offloads=offloads)
    sender, receiver, address = (vm, peer, "10.9.0.1") if outbound else (peer, vm, "10.9.0.2")
    collector, agent = rig.collect(peer), rig.agent(vm)
    server = receiver.start(serve_bulk, 5201, streams=1)
    receiver.wait_for_port(5201)
    sent = sender.call(send_bulk, address, 40_000_000, 5201)
    ((size, received),) = server.result()
    ledger, report = agent.stop(), collector.stop()

    assert (40_000_000, sent) == (size, received)
    assert_ledger_closes(ledger, report)
    assert ledger["dropped_by_ring"] == 0
    biggest = max(frame.original_bytes for frame in rig.frames())
    assert (biggest > 9000) == offloads
    assert hashlib.sha256(_stream_of(rig.files()[0], 5201)[:size]).hexdigest() == sent


def _stream_of(path: Path, port: int) -> bytes:
    """What the client of the conversation with `port` sent, as tshark reassembles it."""
    (stream,) = set(_tshark_fields(path, f"tcp.dstport == {port}", "tcp.stream"))
    follow = ["tshark", "-q", "-r", path, "-z", f"follow,tcp,raw,{stream}"]
    lines = subprocess.run(follow, capture_output=True, check=True, text=True, timeout=120).stdout.splitlines()
    body = lines[next(at for at, line in enumerate(lines) if line.startswith("Node 1:")) + 1 : -1]
    return b"".join(bytes.fromhex(line) for line in body if not line.startswith("\t"))


def test_segmented_datagrams_arrive_whole(rig: Rig, pair: tuple[Host, Host]) -> None:
    """UDP_SEGMENT super-packets are copied with all their datagrams, in order."""
    vm, peer = pair
    collector, agent = rig.collect(peer), rig.agent(vm)
    sink = peer.start(udp_sink, 9000)
    peer.wait_for_port(9000)
    vm.call(udp_send_segmented, "10.9.0.1", 9000, 6400, 20_000, 1000)
    ledger, report = agent.stop(), collector.stop()
    sink.terminate()

    assert_ledger_closes(ledger, report)
    payloads = b"".join(
        frame.data[42:]
        for frame in rig.frames()
        if frame.data[12:14] == b"\x08\x00" and frame.data[36:38] == b"\x23\x28"
    )
    assert [int.from_bytes(payloads[at : at + 8], "big") for at in range(0, len(payloads), 1000)] == list(range(6400))


@pytest.mark.parametrize("family", ["10.9.0.1", "fd00:9::1"])
def test_own_connection_is_left_out_and_nothing_else(rig: Rig, pair: tuple[Host, Host], family: str) -> None:
    """No frame of the agent's connection is copied; all else with the collector's host is, on every port."""
    vm, peer = pair
    collector = rig.collect(peer, listen=family)
    address = f"[{family}]" if ":" in family else family
    agent = rig.agent(vm, to=f"tcp://{address}:4795")
    server = peer.start(serve_http, 8080)
    peer.wait_for_port(8080)
    vm.call(fetch_pages, family, 20, 5000, 8080)
    # Another connection to the collector's own port is not ours.
    vm.run(["python3", "-c", f"import socket; socket.create_connection(({family!r}, 4795)).sendall(b'x' * 50)"])
    wait_for(lambda: collector.status().get("refused"), "the stranger to be refused")
    ledger, report = agent.stop(), collector.stop()
    server.terminate()

    assert_ledger_closes(ledger, report)
    ports = {int.from_bytes(frame.data[at : at + 2], "big") for frame in rig.frames() for at in (34, 36, 54, 56)}
    assert 8080 in ports
    text = _tshark_fields(rig.files()[0], "tcp.port == 4795", "tcp.stream")
    assert len(set(text)) == 1, "only the stranger's connection to the collector's port is there"


def _tshark_fields(path: Path, select: str, *names: str) -> list[str]:
    fields = [word for name in names for word in ("-e", name)]
    command = ["tshark", "-r", path, "-Y", select, "-T", "fields", *fields]
    return subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout.splitlines()
