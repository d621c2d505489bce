"""VXLAN (RFC 7348, section 5): eight bytes behind UDP that put a frame into a virtual network. Pure.

    0   flags     R R R R I R R R: I says that the VNI is valid; the others are reserved
    1   reserved  3 bytes
    4   VNI       3 bytes
    7   reserved

Reserved bits are sent as zero, which strict sensors ask for, and not looked at when they come in. Those that newer
formats gave a meaning are: with P, of VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe, section 3.1), what follows may be anything.
"""

from struct import Struct

from guestagent.encap.decoded import ETHERTYPE_FRAME, Decoded, MalformedTunnel, checked

HEADER_BYTES = 8
_HEADER = Struct(">II")
_VNI_IS_VALID = 0x08000000
_NEXT_PROTOCOL_IS_VALID = 0x04000000


def header(key: int) -> bytes:
    """The header of every frame of this VNI (24 bits)."""
    return _HEADER.pack(_VNI_IS_VALID, key << 8)


def decode(datagram: memoryview) -> Decoded:
    """Read the payload of one UDP datagram. Raises MalformedTunnel."""
    if len(datagram) < HEADER_BYTES:
        raise MalformedTunnel(f"vxlan header of 8 bytes is cut after {len(datagram)}")
    flags, vni = _HEADER.unpack_from(datagram)
    if not flags & _VNI_IS_VALID:
        raise MalformedTunnel(f"vxlan header with flags {flags >> 24:#04x} does not have the I flag")
    if flags & _NEXT_PROTOCOL_IS_VALID:
        raise MalformedTunnel(f"vxlan header with flags {flags >> 24:#04x} is one of VXLAN-GPE; send plain VXLAN")
    return checked(Decoded("vxlan", vni >> 8, HEADER_BYTES, ETHERTYPE_FRAME), datagram)
