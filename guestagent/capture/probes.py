"""What this kernel can do, found by trying, never by comparing versions.

Each probe answers a `Probe`; `check` prints them all, `run` asks for those that change what it does.
"""

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass

from guestagent.capture.bpf import compose
from guestagent.capture.interfaces import links
from guestagent.capture.packetsocket import attach_filter, bind, describe_super_packets, open_packet_socket
from guestagent.errors import GuestagentError

_UDP_SEGMENT = 103
"""UDP_SEGMENT (linux/udp.h) as a socket option of level SOL_UDP."""
_SEGMENT_BYTES = 512
_DATAGRAM_BYTES = 3 * _SEGMENT_BYTES
_PATIENCE_SECONDS = 0.2
_MOST_FRAMES = 100
"""On a busy lo others' packets come too; the probe gives up rather than read them for ever."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One question to the kernel: what was asked, whether it can, and what follows."""

    name: str
    ok: bool
    detail: str


def _super_packet_is_described() -> bool | None:
    """Send one UDP_SEGMENT datagram over lo and look at its virtio header; None where lo can't tell.

    A plain packet socket asks the same question of the kernel as the ring does (virtio_net_hdr_from_skb): it answers
    EINVAL where the ring would have a hole. It costs no ring, whose set-up and end wait for RCU (30 ms here).
    """
    loopback = links().get("lo")
    if loopback is None:
        return None
    with open_packet_socket("lo") as tap, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        attach_filter(tap, compose(loopback=True))
        describe_super_packets(tap)
        tap.settimeout(_PATIENCE_SECONDS)
        try:
            bind(tap, socket.if_nametoindex("lo"))
            sender.bind(("127.0.0.1", 0))
            sender.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT_BYTES)
            sender.sendto(bytes(_DATAGRAM_BYTES), sender.getsockname())
            sizes = (tap.recv(1 << 16, socket.MSG_TRUNC) for _ in range(_MOST_FRAMES))
            return True if any(len(frame) > _DATAGRAM_BYTES for frame in sizes) else None
        except OSError as error:
            return False if error.errno == errno.EINVAL else None


def probe_virtio() -> Probe:
    """Can the ring describe every super-packet that this kernel sends?"""
    try:
        seen = _super_packet_is_described()
    except GuestagentError as error:
        return Probe("virtio header", False, f"wire sizes are inferred: {error}")
    if seen is False:
        return Probe("virtio header", False, "this kernel can't describe UDP_SEGMENT; wire sizes are inferred")
    if seen is None:
        return Probe("virtio header", True, "used; UDP_SEGMENT could not be tried on lo")
    return Probe("virtio header", True, "super-packets carry their segment size, UDP_SEGMENT too")


def probe_packet_socket() -> Probe:
    """May this process open a packet socket?"""
    try:
        open_packet_socket("any interface").close()
    except GuestagentError as error:
        return Probe("packet socket", False, str(error))
    return Probe("packet socket", True, "CAP_NET_RAW is there")


PROBES: tuple[Callable[[], Probe], ...] = (probe_packet_socket, probe_virtio)
