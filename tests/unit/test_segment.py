"""Super-packets are cut to what was on the wire: scapy computes the same lengths and checksums, field by field."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.geneve import GENEVE  # noqa: F401 - scapy dissects it once it is loaded
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from guestagent.encap.segment import NO_OFFLOAD, Segmenter
from guestagent.encap.segment_cut import MOST_SEGMENTS
from tests import frames
from tests.frames import IPV4, ethernet, ipv4, tcp, udp
from tests.segments import (
    ECN,
    STAMPS,
    VERSIONS,
    assert_scapy_agrees,
    by_layer,
    innermost,
    offload,
    payload_of,
    plain,
    pseudo_sum,
    start_of,
    whole,
)

FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80


SIZES = (1, 99, 1448, 1449, 2896, 10_000, 60_001)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [b"", STAMPS, frames.OPTIONS40])
@pytest.mark.parametrize("version", VERSIONS)
def test_tcp_falls_into_its_segments(version: int, options: bytes, size: int) -> None:
    """Lengths, sequence numbers, checksums and payload are those of segments of 1,448 bytes."""
    payload, segmenter = payload_of(size), Segmenter()
    frame = plain(frames.TCP, version, tcp(payload, options=options))
    cut = segmenter.frames(memoryview(frame), offload(frames.TCP, version, 1448, start_of(version)), len(frame))

    assert_scapy_agrees(cut)
    segments = innermost(cut)
    assert payload == b"".join(bytes(one.payload) for one in segments)
    assert [1448] * (len(cut) - 1) == [len(one.payload) for one in segments[:-1]]
    assert [1 + 1448 * number for number in range(len(cut))] == [one.seq for one in segments]
    assert (1, len(cut), len(cut), 0, 0, 0) == (
        segmenter.super_packets,
        segmenter.segments,
        segmenter.completed,
        segmenter.unverifiable,
        segmenter.not_understood,
        segmenter.split,
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_header_says_besides_is_in_each(version: int) -> None:
    """MAC addresses, TTL, window, acknowledgement and timestamps are those of the super-packet."""
    frame = plain(frames.TCP, version, tcp(payload_of(5000), options=STAMPS))
    cut = Segmenter().frames(memoryview(frame), offload(frames.TCP, version, 1448, start_of(version)), len(frame))

    for segment in innermost(cut):
        assert [("NOP", None), ("NOP", None), ("Timestamp", (0x11223344, 0x55667788))] == segment.options
        assert (40000, 4795, 2, 512) == (segment.sport, segment.dport, segment.ack, segment.window)
    assert {frame[:14]} == {whole(one)[:14] for one in cut}
    assert {64} == {one.ttl if version == 4 else one.hlim for one in innermost(cut, IP if version == 4 else IPv6)}


@pytest.mark.parametrize(
    "flags, gso, first, middle, last",
    [
        (ACK, 0, ACK, ACK, ACK),
        (ACK | PSH, 0, ACK, ACK, ACK | PSH),
        (ACK | FIN | PSH, 0, ACK, ACK, ACK | FIN | PSH),
        (ACK | CWR | PSH, 0, ACK | CWR, ACK, ACK | PSH),
        (ACK | CWR | FIN, ECN, ACK | CWR, ACK, ACK | FIN),
        (ACK | CWR | PSH, 0x10, ACK | CWR, ACK | CWR, ACK | CWR | PSH),  # accurate ECN: a bit of a counter
    ],
)
def test_flags_are_where_they_were(flags: int, gso: int, first: int, middle: int, last: int) -> None:
    """FIN and PSH in the last segment, CWR in the first, all else in each."""
    frame = plain(frames.TCP, 4, tcp(payload_of(2500), flags=flags))
    cut = Segmenter().frames(memoryview(frame), offload(frames.TCP, 4, 1000, 34, gso), len(frame))

    assert [first, middle, last] == [int(one.flags) for one in innermost(cut)]
    assert_scapy_agrees(cut)


@pytest.mark.parametrize(
    "first, fragment_field, expected",
    [
        (7, 0x4000, [7, 8, 9]),
        (7, 0, [7, 8, 9]),
        (0xFFFE, 0x4000, [0xFFFE, 0xFFFF, 0]),
        (0, 0x4000, [0, 0, 0]),  # DF and no number: the sender does not number
        (0, 0, [0, 1, 2]),
    ],
)
def test_ipv4_identifications_count_on(first: int, fragment_field: int, expected: list[int]) -> None:
    """From the first one, modulo 65,536; a sender that does not number its packets does not begin to."""
    frame = bytearray(plain(frames.TCP, 4, tcp(payload_of(2500)), fragment=fragment_field))
    frame[18:20] = first.to_bytes(2, "big")
    cut = Segmenter().frames(memoryview(frame), offload(frames.TCP, 4, 1000, 34), len(frame))

    assert expected == [one.id for one in innermost(cut, IP)]
    assert_scapy_agrees(cut)


def test_udp_identifications_count_from_zero() -> None:
    """An unconnected socket's super-packet begins at 0 with DF, and its datagrams were numbered from there."""
    frame = bytearray(plain(frames.UDP, 4, udp(payload_of(2500)), fragment=0x4000))
    frame[18:20] = bytes(2)
    cut = Segmenter().frames(memoryview(frame), offload(frames.UDP, 4, 1000, 34), len(frame))

    assert [0, 1, 2] == [one.id for one in innermost(cut, IP)]


def test_sequence_numbers_wrap() -> None:
    """Modulo 2^32."""
    frame = bytearray(plain(frames.TCP, 4, tcp(payload_of(2500))))
    frame[38:42] = (0xFFFFFFFF).to_bytes(4, "big")
    cut = Segmenter().frames(memoryview(frame), offload(frames.TCP, 4, 1000, 34), len(frame))

    assert [0xFFFFFFFF, 999, 1999] == [one.seq for one in innermost(cut)]
    assert_scapy_agrees(cut)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", VERSIONS)
def test_udp_falls_into_its_datagrams(version: int, size: int) -> None:
    """Lengths, checksums and payload are those of datagrams of 1,200 bytes; port and address stay."""
    payload = payload_of(size)
    frame = plain(frames.UDP, version, udp(payload, destination=9000))
    cut = Segmenter().frames(memoryview(frame), offload(frames.UDP, version, 1200, start_of(version)), len(frame))

    assert_scapy_agrees(cut)
    datagrams = innermost(cut, UDP)
    assert payload == b"".join(frame[-(one.len - 8) :] for one, frame in zip(datagrams, map(whole, cut), strict=True))
    assert {(50000, 9000)} == {(one.sport, one.dport) for one in datagrams}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_udp_checksum_of_zero_is_sent_as_ones(version: int) -> None:
    """Zero says that there is none (RFC 768): a datagram that sums up to it says 0xffff."""
    virtio, place = offload(frames.UDP, version, 4, start_of(version)), start_of(version) + 6
    first = b"\0\0"
    for _ in range(2):  # the complement of the sum, put into the datagram, makes the sum all ones
        frame = plain(frames.UDP, version, udp(first + bytes(6), destination=9000))
        cut = Segmenter().frames(memoryview(frame), virtio, len(frame))
        first = whole(cut[0])[place : place + 2]

    assert b"\xff\xff" == first


@given(gso=st.integers(1, 1500), size=st.integers(1, 3000), version=st.sampled_from(VERSIONS), is_tcp=st.booleans())
def test_any_size_falls_into_any(gso: int, size: int, version: int, is_tcp: bool) -> None:
    """Odd and even lengths of both: scapy agrees on all the frames that are not more than there can be."""
    upper = tcp(payload_of(size), options=STAMPS) if is_tcp else udp(payload_of(size), destination=9000)
    protocol = frames.TCP if is_tcp else frames.UDP
    frame, segmenter = plain(protocol, version, upper), Segmenter()
    cut = segmenter.frames(memoryview(frame), offload(protocol, version, gso, start_of(version)), len(frame))

    if -(-size // gso) > MOST_SEGMENTS:
        assert (1, [frame]) == (segmenter.not_understood, [whole(one) for one in cut])
    else:
        assert -(-size // gso) == len(cut)
        assert_scapy_agrees(cut[:3] + cut[-1:])


# Checksums that the card would have finished, and tags.


@pytest.mark.parametrize("tag", [None, (100, 0x8100), (0x2007, 0x88A8)])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol, upper", [(frames.TCP, tcp(b"hello")), (frames.UDP, udp(b"hello"))])
def test_a_partial_checksum_is_completed_before_the_tag(
    protocol: int, upper: bytes, version: int, tag: tuple[int, int] | None
) -> None:
    """csum_start counts without the tag, which is put back behind the MAC addresses."""
    frame = bytearray(plain(protocol, version, upper))
    start, offset = start_of(version), 16 if protocol == frames.TCP else 6
    wanted = by_layer(bytes(frame))
    frame[start + offset : start + offset + 2] = pseudo_sum(frame, version, protocol, start)
    segmenter = Segmenter()
    cut = segmenter.frames(memoryview(frame), (1, 0, 0, 0, start, offset), len(frame), tag)

    assert (1, 1) == (len(cut), segmenter.completed)
    made = whole(cut[0])
    assert len(made) == cut[0][2]
    if tag:
        assert struct.pack(">HH", tag[1], tag[0]) == made[12:16]
        made = made[:12] + made[16:]
    if version == 4:  # the header of tests.frames has no checksum of its own
        made = made[:24] + wanted[24:26] + made[26:]
    assert wanted == made


@pytest.mark.parametrize("tag", [(100, 0x8100), (0x2007, 0x88A8)])
def test_each_segment_gets_the_tag(tag: tuple[int, int]) -> None:
    """Behind the MAC addresses, and the original length counts it."""
    frame = plain(frames.TCP, 4, tcp(payload_of(2500)))
    virtio = offload(frames.TCP, 4, 1000, 34)
    bare = Segmenter().frames(memoryview(frame), virtio, len(frame))
    tagged = Segmenter().frames(memoryview(frame), virtio, len(frame), tag)

    mark = struct.pack(">HH", tag[1], tag[0])
    assert [whole(one)[:12] + mark + whole(one)[12:] for one in bare] == [whole(one) for one in tagged]
    assert [one[2] + 4 for one in bare] == [one[2] for one in tagged]


def test_tags_inside_the_frame_are_stepped_over() -> None:
    """A frame with its tags in it is cut behind them."""
    for tags in ((0x8100,), (0x88A8, 0x8100)):
        frame = ethernet(IPV4, ipv4(frames.TCP, tcp(payload_of(2500))), tags)
        cut = Segmenter().frames(memoryview(frame), offload(frames.TCP, 4, 1000, 34 + 4 * len(tags)), len(frame))

        assert 3 == len(cut)
        assert_scapy_agrees(cut)
        assert all(Dot1Q in Ether(whole(one)) or tags[0] == 0x88A8 for one in cut)


def test_a_record_without_offload_is_the_frame_itself() -> None:
    """No copy is made, and nothing is counted."""
    view, segmenter = memoryview(frames.ethernet(IPV4, ipv4(frames.TCP, tcp()))), Segmenter()
    ((head, body, size),) = segmenter.frames(view, NO_OFFLOAD, 9000)

    assert head is view
    assert (0, 9000) == (len(body), size)
    assert not any(getattr(segmenter, name) for name in Segmenter.__slots__)
