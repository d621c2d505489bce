"""What foreign datagrams hold: whose copy, which frame; and bytes of a stranger get no further than a complaint."""

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.collector.foreign import (
    SYNTHESISED_ADDRESSES,
    kind_of_fault,
    original_bytes,
    read,
    sender_name,
)
from guestagent.encap import erspan, geneve, gre, vxlan
from guestagent.encap.decoded import MalformedTunnel
from guestagent.encap.tunnel import TUNNELS
from guestagent.tapstream.hello import is_name

IPV4 = bytes.fromhex("4500001c00000000401100000a0000010a000002") + bytes(8)
FRAME = bytes.fromhex("0200000000020200000000010800") + IPV4
CASES = {
    "vxlan": vxlan.header(7) + FRAME,
    "geneve": geneve.header(7) + FRAME,
    "gre": gre.header(7) + FRAME,
    "erspan": erspan.header(7, 1) + FRAME,
}


@pytest.mark.parametrize("scheme", CASES)
def test_a_copy_is_read(scheme: str) -> None:
    """Key, sender and frame of each format."""
    copy = read(scheme, memoryview(CASES[scheme]), "10.9.0.2")

    assert (copy.source, copy.key, bytes(copy.frame)) == ("10.9.0.2", 7, FRAME)
    assert (copy.original_bytes, copy.is_outgoing, copy.is_synthesised) == (len(FRAME), False, False)


def test_a_bare_packet_gets_an_ethernet_header() -> None:
    """GRE with IP inside: addresses of ours, the EtherType of the tunnel, and it is owned up to."""
    copy = read("gre", memoryview(bytes.fromhex("00000800") + IPV4), "10.9.0.2")

    assert copy.frame == SYNTHESISED_ADDRESSES + b"\x08\x00" + IPV4
    assert copy.is_synthesised


@pytest.mark.parametrize("version", [4, 6])
def test_behind_a_load_balancer_the_envelope_names_the_sender(version: int) -> None:
    """VXLAN inside the IP packet of a GENEVE envelope: who sent the VXLAN counts."""
    udp = bytes.fromhex("c00012b500000000") + CASES["vxlan"]
    outer4 = bytes.fromhex("4500000000000000401100000a4d00050a4d0009")
    outer6 = bytes.fromhex("60000000000011400000")[:8] + b"\xfd" + bytes(14) + b"\x05" + b"\xfd" + bytes(14) + b"\x09"
    packet = outer4 + udp if version == 4 else outer6 + udp
    copy = read("geneve", memoryview(geneve.header(0, 0x0800 if version == 4 else 0x86DD) + packet), "10.9.0.2")

    assert (copy.source, copy.key) == ("10.77.0.5" if version == 4 else "fd00::5", 7)
    assert copy.frame == FRAME


@given(st.sampled_from(sorted(TUNNELS)), st.binary(max_size=300))
def test_noise_is_a_copy_or_a_complaint(scheme: str, noise: bytes) -> None:
    """Nothing else is ever raised, and lengths stay what a record can say."""
    try:
        copy = read(scheme, memoryview(noise), "10.9.0.2")
    except MalformedTunnel:
        return
    assert len(copy.frame) <= copy.original_bytes <= 18 + 40 + 65_535 + len(noise)


@given(st.sampled_from(sorted(CASES)), st.integers(0, 60), st.data())
def test_cut_and_flipped_copies_are_no_danger(scheme: str, size: int, data: st.DataObject) -> None:
    """Real datagrams, cut anywhere and with a byte changed."""
    datagram = bytearray(CASES[scheme][:size])
    if datagram:
        datagram[data.draw(st.integers(0, len(datagram) - 1))] = data.draw(st.integers(0, 255))
    with suppress(MalformedTunnel):
        assert read(scheme, memoryview(datagram), "10.9.0.2").frame


def test_the_original_length_comes_from_the_ip_header() -> None:
    """IPv4, IPv6 and one tag; what tells less than there is, or nothing, leaves the frame's own length."""
    cut4 = bytes(12) + bytes.fromhex("0800450005dc") + bytes(100)
    cut6 = bytes(12) + bytes.fromhex("86dd6000000005b4") + bytes(100)
    tagged = bytes(12) + bytes.fromhex("81000064") + cut4[12:]

    assert [original_bytes(one) for one in (cut4, cut6, tagged)] == [1514, 1514, 1518]
    assert original_bytes(FRAME + bytes(18)) == len(FRAME) + 18
    assert original_bytes(bytes(64)) == 64
    assert original_bytes(b"") == 0


@given(st.sampled_from(sorted(TUNNELS)), st.text(max_size=120), st.none() | st.integers(0, 0xFFFFFFFF))
def test_names_are_fit_for_files(scheme: str, source: str, key: int | None) -> None:
    """Whatever an address looks like."""
    assert is_name(sender_name(scheme, source, key))


def test_names_tell_senders_apart() -> None:
    """By address and key; a mapped IPv4 address is the IPv4 address."""
    assert sender_name("vxlan", "::ffff:10.0.0.5", 77) == sender_name("vxlan", "10.0.0.5", 77) == "vxlan-10.0.0.5-77"
    assert sender_name("gre", "fe80::1%eth0", None) == "gre-fe80--1-eth0"


@given(st.sampled_from(sorted(TUNNELS)), st.binary(max_size=40))
def test_faults_have_few_kinds(scheme: str, noise: bytes) -> None:
    """No number of a stranger's choice is part of a counter's name."""
    kind = ""
    try:
        read(scheme, memoryview(noise), "10.9.0.2")
    except MalformedTunnel as fault:
        kind = kind_of_fault(str(fault))
    assert not re.search(r"\d", kind)
