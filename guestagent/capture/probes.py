"""What this kernel can do, found by trying, never by comparing versions.

Each probe answers a `Probe`; `check` prints them all, `run` asks for those that change what it does.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from guestagent.capture.block import STATUS_USER, walk
from guestagent.capture.bpf import compose
from guestagent.capture.interfaces import links
from guestagent.capture.ring import Ring
from guestagent.errors import GuestagentError
from guestagent.model import Interface

_UDP_SEGMENT = 103
"""UDP_SEGMENT (linux/udp.h) as a socket option of level SOL_UDP."""
_SEGMENT_BYTES = 512
_SEGMENTS = 3
_PROBE_RETIRE_MS = 4
_PROBE_PATIENCE_SECONDS = 0.2
_PROBE_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class Probe:
    """One question to the kernel: what was asked, whether it can, and what follows."""

    name: str
    ok: bool
    detail: str


def _segmented_datagram_is_recorded() -> bool | None:
    """Send one UDP_SEGMENT datagram over lo through a virtio ring; None where lo can't tell."""
    loopback = links().get("lo")
    if loopback is None:
        return None
    program = compose(loopback=True)
    ring = Ring(
        Interface(id=0, name="lo", mac="", mtu=loopback.mtu),
        loopback.index,
        program,
        block_count=_PROBE_BLOCKS,
        retire_ms=_PROBE_RETIRE_MS,
    )
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            sink.bind(("127.0.0.1", 0))
            sender.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT_BYTES)
            sender.sendto(bytes(_SEGMENT_BYTES * _SEGMENTS), sink.getsockname())
        return _datagram_seen(ring)
    except OSError:
        return None
    finally:
        ring.close()


def _datagram_seen(ring: Ring) -> bool | None:
    """True: the super-packet is there with its bytes. False: the kernel left a stale record."""
    deadline = time.monotonic() + _PROBE_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        block = ring.take()
        if block is None:
            time.sleep(_PROBE_RETIRE_MS / 4000)
            continue
        records = list(walk(block.memory[block.start : block.end], block.records))
        ring.release(block)
        if None in records:
            return False
        if any(record and record[3] & STATUS_USER and record[2] > _SEGMENT_BYTES * _SEGMENTS for record in records):
            return True
    return None


def probe_virtio() -> Probe:
    """Can the ring describe every super-packet that this kernel sends?"""
    try:
        seen = _segmented_datagram_is_recorded()
    except GuestagentError as error:
        return Probe("virtio header", False, f"wire sizes are inferred: {error}")
    if seen is False:
        return Probe("virtio header", False, "this kernel can't describe UDP_SEGMENT; wire sizes are inferred")
    if seen is None:
        return Probe("virtio header", True, "used; UDP_SEGMENT was not tried, since lo is down")
    return Probe("virtio header", True, "super-packets carry their segment size, UDP_SEGMENT too")


def probe_packet_socket() -> Probe:
    """May this process open a packet socket?"""
    from guestagent.capture.ring import open_packet_socket

    try:
        open_packet_socket("any interface").close()
    except GuestagentError as error:
        return Probe("packet socket", False, str(error))
    return Probe("packet socket", True, "CAP_NET_RAW is there")


PROBES: tuple[Callable[[], Probe], ...] = (probe_packet_socket, probe_virtio)
