"""Load that is known to the byte: counted UDP, paced or flat out, super-packets, and raw frames of any shape.

Every datagram carries its index and bytes that follow from it, so whoever sees a copy can say which one it is
and whether it is whole.
"""

import random
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from guestagent.lab.batches import BatchSender

INDEX_BYTES = 8
UDP_SEGMENT = 103
SO_RCVBUFFORCE = 33
ETH_P_8021Q = 0x8100
UDP_PORT = 9000
UDP_MAX_PAYLOAD_BYTES = 65_507
SEGMENTS_PER_SEND = 64
"""The kernel's UDP_MAX_SEGMENTS before 6.9."""
RECEIVE_BUFFER_BYTES = 32 << 20
"""So that the sink does not lose what a paced sender sends while two cores share the work."""
POOL_PERIOD = 1 << 16
SPREAD = 40_503
"""Odd, so neighbouring indices start far apart in the pool and none meets its own bytes before 2^16 others."""
_pool = random.Random(4795).randbytes(2 * POOL_PERIOD)


class Sent(NamedTuple):
    """What a sender handed to the kernel."""

    packets: int
    bytes: int
    seconds: float


class Received(NamedTuple):
    """What a sink got: `packets - distinct` came twice, `corrupt` are not what their index says."""

    packets: int
    bytes: int
    distinct: int
    corrupt: int


def udp_payload(index: int, size: int) -> bytes:
    """The content of datagram `index`, up to 64 KB: the index in eight big-endian bytes, then filler of that index."""
    start = index * SPREAD % POOL_PERIOD
    return (index.to_bytes(INDEX_BYTES, "big") + _pool[start : start + size])[:size]


def udp_send(
    destination: str,
    port: int = UDP_PORT,
    count: int = 1000,
    packets_per_second: float | None = None,
    payload_bytes: int = 512,
    *,
    source_port: int = 0,
    first_index: int = 0,
) -> Sent:
    """Send `count` datagrams at the given pace, or without one as fast as one process can."""
    payloads = (udp_payload(index, payload_bytes) for index in range(first_index, first_index + count))
    with _connected(destination, port, source_port) as udp:
        return Sent(*BatchSender(udp).send_paced(payloads, packets_per_second))


def udp_send_segmented(
    destination: str,
    port: int = UDP_PORT,
    count: int = 1000,
    packets_per_second: float | None = None,
    payload_bytes: int = 1200,
    *,
    source_port: int = 0,
    first_index: int = 0,
) -> Sent:
    """The same datagrams, given to the kernel as UDP_SEGMENT super-packets."""
    per_send = min(SEGMENTS_PER_SEND, UDP_MAX_PAYLOAD_BYTES // payload_bytes)
    end = first_index + count
    firsts = range(first_index, end, per_send)
    trains = (b"".join(udp_payload(at, payload_bytes) for at in range(i, min(i + per_send, end))) for i in firsts)
    pace = packets_per_second and packets_per_second / per_send
    with _connected(destination, port, source_port) as udp:
        udp.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, payload_bytes)
        _, size, seconds = BatchSender(udp).send_paced(trains, pace)
    return Sent(count, size, seconds)


def udp_sink(
    port: int = UDP_PORT, count: int | None = None, idle_seconds: float = 1.0, patience: float = 30.0
) -> Received:
    """Take datagrams of either family until `count` came, or none for `idle_seconds` after the first."""
    packets = size = corrupt = 0
    seen: set[int] = set()
    with _sink(port) as udp:
        udp.settimeout(patience)
        with suppress(TimeoutError):
            while count is None or packets < count:
                payload = udp.recv(UDP_MAX_PAYLOAD_BYTES)
                if not packets:
                    udp.settimeout(idle_seconds)
                index = int.from_bytes(payload[:INDEX_BYTES], "big")
                packets += 1
                size += len(payload)
                seen.add(index)
                corrupt += payload != udp_payload(index, len(payload))
    return Received(packets, size, len(seen), corrupt)


def inject(ifname: str, frames: Iterable[bytes], frames_per_second: float | None = None) -> Sent:
    """Put raw frames on the wire as they are: tags, fragments, ARP, runts, jumbo (up to the interface's MTU)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:  # protocol 0: receives nothing
        raw.bind((ifname, 0))
        return Sent(*BatchSender(raw).send_paced(frames, frames_per_second))


def ethernet(
    payload: bytes,
    ethertype: int,
    destination: str = "ff:ff:ff:ff:ff:ff",
    source: str = "02:00:00:00:00:01",
    vlans: Iterable[int] = (),
) -> bytes:
    """A frame for `inject`; `vlans` are the outermost tag first, its TPID in the upper 16 bits where not 802.1Q."""
    tags = b"".join((vlan if vlan >> 16 else ETH_P_8021Q << 16 | vlan).to_bytes(4, "big") for vlan in vlans)
    addresses = bytes.fromhex((destination + source).replace(":", ""))
    return addresses + tags + ethertype.to_bytes(2, "big") + payload


def _connected(destination: str, port: int, source_port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(destination, port, type=socket.SOCK_DGRAM)[0]
    udp = socket.socket(family, kind, protocol)
    udp.bind(("", source_port))
    udp.connect(address)
    return udp


def _sink(port: int) -> socket.socket:
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    for option in (socket.SO_RCVBUF, SO_RCVBUFFORCE):  # the second is root's alone and has no ceiling
        with suppress(PermissionError):
            udp.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES)
    udp.bind(("::", port))
    return udp
