"""Bulk TCP through a direct tunnel: super-packets arrive as the frames of a wire that fit the path, none is lost."""

import hashlib
from pathlib import Path

import pytest

from guestagent.lab.hosts import Host
from guestagent.lab.traffic import send_bulk, serve_bulk
from tests.lab.rig import Rig, wait_for
from tests.lab.wire import fragments, is_watched, seen_frames, tshark, write_pcap

BULK_BYTES = 6_000_000
PORT = 5201
ROOM_BYTES = {4: 1464, 6: 1444}
"""A path of 1,500 bytes less IP, UDP and VXLAN headers, Ethernet header included."""
SENSOR = {4: "10.9.0.1", 6: "fd00:9::1"}
VM = {4: "10.9.0.2", 6: "fd00:9::2"}
OVERLAY_VM, OVERLAY_PEER = "10.77.0.2", "10.77.0.1"


def vxlan(host: Host, name: str, vni: int, local: str, remote: str, port: int = 4789) -> None:
    """A vxlan device that hands packets out as they came."""
    about = ["id", str(vni), "dstport", str(port), "local", local, "remote", remote]
    host.run(["ip", "link", "add", name, "type", "vxlan", *about])
    host.run(["ethtool", "-K", name, "gro", "off"])
    host.run(["ip", "link", "set", name, "up"])


def transfer(sender: Host, receiver: Host, address: str) -> str:
    """Send BULK_BYTES to an address of the receiver; their hash, which the receiver found, too."""
    server = receiver.start(serve_bulk, PORT, streams=1)
    receiver.wait_for_port(PORT)
    sent = sender.call(send_bulk, address, BULK_BYTES, PORT)
    assert server.result() == [(BULK_BYTES, sent)]
    return sent


def assert_checksums(path: Path) -> None:
    """Every checksum that tshark meets is good."""
    checks = ["-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]
    assert tshark(path, *checks, "-Y", "ip.checksum.status == 0 || tcp.checksum.status == 0") == []


def assert_stream(path: Path, digest: str, select: str) -> None:
    """The stream that tshark reassembles is the one that was sent."""
    assert_checksums(path)
    (stream,) = set(tshark(path, "-Y", select, "-T", "fields", "-e", "tcp.stream"))
    lines = tshark(path, "-q", "-z", f"follow,tcp,raw,{stream}")
    body = lines[next(at for at, line in enumerate(lines) if line.startswith("Node 1:")) + 1 : -1]
    data = b"".join(bytes.fromhex(line) for line in body if not line.startswith("\t"))
    assert hashlib.sha256(data[:BULK_BYTES]).hexdigest() == digest


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("outbound", [True, False])
def test_bulk_arrives_as_frames_of_the_wire(
    rig: Rig, pair: tuple[Host, Host], outbound: bool, version: int, tmp_path: Path
) -> None:
    """With all offloads on: no frame beyond the path's room, no outer fragment, checksums good, the very stream."""
    vm, peer = pair
    vxlan(peer, "vx0", 7, SENSOR[version], VM[version])
    sensor = f"[{SENSOR[version]}]" if version == 6 else SENSOR[version]
    agent = rig.agent(vm, "--filter", f"tcp port {PORT}", to=f"vxlan://{sensor}?vni=7")
    watcher = peer.start(seen_frames, "vx0", 1.0)
    wait_for(lambda: peer.call(is_watched), "the watcher")
    sender, receiver, address = (vm, peer, SENSOR[version]) if outbound else (peer, vm, VM[version])
    digest = transfer(sender, receiver, address)
    frames, report = watcher.result(), agent.stop()
    (about,) = report["link"]["destinations"]

    assert report["captured"] == report["delivered"] + report["dropped_by_ring"]
    assert report["dropped_by_ring"] == report["lost_on_link"] == 0
    assert len(frames) == about["frames"] > BULK_BYTES / ROOM_BYTES[version]
    assert max(map(len, frames)) == ROOM_BYTES[version] == about["room_bytes"]
    assert about["split"] > 0
    assert vm.call(fragments) == peer.call(fragments) == 0
    write_pcap(tmp_path / "inner.pcap", frames)
    assert_stream(tmp_path / "inner.pcap", digest, f"tcp.dstport == {PORT}")


@pytest.mark.parametrize("outbound", [True, False])
def test_bulk_inside_a_tunnel_of_the_vm(rig: Rig, pair: tuple[Host, Host], outbound: bool, tmp_path: Path) -> None:
    """The VM's own VXLAN over the tapped interface is cut at its inner TCP: the same holds of the inner stream."""
    vm, peer = pair
    vxlan(peer, "vx0", 7, SENSOR[4], VM[4])
    for host, near, far, address in ((vm, VM[4], SENSOR[4], OVERLAY_VM), (peer, SENSOR[4], VM[4], OVERLAY_PEER)):
        vxlan(host, "overlay", 88, near, far, 8472)
        host.run(["ip", "link", "set", "overlay", "mtu", "1450"])
        host.run(["ip", "address", "add", f"{address}/24", "dev", "overlay"])
    agent = rig.agent(vm, "--filter", "udp port 8472", to="vxlan://10.9.0.1?vni=7")
    watcher = peer.start(seen_frames, "vx0", 1.0)
    wait_for(lambda: peer.call(is_watched), "the watcher")
    sender, receiver, address = (vm, peer, OVERLAY_PEER) if outbound else (peer, vm, OVERLAY_VM)
    digest = transfer(sender, receiver, address)
    frames, report = watcher.result(), agent.stop()

    assert report["captured"] == report["delivered"]
    assert max(map(len, frames)) <= ROOM_BYTES[4]
    assert vm.call(fragments) == peer.call(fragments) == 0
    inner = [frame[50:] for frame in frames]
    write_pcap(tmp_path / "inner.pcap", inner)
    assert_checksums(tmp_path / "inner.pcap")
    assert hashlib.sha256(reassembled(inner)).hexdigest() == digest


def reassembled(frames: list[bytes]) -> bytes:
    """The stream to PORT, by sequence number: outer ports of the two directions differ, so their order is lost."""
    pieces, first = {}, 0
    for frame in frames:
        if int.from_bytes(frame[36:38], "big") == PORT:
            number, flags, start = int.from_bytes(frame[38:42], "big"), frame[47], 34 + (frame[46] >> 4) * 4
            first = number + 1 if flags & 0x02 else first
            piece = frame[start : 14 + int.from_bytes(frame[16:18], "big")]
            pieces[number] = max(piece, pieces.get(number, b""), key=len)
    data = bytearray(BULK_BYTES)
    for number, piece in pieces.items():
        at = (number - first) % (1 << 32)
        data[at : at + len(piece)] = piece
    return bytes(data[:BULK_BYTES])
