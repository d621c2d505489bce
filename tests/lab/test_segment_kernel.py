"""The kernel as oracle: its own software segmentation makes the same frames of a super-packet, byte for byte.

Two hosts hang on a switch whose port to the second does nothing in "hardware": what leaves the first as a super-packet
is cut there by the kernel's GSO code. The first host's interface is captured with virtio headers, the second's plainly.
"""

import socket
import struct
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guestagent.encap.segment import Segmenter, Virtio
from guestagent.lab.hosts import OFFLOADS, Lab
from guestagent.lab.packets import RECEIVE_BUFFER_BYTES, SO_RCVBUFFORCE, ethernet, inject, udp_send_segmented
from tests import frames
from tests.frames import C_TAG, IPV4, IPV6, chained, ipv4, ipv6, tcp, udp
from tests.segments import ECN, STAMPS, offload, payload_of, plain, pseudo_sum, whole, with_header_sum

ETH_P_ALL, MARKER = 3, 0x88B5
BEGIN, END = b"?", b"!"
SOL_PACKET, PACKET_AUXDATA, PACKET_VNET_HDR = 263, 8, 15
VIRTIO, AUXDATA = struct.Struct("<BBHHHH"), struct.Struct("=IIIHHHH")
STATUS_VLAN_VALID = 0x10
STREAM_PORT, STREAM_BYTES = 9100, 1 << 20
PATIENCE_SECONDS = 10.0


class Seen(NamedTuple):
    """One packet of a packet socket."""

    frame: bytes
    virtio: Virtio
    tag: tuple[int, int] | None


def watch(outgoing: bool) -> list[Seen]:
    """Everything on eth0 in one direction, between two frames of MARKER's type: BEGIN and END."""
    seen = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sniffer:
        sniffer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        sniffer.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        sniffer.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sniffer.bind(("eth0", ETH_P_ALL))
        sniffer.settimeout(PATIENCE_SECONDS)
        while True:
            data, auxiliary, _, address = sniffer.recvmsg(1 << 17, 256)
            frame = data[VIRTIO.size :]
            if (address[2] == socket.PACKET_OUTGOING) != outgoing:
                continue
            if frame[12:14] == MARKER.to_bytes(2, "big"):
                if frame[14:15] == END:
                    return seen
                seen.clear()
                continue
            status, _, _, _, _, tci, tpid = AUXDATA.unpack_from(auxiliary[0][2])
            tag = (tci, tpid) if status & STATUS_VLAN_VALID else None
            seen.append(Seen(frame, VIRTIO.unpack_from(data), tag))


def inject_offloaded(packets: Iterable[tuple[bytes, Virtio]]) -> None:
    """Send super-packets of any shape, as a guest hands them to its card."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        raw.bind(("eth0", 0))
        for frame, virtio in packets:
            raw.send(VIRTIO.pack(*virtio) + frame)


def serve() -> int:
    """Take one stream; its bytes."""
    with socket.create_server(("::", STREAM_PORT), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        connection, _ = server.accept()
        with connection:
            return sum(len(data) for data in iter(lambda: connection.recv(1 << 16), b""))


def stream_to(address: str) -> None:
    """Send STREAM_BYTES in writes of many sizes, which sets PSH here and there."""
    with socket.create_connection((address, STREAM_PORT)) as stream:
        content = payload_of(STREAM_BYTES)
        at = 0
        while at < STREAM_BYTES:
            size = 1 + at * 7919 % 60_000
            stream.sendall(content[at : at + size])
            at += size


class Wire:
    """The two hosts, and what passed from the first to the second."""

    def __init__(self, lab: Lab) -> None:
        self.agent, self.peer = lab.host("agent"), lab.host("peer")
        switch = lab.bridge(self.agent, self.peer)
        switch.run(["ethtool", "-K", "port2", *(word for feature in OFFLOADS for word in (feature, "off"))])

    def stream(self, address: str) -> None:
        """One TCP stream to the peer."""
        server = self.peer.start(serve)
        self.peer.wait_for_port(STREAM_PORT)
        self.agent.call(stream_to, address)
        assert server.result() == STREAM_BYTES

    def compare(self, make: list[tuple[Any, ...]]) -> tuple[Segmenter, Counter[bytes]]:
        """Run `make`, and hold the Segmenter's frames against those that arrived; (its counts, the frames)."""
        near, far = self.agent.start(watch, True), self.peer.start(watch, False)
        self._await_sniffers()
        self._mark(BEGIN)  # what crossed the wire while the sniffers opened may be missing from one of them
        for function, *arguments in make:
            function(*arguments)
        self._mark(END)
        sent, arrived = near.result(), far.result()
        sources = {one.frame[6:12] for one in sent}  # the switch speaks too
        arrived = [one for one in arrived if one.frame[6:12] in sources]
        assert not any(one.virtio[0] & 1 or one.virtio[1] for one in arrived), "the switch must have finished it all"
        segmenter = Segmenter()
        ours, theirs = frames_of(sent, segmenter), frames_of(arrived, Segmenter())
        assert ours == theirs, difference(ours, theirs)
        return segmenter, ours

    def _mark(self, word: bytes) -> None:
        self.agent.call(inject, "eth0", [ethernet(word * 46, MARKER)])

    def _await_sniffers(self) -> None:
        for host in (self.agent, self.peer):
            host.call(_until_sniffed)


def _until_sniffed() -> None:
    """Until a packet socket that takes all protocols runs in this network."""
    while not any(row.split()[3:6:2] == ["0003", "1"] for row in Path("/proc/net/packet").read_text().splitlines()[1:]):
        time.sleep(0.005)


def frames_of(seen: list[Seen], segmenter: Segmenter) -> Counter[bytes]:
    """What the Segmenter makes of the records."""
    cut = (segmenter.frames(memoryview(one.frame), one.virtio, len(one.frame), one.tag) for one in seen)
    return Counter(whole(wire) for wires in cut for wire in wires)


def difference(ours: Counter[bytes], theirs: Counter[bytes]) -> str:
    """The first frames that are not in both, in hex."""
    lines = [f"{sum(ours.values())} frames of ours, {sum(theirs.values())} of the kernel's"]
    for name, rest in (("ours", ours - theirs), ("kernel's", theirs - ours)):
        lines += [f"{name:8s} {len(frame):5d} {frame[:100].hex()}" for frame in sorted(rest)[:4]]
    return "\n".join(lines)


@pytest.fixture
def wire(lab: Lab) -> Wire:
    """The hosts and their switch."""
    return Wire(lab)


@pytest.mark.root
@pytest.mark.parametrize("address", ["10.9.0.2", "fd00:9::2"])
def test_a_tcp_stream_is_cut_as_the_kernel_cuts_it(wire: Wire, address: str) -> None:
    """A megabyte in writes of many sizes, handshake, acknowledgements and end: equal frames, none too long."""
    segmenter, arrived = wire.compare([(wire.stream, address)])

    assert segmenter.super_packets > 5
    assert segmenter.segments > 500
    assert not segmenter.not_understood
    assert max(map(len, arrived)) == 1514


@pytest.mark.root
@pytest.mark.parametrize("address", ["10.9.0.2", "fd00:9::2"])
def test_udp_gso_is_cut_as_the_kernel_cuts_it(wire: Wire, address: str) -> None:
    """Datagrams of an application that hands them over in one piece, the last one short."""
    segmenter, arrived = wire.compare([(wire.agent.call, udp_send_segmented, address, 9000, 500, None, 1201)])

    assert segmenter.super_packets > 5
    assert sum(arrived.values()) >= 500
    assert not segmenter.not_understood


FIN_PSH_CWR = 0x10 | 0x01 | 0x08 | 0x80


def crafted() -> list[tuple[bytes, Virtio]]:
    """Shapes that a stream does not show on its own."""
    payload = payload_of(5001)
    shapes = [
        (frames.TCP, 4, ipv4(frames.TCP, tcp(payload, options=STAMPS, flags=FIN_PSH_CWR)), 20, ECN),
        (frames.TCP, 4, ipv4(frames.TCP, tcp(payload, flags=FIN_PSH_CWR)), 20, 0),
        (frames.TCP, 4, ipv4(frames.TCP, tcp(payload), options=b"\x01" * 12, fragment=0x4000), 32, 0),
        (frames.TCP, 4, ipv4(frames.TCP, tcp(payload, options=frames.OPTIONS40)), 20, 0),
        (frames.TCP, 6, ipv6(frames.TCP, tcp(payload, options=STAMPS, flags=FIN_PSH_CWR)), 40, 0),
        (frames.TCP, 6, chained([frames.HOP, frames.DESTINATION], frames.TCP, tcp(payload)), 56, 0),
        (frames.UDP, 4, ipv4(frames.UDP, udp(payload, destination=9000)), 20, 0),
        (frames.UDP, 6, ipv6(frames.UDP, udp(payload, destination=9000)), 40, 0),
    ]
    made = []
    for protocol, version, packet, network_bytes, more in shapes:
        for tags in ((), (C_TAG,)):
            frame = bytearray(frames.ethernet(IPV4 if version == 4 else IPV6, packet, tags))
            start = 14 + 4 * len(tags) + network_bytes
            virtio = offload(protocol, version, 1000, start, more)
            place = start + virtio[5]
            frame[place : place + 2] = crafted_sum(frame, version, protocol, 14 + 4 * len(tags), start)
            if version == 4:
                with_header_sum(frame, 14 + 4 * len(tags))
            made.append((bytes(frame), virtio))
    wrapping = bytearray(made[0][0])
    wrapping[18:20], wrapping[38:42] = b"\xff\xfd", b"\xff\xff\xff\x00"
    with_header_sum(wrapping, 14)
    made.append((bytes(wrapping), made[0][1]))
    return made


def crafted_sum(frame: bytearray, version: int, protocol: int, at: int, start: int) -> bytes:
    """Of the pseudo header, where options or extension headers stand between the addresses and the transport."""
    addresses = frame[at + 12 : at + 20] if version == 4 else frame[at + 8 : at + 40]
    return pseudo_sum(addresses + frame[start:], version, protocol, len(addresses))


@pytest.mark.root
def test_odd_super_packets_are_cut_as_the_kernel_cuts_them(wire: Wire) -> None:
    """FIN, PSH and CWR, IPv4 options, IPv6 extension headers, tags inside, numbers that wrap, UDP."""
    packets = crafted()
    segmenter, _ = wire.compare([(wire.agent.call, inject_offloaded, packets)])

    assert len(packets) == segmenter.super_packets
    assert 6 * len(packets) <= segmenter.segments


@pytest.mark.root
def test_checksums_of_packets_that_need_no_cut(wire: Wire) -> None:
    """Small packets whose checksum was left to the card are finished as the kernel finishes them, a UDP zero too."""
    packets = []
    for protocol, version, upper in (
        (frames.TCP, 4, tcp(b"odd")),
        (frames.TCP, 6, tcp(b"even")),
        (frames.UDP, 4, udp(b"odd", destination=9000)),
        (frames.UDP, 6, udp(b"even", destination=9000)),
    ):
        frame = bytearray(plain(protocol, version, upper))
        start = 34 if version == 4 else 54
        place = start + (16 if protocol == frames.TCP else 6)
        frame[place : place + 2] = pseudo_sum(frame, version, protocol, start)
        if version == 4:
            with_header_sum(frame, 14)
        packets.append((bytes(frame), (1, 0, 0, 0, start, place - start)))
    segmenter, _ = wire.compare([(wire.agent.call, inject_offloaded, packets)])

    assert segmenter.completed >= len(packets)


@pytest.mark.root
@pytest.mark.parametrize(
    "underlay, options",
    [("10.9.0", ["noudpcsum"]), ("10.9.0", ["udpcsum"]), ("fd00:9:", ["udpcsum"])],
    ids=["IPv4", "IPv4, outer checksum", "IPv6"],
)
@pytest.mark.parametrize("address", ["10.8.0.2", "fd00:8::2"])
def test_super_packets_inside_vxlan_are_cut_as_the_kernel_cuts_them(
    wire: Wire, underlay: str, options: list[str], address: str
) -> None:
    """The tapped host itself speaks VXLAN: both headers, inner and outer checksums are those of the kernel."""
    dot = ":" if ":" in underlay else "."
    for number, host in enumerate((wire.agent, wire.peer), 1):
        ends = ["local", f"{underlay}{dot}{number}", "remote", f"{underlay}{dot}{3 - number}"]
        name = ["ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "dstport", "4789"]
        done = host.run([*name, *ends, *options, "dev", "eth0"], check=False)
        if done.returncode:
            pytest.skip(f"this kernel has no vxlan device: {done.stderr.strip()}")
        host.run(["ip", "link", "set", "vx0", "up"])
        host.run(["ip", "address", "add", f"10.8.0.{number}/24", "dev", "vx0"])
        host.run(["ip", "address", "add", f"fd00:8::{number}/64", "dev", "vx0", "nodad"])
    segmenter, arrived = wire.compare([(wire.stream, address)])

    assert segmenter.super_packets > 5
    assert segmenter.segments > 500
    assert not segmenter.not_understood
    assert max(map(len, arrived)) == 1514
