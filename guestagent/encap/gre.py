"""GRE with a key (RFC 2784, RFC 2890) around an Ethernet frame: what sensors call L2GRE. Pure.

    0   C R K S s, recursion, reserved, version (RFC 2784, section 2.1; R, s and recursion are of RFC 1701)
    2   protocol type: an EtherType, 0x6558 for an Ethernet frame
    4   checksum and a reserved word, with C
        key, with K                 (RFC 2890, section 2.1)
        sequence number, with S     (RFC 2890, section 2.2)

A checksum is skipped, not verified: the packet inside has its own.
"""

from struct import Struct
from typing import NamedTuple

from guestagent.encap.decoded import ETHERTYPE_FRAME, Decoded, MalformedTunnel, checked

HEADER_BYTES = 8
ERSPAN_TYPE_II, ERSPAN_TYPE_III = 0x88BE, 0x22EB
"""Protocol types of ERSPAN types I and II, and of type III (draft-foschiano-erspan-03, section 4)."""
_HEADER = Struct(">HHI")
_FIRST = Struct(">HH")
_WORD = Struct(">I")
_HAS_CHECKSUM, _HAS_KEY, _HAS_SEQUENCE = 0x8000, 0x2000, 0x1000
_MUST_BE_ZERO = 0x4C00
"""Bits 1, 4 and 5, on which a receiver must discard (RFC 2784, section 2.2); K and S got a meaning since."""
_VERSION = 0x0007


class Fields(NamedTuple):
    """What a GRE header says; `end` is its length."""

    protocol: int
    key: int | None
    sequence: int | None
    end: int


def header(key: int) -> bytes:
    """The header of every frame of this key (32 bits)."""
    return _HEADER.pack(_HAS_KEY, ETHERTYPE_FRAME, key)


def decode(datagram: memoryview) -> Decoded:
    """Read the payload of one IP packet of protocol 47. Raises MalformedTunnel."""
    protocol, key, sequence, end = fields(datagram)
    if protocol in (ERSPAN_TYPE_II, ERSPAN_TYPE_III):
        raise MalformedTunnel("gre header is followed by ERSPAN; listen on erspan:// for it")
    return checked(Decoded("gre", key, end, protocol, sequence), datagram)


def fields(datagram: memoryview) -> Fields:
    """The fields of a GRE header of version 0, whatever follows. Raises MalformedTunnel."""
    size = len(datagram)
    if size < _FIRST.size:
        raise MalformedTunnel(f"gre header of at least 4 bytes is cut after {size}")
    flags, protocol = _FIRST.unpack_from(datagram)
    if flags & _VERSION:
        raise MalformedTunnel(f"gre header is of version {flags & _VERSION}; only version 0 carries copies")
    if flags & _MUST_BE_ZERO:
        raise MalformedTunnel(f"gre header with flags {flags:#06x} asks for source routing of RFC 1701")
    at = 8 if flags & _HAS_CHECKSUM else 4
    words: list[int | None] = []
    for bit in (_HAS_KEY, _HAS_SEQUENCE):
        word = None
        if flags & bit:
            if size < at + 4:
                raise MalformedTunnel(f"gre header with flags {flags:#06x} is cut after {size} bytes")
            word, at = _WORD.unpack_from(datagram, at)[0], at + 4
        words.append(word)
    return Fields(protocol, words[0], words[1], at)
