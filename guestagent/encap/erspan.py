"""ERSPAN (draft-foschiano-erspan-03): a mirror's copy behind GRE. Type II is sent; I, II and III are read. Pure.

    type I    GRE of protocol 0x88be without a sequence number, then the frame
    type II   GRE of protocol 0x88be with one, then (section 4.1)
        0   version 1 (4 bits), VLAN (12)
        2   COS (3), En: how the VLAN tag went (2), T: cut (1), session (10)
        4   reserved (12), index of the port (20)
    type III  GRE of protocol 0x22eb with a sequence number, then (section 4.2)
        0   version 2 (4), VLAN (12)
        2   COS (3), BSO: bad, short or oversized (2), T: cut (1), session (10)
        4   timestamp (32)
        8   security group tag (16)
        10  P (1), FT: 0 an Ethernet frame, 2 an IP packet (5), hardware (6), D: egress (1), Gra (2), O (1)
        12  with O: 8 bytes of the platform's own

Type II is what sensors take; of type III most know nothing.
"""

from struct import Struct

from guestagent.encap import gre
from guestagent.encap.decoded import (
    ETHERTYPE_FRAME,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    Decoded,
    MalformedTunnel,
    checked,
)

HEADER_BYTES = 16
_TYPE_II = Struct(">HHIHHI")
_II, _III = Struct(">HHI"), Struct(">HHIHH")
_SEQUENCED = 0x1000
_VERSION_II, _VERSION_III = 1, 2
_SESSION, _TRUNCATED = 0x03FF, 0x0400
_TAG_IN_FRAME = 0b11 << 11
"""En: the frame has its VLAN tag still; 0 says that it came without."""
_PRIORITY, _VLAN = 0xE000, 0x0FFF
_FRAME, _IP = 0, 2
_EGRESS, _PLATFORM = 0x0008, 0x0001
_PLATFORM_BYTES = 8
_UNITS_NS = (100_000, 100, 0, 0)
"""By Gra: 100 µs, 100 ns, IEEE 1588 (nanoseconds of a clock whose seconds stand elsewhere), the sender's own."""


def header(key: int, sequence: int, *, tci: int | None = None, is_truncated: bool = False, index: int = 0) -> bytes:
    """GRE and ERSPAN type II headers of one frame. `key` is the session (10 bits), `sequence` counts modulo 2^32.

    `tci` is the tag that stands in the frame, if one does; `index` names the port to whoever reads it (20 bits).
    """
    bits = key | _TRUNCATED if is_truncated else key
    vlan = _VERSION_II << 12
    if tci is not None:
        vlan |= tci & _VLAN
        bits |= tci & _PRIORITY | _TAG_IN_FRAME
    return _TYPE_II.pack(_SEQUENCED, gre.ERSPAN_TYPE_II, sequence & 0xFFFFFFFF, vlan, bits, index)


def decode(datagram: memoryview) -> Decoded:
    """Read the payload of one IP packet of protocol 47, of any type. Raises MalformedTunnel."""
    found = gre.fields(datagram)
    if found.protocol == gre.ERSPAN_TYPE_III:
        return _type_iii(datagram, found)
    if found.protocol != gre.ERSPAN_TYPE_II:
        raise MalformedTunnel(f"gre header says protocol {found.protocol:#06x}, which is no ERSPAN")
    if found.sequence is None:
        return checked(Decoded("erspan", None, found.end, ETHERTYPE_FRAME), datagram)
    version, bits, _ = _read(_II, datagram, found.end)
    _expect(version, _VERSION_II)
    inner_at = found.end + _II.size
    is_truncated = bits & _TRUNCATED != 0
    return checked(
        Decoded("erspan", bits & _SESSION, inner_at, ETHERTYPE_FRAME, found.sequence, is_truncated), datagram
    )


def _type_iii(datagram: memoryview, found: gre.Fields) -> Decoded:
    version, bits, timestamp, _, kind = _read(_III, datagram, found.end)
    _expect(version, _VERSION_III)
    inner_at = found.end + _III.size + (_PLATFORM_BYTES if kind & _PLATFORM else 0)
    frame_type = kind >> 10 & 0x1F
    if frame_type == _FRAME:
        ethertype = ETHERTYPE_FRAME
    elif frame_type == _IP and inner_at < len(datagram):
        ethertype = ETHERTYPE_IPV6 if datagram[inner_at] >> 4 == 6 else ETHERTYPE_IPV4
    else:
        raise MalformedTunnel(f"erspan header says frame type {frame_type} and is followed by no packet of it")
    is_truncated, is_outgoing = bits & _TRUNCATED != 0, kind & _EGRESS != 0
    return checked(
        Decoded(
            "erspan",
            bits & _SESSION,
            inner_at,
            ethertype,
            found.sequence,
            is_truncated,
            is_outgoing,
            timestamp,
            _UNITS_NS[kind >> 1 & 0b11],
        ),
        datagram,
    )


def _read(shape: Struct, datagram: memoryview, at: int) -> tuple[int, ...]:
    if len(datagram) < at + shape.size:
        raise MalformedTunnel(f"erspan header of {shape.size} bytes is cut after {len(datagram) - at}")
    return shape.unpack_from(datagram, at)


def _expect(first: int, version: int) -> None:
    if first >> 12 != version:
        raise MalformedTunnel(f"erspan header is of version {first >> 12}, but GRE said that it is of {version}")
