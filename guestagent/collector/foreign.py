"""What a datagram of a foreign tunnel holds: whose copy it is, and its frame. Pure.

A cloud's own mirroring, a switch or a tap agent of another make sends tunnels. Such a sender says no hello, so it is
known by its address and the tunnel's key. Behind a gateway load balancer the address is that inside the envelope, or
all mirrored hosts would be one.

What comes without an Ethernet header (GENEVE of Google's mirroring, GRE with IP inside) gets one that is made up: both
addresses are locally administered (IEEE 802, clause 8.4) and the same for all. A frame that was cut on the way has the
length that its IP header tells, as far as one can be read.
"""

import re
from functools import lru_cache
from ipaddress import ip_address
from struct import Struct
from typing import NamedTuple

from guestagent.encap.decoded import ETHERTYPE_FRAME, ETHERTYPE_IPV4, ETHERTYPE_IPV6
from guestagent.encap.tunnel import unwrap

SYNTHESISED_ADDRESSES = bytes.fromhex("020000000002 020000000001")
"""Destination and source of Ethernet headers that are made up."""
MOST_NAME_CHARACTERS = 64
_UNFIT = re.compile(r"[^A-Za-z0-9._-]")
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
_MAPPED = "::ffff:"
"""How a socket of both families shows an IPv4 address (RFC 4291, section 2.5.5.2)."""
_ETHERNET_BYTES, _TAG_BYTES, _IPV6_BYTES = 14, 4, 40
_VLAN_TAGS = (0x8100, 0x88A8)
_U16 = Struct(">H").unpack_from


class Copy(NamedTuple):
    """One copied frame, and whose it is."""

    source: str
    """The address of whoever made the copy."""
    key: int | None
    frame: bytes | memoryview
    original_bytes: int
    """On the wire, as far as the frame tells."""
    is_outgoing: bool
    is_synthesised: bool
    """Its Ethernet header was made up."""


def read(scheme: str, datagram: memoryview, source: str) -> Copy:
    """The copy in a datagram that begins with its tunnel header. Raises MalformedTunnel."""
    layers = unwrap(scheme, datagram)
    last = layers[-1]
    if len(layers) > 1:
        source = _sender(datagram, layers[-2].inner_at) or source
    inner = datagram[last.inner_at :]
    is_synthesised = last.ethertype != ETHERTYPE_FRAME
    frame = b"".join((_header(last.ethertype), inner)) if is_synthesised else inner
    return Copy(source, last.key, frame, original_bytes(frame), bool(last.is_outgoing), is_synthesised)


def original_bytes(frame: bytes | memoryview) -> int:
    """How long a frame was before it was cut, by its IP header; its own length where that tells nothing more."""
    at, size = _ETHERNET_BYTES, len(frame)
    if size < at + _TAG_BYTES + _IPV6_BYTES:
        return size
    kind = _U16(frame, at - 2)[0]
    if kind in _VLAN_TAGS:
        at += _TAG_BYTES
        kind = _U16(frame, at - 2)[0]
    if kind == ETHERTYPE_IPV4:
        return int(max(size, at + _U16(frame, at + 2)[0]))
    if kind == ETHERTYPE_IPV6:
        return int(max(size, at + _IPV6_BYTES + _U16(frame, at + 4)[0]))
    return size


def sender_name(scheme: str, source: str, key: int | None) -> str:
    """What reports and files call a sender: `vxlan-10.0.0.5-77`, without the key where there is none."""
    parts = (scheme, source.removeprefix(_MAPPED) if "." in source else source, *(() if key is None else (str(key),)))
    return _UNFIT.sub("-", "-".join(parts))[:MOST_NAME_CHARACTERS]


def kind_of_fault(sentence: str) -> str:
    """A decoder's complaint without its numbers: so there are few, whatever a stranger sends."""
    return _NUMBERS.sub("N", sentence)


@lru_cache(8)
def _header(ethertype: int) -> bytes:
    return SYNTHESISED_ADDRESSES + ethertype.to_bytes(2, "big")


def _sender(datagram: memoryview, at: int) -> str:
    """The source of the IP packet at `at`; empty where it is cut."""
    source = bytes(datagram[at + 12 : at + 16] if datagram[at] >> 4 == 4 else datagram[at + 8 : at + 24])
    return _text(source) if len(source) in (4, 16) else ""


@lru_cache(1024)
def _text(address: bytes) -> str:
    return str(ip_address(address))
