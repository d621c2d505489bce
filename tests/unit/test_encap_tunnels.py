"""Tunnel headers, both ways: literal bytes laid out as in the RFC figures, scapy as second opinion, random damage."""

import random
import struct
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.erspan import ERSPAN_II, ERSPAN_III, ERSPAN_PlatformSpecific
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers import inet, l2, vxlan
from scapy.layers.l2 import Ether

from guestagent.encap import erspan, geneve, gre
from guestagent.encap.tunnel import MOST_LAYERS, TUNNELS, Decoded, MalformedTunnel, unwrap
from tests.frames import GRE, IPV4, IPV6, TCP, UDP, ethernet, ipv4, ipv6, tcp, udp

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


@pytest.mark.parametrize("case", SENT, ids=lambda case: f"{case.scheme}-{case.header}")
def test_headers_are_those_of_the_figures(case: Case) -> None:
    """What the encoder writes are the bytes of the RFC's figure, and the decoder reads it back."""
    tunnel = TUNNELS[case.scheme]
    header = tunnel.header(*case.arguments, **case.options)

    assert bytes.fromhex(case.header) == header
    assert len(header) == tunnel.header_bytes
    assert case.found == tunnel.decode(datagram_of(case.header, case.found))


@pytest.mark.parametrize("scheme, header, found", RECEIVED)
def test_headers_of_others_are_understood(scheme: str, header: str, found: Decoded) -> None:
    """Optional fields, options and bits to be ignored do not hide the packet inside."""
    datagram = datagram_of(header, found)

    assert found == TUNNELS[scheme].decode(datagram)
    assert FRAME.endswith(datagram[found.inner_at :][-40:]) or found.ethertype == IPV6


@pytest.mark.parametrize("scheme, header, sentence", REFUSED)
def test_what_is_no_tunnel_is_refused_with_a_sentence(scheme: str, header: str, sentence: str) -> None:
    """A header that is cut, of another version or one that forbids to read on is named in one sentence."""
    with pytest.raises(MalformedTunnel) as refusal:
        TUNNELS[scheme].decode(memoryview(bytes.fromhex(header)))

    assert sentence == str(refusal.value)


@given(key=st.integers(0, 0xFFFFFF))
def test_scapy_reads_vxlan_and_geneve(key: int) -> None:
    """scapy finds VNI and frame in what we send."""
    outer = vxlan.VXLAN(TUNNELS["vxlan"].header(key) + FRAME)
    assert (key, 0x08, 0, 0) == (outer.vni, int(outer.flags), outer.reserved1, outer.reserved2)
    assert FRAME == bytes(outer[Ether])
    outer = GENEVE(TUNNELS["geneve"].header(key) + FRAME)
    assert (0, 0, 0, 0, key) == (outer.version, outer.optionlen, outer.oam, outer.critical, outer.vni)
    assert FRAME == bytes(outer[Ether])


@given(
    key=st.integers(0, 0xFFFFFFFF),
    sequence=st.integers(0, 0xFFFFFFFF),
    tci=st.none() | st.integers(0, 0xFFFF),
    is_truncated=st.booleans(),
    index=st.integers(0, 0xFFFFF),
)
def test_scapy_reads_gre_and_erspan(key: int, sequence: int, tci: int | None, is_truncated: bool, index: int) -> None:
    """scapy finds key, sequence number, session, tag, cut, port and frame in what we send."""
    outer = l2.GRE(gre.header(key) + FRAME)
    assert (key, 0x6558, 0, 0) == (outer.key, outer.proto, outer.version, outer.seqnum_present)
    assert FRAME == bytes(outer[Ether])
    session = key & 0x3FF
    outer = l2.GRE(erspan.header(session, sequence, tci=tci, is_truncated=is_truncated, index=index) + FRAME)
    assert (sequence, 0) == (outer.sequence_number, outer.key_present)
    span = outer[ERSPAN_II]
    assert (1, session, is_truncated, index, 0) == (span.ver, span.session_id, span.t, span.index, span.reserved)
    assert (0 if tci is None else tci & 0xFFF, 0 if tci is None else tci >> 13) == (span.vlan, span.cos)
    assert (0 if tci is None else 3) == span.en
    assert FRAME == bytes(span[Ether])


@given(
    key=st.integers(0, 0xFFFFFFFF),
    sequence=st.integers(0, 0xFFFFFFFF),
    options=st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 127), st.integers(0, 5)), max_size=6),
    has_checksum=st.booleans(),
    platform=st.booleans(),
)
def test_we_read_what_scapy_sends(
    key: int, sequence: int, options: list[tuple[int, int, int]], has_checksum: bool, platform: bool
) -> None:
    """VXLAN, GENEVE with options, GRE with every field, ERSPAN II and III as scapy builds them."""
    frame = Ether(FRAME)
    made = [GeneveOptions(classid=one, type=kind, length=words, data=bytes(4 * words)) for one, kind, words in options]
    third = ERSPAN_III(session_id=key & 0x3FF, timestamp=sequence, p=1, d=1, gra=1, o=platform, t=1)
    sent = {
        "vxlan": vxlan.VXLAN(vni=key >> 8, flags=8) / frame,
        "geneve": GENEVE(vni=key >> 8, proto=0x6558, options=made) / frame,
        "gre": l2.GRE(key_present=1, key=key, seqnum_present=1, sequence_number=sequence, chksum_present=has_checksum)
        / frame,
    }
    for scheme, packet in sent.items():
        datagram = bytes(packet)
        found = TUNNELS[scheme].decode(memoryview(datagram))
        assert (key >> 8 if scheme != "gre" else key, ETHERNET) == (found.key, found.ethertype), scheme
        assert FRAME == datagram[found.inner_at :]
    datagram = bytes(
        l2.GRE(proto=0x22EB, seqnum_present=1, sequence_number=sequence)
        / third
        / (ERSPAN_PlatformSpecific() / frame if platform else frame)
    )
    found = erspan.decode(memoryview(datagram))
    assert (
        Decoded("erspan", key & 0x3FF, 28 if platform else 20, ETHERNET, sequence, True, True, sequence, 100) == found
    )
    assert FRAME == datagram[found.inner_at :]


def aws_gateway(inner: bytes) -> bytes:
    """What a gateway load balancer makes of an IP packet."""
    options = "01080102 0011223344556677 01080202 8899aabbccddeeff 01080301 01234567"
    return bytes.fromhex("08000800 00000000" + options) + inner


def test_a_mirror_behind_a_gateway_load_balancer_is_opened() -> None:
    """VXLAN in UDP in IP in GENEVE: both headers are told, and the offset of the frame counts from the outermost."""
    for inner in (ipv4, ipv6):
        outer_type = IPV4 if inner is ipv4 else IPV6
        datagram = geneve.header(9, outer_type) + inner(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME))
        layers = unwrap("geneve", memoryview(datagram))

        assert [("geneve", 9), ("vxlan", 7)] == [(one.scheme, one.key) for one in layers]
        assert FRAME == datagram[layers[-1].inner_at :]
    datagram = aws_gateway(ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME), options=bytes(8)))
    assert FRAME == datagram[unwrap("geneve", memoryview(datagram))[-1].inner_at :]


def test_gre_and_erspan_in_an_envelope_are_told_apart() -> None:
    """Both are protocol 47; what the header says decides."""
    for scheme, header in (("gre", gre.header(7)), ("erspan", erspan.header(7, 1))):
        datagram = aws_gateway(ipv4(GRE, header + FRAME))
        layers = unwrap("geneve", memoryview(datagram))

        assert [("geneve", 0), (scheme, 7)] == [(one.scheme, one.key) for one in layers]
        assert FRAME == datagram[layers[-1].inner_at :]


def test_envelopes_are_opened_three_deep() -> None:
    """The third header is the last that is read, whatever follows."""
    packet = ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME))
    for _ in range(MOST_LAYERS):
        packet = ipv4(UDP, udp(geneve.header(1, IPV4) + packet, destination=6081))
    layers = unwrap("geneve", memoryview(packet)[28:])

    assert ["geneve"] * MOST_LAYERS == [one.scheme for one in layers]


@pytest.mark.parametrize(
    "scheme, datagram",
    [
        ("vxlan", TUNNELS["vxlan"].header(1) + ethernet(IPV4, ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME)))),
        ("gre", bytes.fromhex("00000800") + ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME))),
        (
            "geneve",
            bytes.fromhex("02000800 00000000 01320101 00000001") + ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME)),
        ),
        ("geneve", geneve.header(1, IPV4) + PACKET),
        ("geneve", geneve.header(1, IPV4) + ipv4(UDP, udp(bytes(8) + FRAME))),  # port 4789, no I flag
        ("geneve", geneve.header(1, IPV4) + ipv4(UDP, udp(b"")[:3])),
        ("geneve", geneve.header(1, IPV4) + ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME), fragment=100)),
        ("geneve", geneve.header(1, IPV6) + PACKET),
        ("geneve", geneve.header(1, 0x0806) + PACKET),
    ],
)
def test_what_was_copied_stays_as_it_is(scheme: str, datagram: bytes) -> None:
    """A tunnel that a tapped host itself speaks, and an envelope of no tunnel, are not opened."""
    assert 1 == len(unwrap(scheme, memoryview(datagram)))


HEADERS = [case.header for case in SENT] + [row[1] for row in RECEIVED] + [row[1] for row in REFUSED]


@pytest.mark.parametrize("scheme", TUNNELS)
@given(data=st.data())
def test_no_datagram_upsets_a_decoder(scheme: str, data: st.DataObject) -> None:
    """Random bytes, and real datagrams cut and flipped, are refused or give an offset inside of them."""
    start = data.draw(st.sampled_from(HEADERS).map(bytes.fromhex) | st.binary(max_size=40))
    datagram = bytearray(start + data.draw(st.sampled_from([FRAME, PACKET, b""]) | st.binary(max_size=80)))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4)):
        datagram[at : at + 1] = bytes([value])
    del datagram[data.draw(st.integers(0, len(datagram))) :]
    try:
        layers = unwrap(scheme, memoryview(datagram))
    except MalformedTunnel:
        return
    for one in layers:
        assert 0 < one.inner_at < len(datagram)
        assert one.key is None or 0 <= one.key <= TUNNELS[one.scheme].most_key
        assert one.ethertype >= 0x600


def test_every_truncation_of_every_header_is_refused_or_read() -> None:
    """Each datagram of the tables, cut at each length, behind each decoder."""
    for header in HEADERS:
        whole = bytes.fromhex(header) + FRAME
        for size in range(len(whole)):
            for scheme in TUNNELS:
                try:
                    assert unwrap(scheme, memoryview(whole)[:size])[-1].inner_at < size
                except MalformedTunnel:
                    pass


def test_deep_nesting_is_no_stack_overflow() -> None:
    """A datagram of nothing but envelopes is read in bounded time."""
    packet = b""
    for _ in range(400):
        packet = ipv4(UDP, udp(geneve.header(1, IPV4) + packet, destination=6081))

    assert MOST_LAYERS == len(unwrap("geneve", memoryview(packet)[28:]))


@pytest.mark.parametrize(
    "scheme, ip_version, inner_mtu",
    [("vxlan", 4, 1450), ("vxlan", 6, 1430), ("geneve", 4, 1450), ("gre", 4, 1458), ("erspan", 4, 1450)],
)
def test_the_room_is_that_of_the_kernels_own_tunnels(scheme: str, ip_version: int, inner_mtu: int) -> None:
    """In a network of 1,500 bytes the inner MTU is what Linux gives such a device; the frame has 14 bytes more."""
    assert inner_mtu + 14 == TUNNELS[scheme].room(1500, ip_version)


def test_scapy_measures_the_same_room() -> None:
    """A frame that fills the room makes a packet of exactly the path's MTU."""
    frame = random.Random(1).randbytes(TUNNELS["vxlan"].room(1500, 4))
    packet = inet.IP() / inet.UDP(dport=4789) / TUNNELS["vxlan"].header(7) / frame

    assert 1500 == struct.unpack_from(">H", bytes(packet), 2)[0]
