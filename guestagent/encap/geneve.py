"""GENEVE (RFC 8926, section 3.4): eight bytes behind UDP, then options, then a frame or an IP packet. Pure.

    0   version (2 bits), length of the options in units of 4 bytes (6 bits)
    1   O: control packet, C: critical options present, 6 bits reserved
    2   protocol type: an EtherType, 0x6558 for an Ethernet frame
    4   VNI, 3 bytes
    7   reserved

    option, section 3.5:  class (2 bytes), type (its highest bit: critical), 3 bits reserved and the length of the data
                          in units of 4 bytes; then the data

Options are skipped. A critical one that the receiver does not know, which here is any, forbids to read on.
"""

from struct import Struct

from guestagent.encap.decoded import ETHERTYPE_FRAME, Decoded, MalformedTunnel, checked

HEADER_BYTES = 8
_HEADER = Struct(">BBHI")
_OPTION = Struct(">HBB")
_VERSION, _OPTION_WORDS = 0xC0, 0x3F
_CONTROL, _CRITICAL_OPTIONS = 0x80, 0x40
_CRITICAL = 0x80
_DATA_WORDS = 0x1F
_CLASS_OF_CLOUD_MIRROR = 0x0132
"""Google's: a copy made by Network Security Integration. Its inner packet is what was copied, without Ethernet."""


def header(key: int, ethertype: int = ETHERTYPE_FRAME) -> bytes:
    """The header, without options, of every packet of this VNI (24 bits)."""
    return _HEADER.pack(0, 0, ethertype, key << 8)


def decode(datagram: memoryview) -> Decoded:
    """Read the payload of one UDP datagram. Raises MalformedTunnel.

    A bare IP packet that Google's mirroring did not mark came through a gateway load balancer: it is an envelope.
    """
    if len(datagram) < HEADER_BYTES:
        raise MalformedTunnel(f"geneve header of 8 bytes is cut after {len(datagram)}")
    first, flags, ethertype, vni = _HEADER.unpack_from(datagram)
    if first & _VERSION:
        raise MalformedTunnel(f"geneve header is of version {first >> 6}; only version 0 is known")
    if flags & _CONTROL:
        raise MalformedTunnel("geneve header is one of a control packet, which carries no copy")
    end = HEADER_BYTES + 4 * (first & _OPTION_WORDS)
    classes = _classes(datagram, end)
    is_envelope = ethertype != ETHERTYPE_FRAME and _CLASS_OF_CLOUD_MIRROR not in classes
    return checked(Decoded("geneve", vni >> 8, end, ethertype, is_envelope=is_envelope), datagram)


def _classes(datagram: memoryview, end: int) -> set[int]:
    """The classes of the options that stand between the header and `end`."""
    if len(datagram) < end:
        raise MalformedTunnel(f"geneve options that end at byte {end} are cut after {len(datagram)}")
    at, classes = HEADER_BYTES, set()
    while at < end:
        option_class, kind, words = _OPTION.unpack_from(datagram, at)
        if kind & _CRITICAL:
            raise MalformedTunnel(f"geneve option {option_class:#06x}/{kind:#04x} is critical and not known here")
        classes.add(option_class)
        at += 4 + 4 * (words & _DATA_WORDS)
    if at != end:
        raise MalformedTunnel(f"geneve options end at byte {at}, but their header says {end}")
    return classes
