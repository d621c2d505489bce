"""The tables of a capture: every frame lands in one row, whatever its bytes."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.collector.summary import Conversation, Protocol, summarize
from tests.frames import (
    AH,
    ARP,
    C_TAG,
    DESTINATION,
    FRAGMENT,
    HEADERS_CASES,
    HERE4,
    HERE6,
    HOP,
    ICMP,
    ICMPV6,
    IPV4,
    IPV6,
    LLDP,
    MORE_FRAGMENTS,
    OWN_CASES,
    PEER4,
    PEER6,
    S_TAG,
    TCP,
    UDP,
    chained,
    ethernet,
    extension,
    icmp,
    ipv4,
    ipv6,
    tcp,
    udp,
)

SAMPLES = [case.frame for case in (*HEADERS_CASES, *OWN_CASES)]
WEB = tcp(source=40000, destination=443)


def rows(*frames: bytes) -> list[tuple[str, str, int]]:
    """(protocol, service, packets) of the protocol table."""
    return [(row.name, row.service, row.packets) for row in summarize((len(one), one) for one in frames).protocols]


def test_both_directions_are_one_conversation() -> None:
    """Requests and answers of several connections are one row, told from the client's side, most bytes first."""
    there = [tcp(bytes(100), source=port, destination=443) for port in (40000, 40001)]
    back = tcp(bytes(1000), source=443, destination=40000)
    frames = [
        ethernet(IPV4, ipv4(TCP, back, source=PEER4, destination=HERE4)),
        *(ethernet(IPV4, ipv4(TCP, one)) for one in there),
        ethernet(IPV6, ipv6(UDP, udp(source=50000, destination=53))),
    ]
    summary = summarize((len(one), one) for one in frames)

    assert summary.conversations == (
        Conversation(HERE4, PEER4, "TCP", "HTTPS", connections=2, packets=3, bytes=sum(map(len, frames[:3]))),
        Conversation(HERE6, PEER6, "UDP", "DNS", connections=1, packets=1, bytes=len(frames[3])),
    )
    assert (summary.packets, summary.bytes) == (4, sum(map(len, frames)))


def test_bytes_are_those_of_the_wire() -> None:
    """A frame of which the capture kept 54 bytes counts as long as it was."""
    assert summarize([(1514, ethernet(IPV4, ipv4(TCP, WEB))[:54])]).protocols == (Protocol("TCP", "HTTPS", 1, 1514),)


def test_who_speaks_first_is_the_client_where_ports_do_not_tell() -> None:
    """A ping and its answer, and two hosts on one port, are one conversation each, in the order of speaking."""
    frames = [
        ethernet(IPV4, ipv4(ICMP, icmp(8), source=PEER4, destination=HERE4)),
        ethernet(IPV4, ipv4(ICMP, icmp(0), source=HERE4, destination=PEER4)),
        ethernet(IPV6, ipv6(UDP, udp(source=9, destination=9), source=PEER6, destination=HERE6)),
        ethernet(IPV6, ipv6(UDP, udp(source=9, destination=9), source=HERE6, destination=PEER6)),
    ]
    talks = summarize((100, one) for one in frames).conversations

    assert [(one.client, one.server, one.service, one.packets) for one in talks] == [
        (PEER4, HERE4, "ping", 2),
        (PEER6, HERE6, "port 9", 2),
    ]


def test_services_are_known_ports_else_the_lower_one() -> None:
    """A known port wins over a lower unknown one; the caller may name ports."""
    known = ethernet(IPV4, ipv4(TCP, tcp(source=700, destination=8443)))
    unknown = ethernet(IPV4, ipv4(TCP, tcp(source=40000, destination=5001)))

    assert rows(known) == [("TCP", "HTTPS", 1)]
    assert rows(unknown) == [("TCP", "port 5001", 1)]
    assert summarize([(1, unknown)], {5001: "bulk"}).protocols[0].service == "bulk"


@pytest.mark.parametrize("tags", [(C_TAG,), (S_TAG, C_TAG), (C_TAG,) * 3])
@pytest.mark.parametrize("kind, packet", [(IPV4, ipv4(TCP, WEB)), (IPV6, ipv6(TCP, WEB))])
def test_tags_are_stepped_over(kind: int, packet: bytes, tags: Sequence[int]) -> None:
    """VLAN tags, also three, hide nothing."""
    assert rows(ethernet(kind, packet, tags)) == [("TCP", "HTTPS", 1)]


@pytest.mark.parametrize(
    "frame, name, service",
    [
        (ethernet(IPV4, ipv4(TCP, WEB, options=bytes(40))), "TCP", "HTTPS"),
        (ethernet(IPV4, ipv4(UDP, udp(destination=53), fragment=MORE_FRAGMENTS)), "UDP", "DNS"),
        (ethernet(IPV4, ipv4(UDP, udp(destination=53), fragment=100)), "UDP", "later fragments"),
        (ethernet(IPV6, chained([HOP, DESTINATION, AH], TCP, WEB, size=16)), "TCP", "HTTPS"),
        (ethernet(IPV6, ipv6(FRAGMENT, extension(FRAGMENT, UDP, fragment=1) + udp())), "UDP", "VXLAN"),
        (ethernet(IPV6, ipv6(FRAGMENT, extension(FRAGMENT, UDP, fragment=8) + udp())), "UDP", "later fragments"),
        (ethernet(IPV6, ipv6(ICMPV6, icmp(135))), "ICMPv6", "neighbours"),
        (ethernet(IPV4, ipv4(ICMP, icmp(13))), "ICMP", "type 13"),
        (ethernet(IPV4, ipv4(99, b"")), "IP protocol 99", ""),
        (ethernet(ARP, bytes(28)), "ARP", ""),
        (ethernet(LLDP, bytes(28)), "LLDP", ""),
        (ethernet(0x1234, bytes(28)), "EtherType 0x1234", ""),
        (ethernet(38, bytes(38)), "802.3", ""),
        (ethernet(IPV4, ipv4(TCP, b"\x9c\x40\x01")), "TCP", "cut short"),
        (ethernet(IPV4, ipv4(TCP, WEB))[:30], "IPv4", "cut short"),
        (ethernet(IPV6, ipv6(TCP, WEB, version=4)), "IPv6", "cut short"),
        (ethernet(IPV4, b"", [C_TAG])[:16], "Ethernet", "cut short"),
        (b"", "Ethernet", "cut short"),
    ],
)
def test_each_frame_gets_the_last_name_it_shows(frame: bytes, name: str, service: str) -> None:
    """Options, extension headers, fragments, other protocols, torn and lying frames."""
    assert rows(frame) == [(name, service, 1)]


MUTATED = st.builds(
    lambda frame, at, junk, end: (frame[:at] + junk + frame[at + len(junk) :])[:end],
    st.sampled_from(SAMPLES),
    st.integers(0, 120),
    st.binary(max_size=8),
    st.integers(0, 400),
)


@given(st.lists(st.tuples(st.integers(0, 1 << 32), st.binary(max_size=300) | MUTATED), max_size=20))
def test_no_frame_is_lost_and_none_surprises(frames: list[tuple[int, bytes]]) -> None:
    """Whatever the bytes, both tables add up to all packets and bytes; a memoryview says the same as its bytes."""
    summary = summarize(frames)

    for table in (summary.protocols, summary.conversations):
        assert sum(row.packets for row in table) == summary.packets == len(frames)
        assert sum(row.bytes for row in table) == summary.bytes == sum(size for size, _ in frames)
    assert summarize((size, memoryview(frame)) for size, frame in frames) == summary
