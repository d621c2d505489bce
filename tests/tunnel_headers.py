"""Tunnel headers as literal bytes, laid out as in the RFC figures: ours, those of others, and what is none."""

from typing import NamedTuple

from guestagent.encap.tunnel import Decoded
from tests.frames import IPV4, IPV6, TCP, ethernet, ipv4, ipv6, tcp

FRAME = ethernet(IPV4, ipv4(TCP, tcp()))
PACKET = FRAME[14:]
ETHERNET = 0x6558


class Case(NamedTuple):
    """A header that our encoder writes, and what our decoder says of it."""

    scheme: str
    arguments: tuple[int, ...]
    options: dict[str, int | bool]
    header: str
    found: Decoded


SENT = (
    Case("vxlan", (0,), {}, "08000000 00000000", Decoded("vxlan", 0, 8, ETHERNET)),
    Case("vxlan", (0x123456,), {}, "08000000 12345600", Decoded("vxlan", 0x123456, 8, ETHERNET)),
    Case("vxlan", (0xFFFFFF,), {}, "08000000 ffffff00", Decoded("vxlan", 0xFFFFFF, 8, ETHERNET)),
    Case("geneve", (0x123456,), {}, "00006558 12345600", Decoded("geneve", 0x123456, 8, ETHERNET)),
    Case(
        "geneve",
        (7,),
        {"ethertype": IPV4},
        "00000800 00000700",
        Decoded("geneve", 7, 8, IPV4, is_envelope=True),
    ),
    Case("gre", (0xDEADBEEF,), {}, "20006558 deadbeef", Decoded("gre", 0xDEADBEEF, 8, ETHERNET)),
    Case("gre", (0,), {}, "20006558 00000000", Decoded("gre", 0, 8, ETHERNET)),
    Case("erspan", (0x3FF, 1), {}, "100088be 00000001 1000 03ff 00000000", Decoded("erspan", 0x3FF, 16, ETHERNET, 1)),
    Case(
        "erspan",
        (5, 0x1_0000_0002),
        {"tci": 0xA064, "is_truncated": True, "index": 0x54321},
        "100088be 00000002 1064 bc05 00054321",
        Decoded("erspan", 5, 16, ETHERNET, 2, True),
    ),
)

RECEIVED = (
    # scheme, header, what is found; of senders that set what we leave out
    ("vxlan", "88000123 00000700", Decoded("vxlan", 7, 8, ETHERNET)),  # group policy bits, reserved for RFC 7348
    ("vxlan", "08ffffff 000007ff", Decoded("vxlan", 7, 8, ETHERNET)),  # reserved bits that are not zero
    ("geneve", "02006558 00000700 01020001 aabbccdd", Decoded("geneve", 7, 16, ETHERNET)),
    (
        "geneve",
        "02006558 00000700 01020061 aabbccdd",
        Decoded("geneve", 7, 16, ETHERNET),
    ),  # bits beside the length
    ("geneve", "033f6558 000007ff 01020001 aabbccdd 01030100", Decoded("geneve", 7, 20, ETHERNET)),
    # Cloud mirroring: a bare packet behind options of class 0x0132
    (
        "geneve",
        "03000800 00000000 01320101 00000001 01320300",
        Decoded("geneve", 0, 20, IPV4),
    ),
    ("geneve", "020086dd 00000000 01320101 00000001", Decoded("geneve", 0, 16, IPV6)),
    # A gateway load balancer: a bare packet behind three options of class 0x0108
    (
        "geneve",
        "08000800 00000000 01080102 0011223344556677 01080202 8899aabbccddeeff 01080301 01234567",
        Decoded("geneve", 0, 40, IPV4, is_envelope=True),
    ),
    ("gre", "00006558", Decoded("gre", None, 4, ETHERNET)),
    ("gre", "00000800", Decoded("gre", None, 4, IPV4)),
    ("gre", "b0006558 00000000 00000007 00000009", Decoded("gre", 7, 16, ETHERNET, 9)),
    ("gre", "80006558 beef0000", Decoded("gre", None, 8, ETHERNET)),
    ("gre", "10006558 00000009", Decoded("gre", None, 8, ETHERNET, 9)),
    ("gre", "20086558 00000007", Decoded("gre", 7, 8, ETHERNET)),  # reserved bits 6 to 12 are not looked at
    ("erspan", "000088be", Decoded("erspan", None, 4, ETHERNET)),  # type I
    ("erspan", "300088be 00000000 00000009 10000007 00000000", Decoded("erspan", 7, 20, ETHERNET, 9)),
    (
        "erspan",  # type III, egress, 100 ns
        "100022eb 00000009 20000407 89abcdef 0000 800a",
        Decoded("erspan", 7, 20, ETHERNET, 9, True, True, 0x89ABCDEF, 100),
    ),
    (
        "erspan",  # an IPv4 packet, ingress, 100 µs, eight bytes of the platform
        "100022eb 00000009 20000007 00000001 0000 0801 0c000000 00000000",
        Decoded("erspan", 7, 28, IPV4, 9, False, False, 1, 100_000),
    ),
)

REFUSED = (
    ("vxlan", "", "vxlan header of 8 bytes is cut after 0"),
    ("vxlan", "08000000 000007", "vxlan header of 8 bytes is cut after 7"),
    ("vxlan", "00000000 00000700", "vxlan header with flags 0x00 does not have the I flag"),
    ("vxlan", "0c000003 00000700", "vxlan header with flags 0x0c is one of VXLAN-GPE; send plain VXLAN"),
    ("vxlan", "08000000 00000700", "vxlan header is followed by 0 bytes, too few for a packet"),
    ("vxlan", "08000000 00000700" + "00" * 13, "vxlan header is followed by 13 bytes, too few for a packet"),
    ("geneve", "00006558 0000", "geneve header of 8 bytes is cut after 6"),
    ("geneve", "40006558 00000700", "geneve header is of version 1; only version 0 is known"),
    ("geneve", "00806558 00000700", "geneve header is one of a control packet, which carries no copy"),
    ("geneve", "02006558 00000700 0102", "geneve options that end at byte 16 are cut after 10"),
    ("geneve", "01406558 00000700 01028100", "geneve option 0x0102/0x81 is critical and not known here"),
    ("geneve", "01006558 00000700 01020001", "geneve options end at byte 16, but their header says 12"),
    ("geneve", "00000000 00000700", "geneve header says protocol 0x0000, which is no EtherType"),
    ("geneve", "00000800 00000700", "geneve header is followed by 0 bytes, too few for a packet"),
    ("gre", "2000", "gre header of at least 4 bytes is cut after 2"),
    ("gre", "20006558 0000", "gre header with flags 0x2000 is cut after 6 bytes"),
    ("gre", "3081880b 00000000", "gre header is of version 1; only version 0 carries copies"),
    ("gre", "40006558 00000000", "gre header with flags 0x4000 asks for source routing of RFC 1701"),
    ("gre", "00000000", "gre header says protocol 0x0000, which is no EtherType"),
    ("gre", "100088be 00000001 10000007 00000000", "gre header is followed by ERSPAN; listen on erspan:// for it"),
    ("gre", "c0006558 0000", "gre header with flags 0xc000 asks for source routing of RFC 1701"),
    ("gre", "80006558 00", "gre header is followed by 0 bytes, too few for a packet"),
    ("erspan", "20006558 00000007", "gre header says protocol 0x6558, which is no ERSPAN"),
    ("erspan", "100088be 00000001 1000", "erspan header of 8 bytes is cut after 2"),
    (
        "erspan",
        "100088be 00000001 20000007 00000000",
        "erspan header is of version 2, but GRE said that it is of 1",
    ),
    (
        "erspan",
        "100022eb 00000001 10000007 00000000 00000000",
        "erspan header is of version 1, but GRE said that it is of 2",
    ),
    (
        "erspan",
        "100022eb 00000001 20000007 00000000 0000 0400",
        "erspan header says frame type 1 and is followed by no packet of it",
    ),
    (
        "erspan",
        "100022eb 00000001 20000007 00000000 0000 0801",
        "erspan header says frame type 2 and is followed by no packet of it",
    ),
)


def datagram_of(header: str, found: Decoded) -> memoryview:
    """The header in hex and a packet of the kind that was promised."""
    inner = {ETHERNET: FRAME, IPV4: PACKET, IPV6: ipv6(TCP, tcp())}[found.ethertype]
    return memoryview(bytes.fromhex(header) + inner)
