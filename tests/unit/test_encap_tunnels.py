"""Tunnel headers, both ways: literal bytes laid out as in the RFC figures, scapy as second opinion, random damage."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.erspan import ERSPAN_II, ERSPAN_III, ERSPAN_PlatformSpecific
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers import inet, l2, vxlan
from scapy.layers.l2 import Ether

from guestagent.encap import erspan, gre
from guestagent.encap.tunnel import TUNNELS, Decoded, MalformedTunnel, unwrap
from tests.frames import IPV6
from tests.tunnel_headers import ETHERNET, FRAME, PACKET, RECEIVED, REFUSED, SENT, Case, datagram_of


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
