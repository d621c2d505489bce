"""Frames that do not fit the tunnel: split, truncated or dropped by policy, each counted, none longer than the room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP

from guestagent.encap.fit import DEFAULT_POLICY, POLICIES, Fitter
from guestagent.encap.segment import NO_OFFLOAD
from tests import frames
from tests.frames import IPV4, IPV6, ethernet, ipv4, ipv6, tcp, udp
from tests.segments import STAMPS, assert_scapy_agrees, by_scapy, innermost, offload, payload_of, plain, whole

ROOM = 1464
"""For VXLAN over IPv4 in a network of 1,500 bytes."""
VERSIONS = (4, 6)
START = {4: 34, 6: 54}


def reassembled(cut: list[tuple[bytes | memoryview, bytes | memoryview, int]]) -> bytes:
    """What a sensor makes of the TCP segments, in the order of their sequence numbers."""
    stream = bytearray()
    for segment in sorted(innermost(cut), key=lambda one: one.seq):
        assert len(stream) == segment.seq - 1, "no gap, nothing twice"
        stream += bytes(segment.payload)
    return bytes(stream)


def test_splitting_is_the_default() -> None:
    """Named, so that a change of it is a decision."""
    assert ("split", ("split", "truncate", "drop")) == (DEFAULT_POLICY, POLICIES)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_fits_is_left_alone(policy: str) -> None:
    """A frame of exactly the room comes back as it is, and nothing is counted."""
    frame = memoryview(plain(frames.TCP, 4, tcp(payload_of(ROOM - 54))))
    fitter = Fitter(ROOM, policy)
    ((head, body, size),) = fitter.frames(frame, NO_OFFLOAD, len(frame))

    assert head is frame
    assert (0, ROOM) == (len(body), size)
    assert (0, 0, 0, 0) == (fitter.truncated, fitter.dropped, fitter.segmenter.split, fitter.segmenter.segments)


@pytest.mark.parametrize("size", [1411, 1448, 8948])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_tcp_segment_is_split(version: int, size: int) -> None:
    """Into segments that fit, which a receiver puts together to the same bytes; FIN and PSH in the last alone."""
    payload = payload_of(size)
    frame = by_scapy(plain(frames.TCP, version, tcp(payload, options=STAMPS, flags=0x19)))
    fitter = Fitter(ROOM)
    cut = fitter.frames(memoryview(frame), NO_OFFLOAD, len(frame))

    assert_scapy_agrees(cut)
    assert all(len(whole(one)) <= ROOM for one in cut)
    assert ROOM == len(whole(cut[0])), "no segment more than needed"
    assert payload == reassembled(cut)
    assert [0x10] * (len(cut) - 1) + [0x19] == [int(one.flags) for one in innermost(cut)]
    assert (1, len(cut), 0, 0) == (
        fitter.segmenter.split,
        fitter.segmenter.segments,
        fitter.segmenter.super_packets,
        fitter.truncated,
    )


@pytest.mark.parametrize("tag", [None, (100, 0x8100)])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_super_packet_is_cut_smaller_at_once(version: int, tag: tuple[int, int] | None) -> None:
    """45 segments of 1,448 bytes become 47 that fit, or with a tag still 47, not 90."""
    payload = payload_of(45 * 1448)
    frame = plain(frames.TCP, version, tcp(payload, options=STAMPS))
    fitter = Fitter(ROOM + 20 * (version == 6))
    cut = fitter.frames(memoryview(frame), offload(frames.TCP, version, 1448, START[version]), len(frame), tag)

    assert 47 == len(cut)
    assert fitter.most_frame_bytes == len(whole(cut[0]))
    assert_scapy_agrees(cut)
    assert payload == reassembled(cut)
    assert (1, 1) == (fitter.segmenter.split, fitter.segmenter.super_packets)


def test_a_super_packet_whose_segments_fit_is_cut_as_it_was() -> None:
    """The room is a bound, not a goal."""
    frame = plain(frames.TCP, 4, tcp(payload_of(10_000), options=STAMPS))
    fitter = Fitter(ROOM)
    cut = fitter.frames(memoryview(frame), offload(frames.TCP, 4, 1000, 34), len(frame))

    assert (10, 0) == (len(cut), fitter.segmenter.split)


def test_a_partial_checksum_is_completed_in_the_pieces() -> None:
    """A full segment that the kernel left to the card, split."""
    frame = plain(frames.TCP, 4, tcp(payload_of(1460)))
    cut = Fitter(ROOM).frames(memoryview(frame), (1, 0, 0, 0, 34, 16), len(frame))

    assert 2 == len(cut)
    assert_scapy_agrees(cut)


def test_identifications_of_the_pieces() -> None:
    """They count on from the first; where the sender does not number, none does."""
    for first, expected in ((7, [7, 8]), (0, [0, 0])):
        frame = bytearray(plain(frames.TCP, 4, tcp(payload_of(1460)), fragment=0x4000))
        frame[18:20] = first.to_bytes(2, "big")
        cut = Fitter(ROOM).frames(memoryview(frame), NO_OFFLOAD, len(frame))
        assert expected == [one.id for one in innermost(cut, IP)]


def test_tcp_in_a_tunnel_is_split_at_the_inner_header() -> None:
    """Where the tapped host itself speaks VXLAN."""
    inner = ethernet(IPV4, ipv4(frames.TCP, tcp(payload := payload_of(1410))))
    frame = by_scapy(plain(frames.UDP, 4, udp(b"\x08" + bytes(6) + b"\0" + inner)))
    cut = Fitter(ROOM).frames(memoryview(frame), NO_OFFLOAD, len(frame))

    assert 2 == len(cut)
    assert payload == reassembled(cut)
    assert_scapy_agrees(cut)


CAN_NOT_BE_SPLIT = {
    "UDP": plain(frames.UDP, 4, udp(payload_of(1472), destination=9000)),
    "UDP over IPv6": plain(frames.UDP, 6, udp(payload_of(1452), destination=9000)),
    "ICMP": plain(frames.ICMP, 4, frames.icmp(8, payload_of(1472))),
    "a fragment": plain(frames.TCP, 4, tcp(payload_of(1460)), fragment=0x2000),
    "SYN with data": plain(frames.TCP, 4, tcp(payload_of(1460), flags=0x02)),
    "RST with data": plain(frames.TCP, 4, tcp(payload_of(1460), flags=0x04)),
    "urgent data": plain(frames.TCP, 4, tcp(payload_of(1460), flags=0x30)),
    "TCP with a trailer": plain(frames.TCP, 4, tcp(payload_of(1440))) + bytes(20),
    "TCP over IPv6 with a trailer": plain(frames.TCP, 6, tcp(payload_of(1420))) + bytes(20),
    "MPLS": ethernet(frames.MPLS, bytes(4) + ipv4(frames.TCP, tcp(payload_of(1460)))),
    "data offset beyond": plain(frames.TCP, 4, tcp(payload_of(1460), offset=2)),
}


@pytest.mark.parametrize("policy", ["split", "truncate"])
@pytest.mark.parametrize("name", CAN_NOT_BE_SPLIT)
def test_what_can_not_be_split_is_truncated(name: str, policy: str) -> None:
    """Its beginning is kept, its original length too, and it is counted."""
    frame = CAN_NOT_BE_SPLIT[name]
    fitter = Fitter(ROOM, policy)
    cut = fitter.frames(memoryview(frame), NO_OFFLOAD, len(frame))

    assert [(frame[:ROOM], len(frame))] == [(whole(one), one[2]) for one in cut]
    assert (1, 0, 0) == (fitter.truncated, fitter.dropped, fitter.segmenter.split)


def test_datagrams_of_a_super_packet_are_truncated_each() -> None:
    """UDP has no stream to be divided; all that are too long are counted, the short last one stays whole."""
    frame = plain(frames.UDP, 4, udp(payload_of(4500), destination=9000))
    fitter = Fitter(ROOM)
    cut = fitter.frames(memoryview(frame), offload(frames.UDP, 4, 1472, 34), len(frame))

    assert [(ROOM, 1514)] * 3 + [(126, 126)] == [(len(whole(one)), one[2]) for one in cut]
    assert 3 == fitter.truncated


@pytest.mark.parametrize("policy, length", [("truncate", ROOM), ("drop", None)])
def test_tcp_under_the_other_policies(policy: str, length: int | None) -> None:
    """A super-packet is cut to what was on the wire; its full segments are truncated or left out, the last one fits."""
    frame = plain(frames.TCP, 4, tcp(payload_of(3 * 1460 + 100)))
    fitter = Fitter(ROOM, policy)
    cut = fitter.frames(memoryview(frame), offload(frames.TCP, 4, 1460, 34), len(frame))

    expected = [(length, 1514)] * 3 if length else []
    assert [*expected, (154, 154)] == [(len(whole(one)), one[2]) for one in cut]
    assert (3, 0) == ((fitter.truncated, fitter.dropped) if length else (fitter.dropped, fitter.truncated))


def test_a_dropped_frame_leaves_nothing() -> None:
    """An empty list, and the count."""
    frame = CAN_NOT_BE_SPLIT["UDP"]
    fitter = Fitter(ROOM, "drop")

    assert not fitter.frames(memoryview(frame), NO_OFFLOAD, len(frame))
    assert 1 == fitter.dropped


def test_slices_that_fit_are_not_split() -> None:
    """What counts is what is sent: headers of a long segment are one frame of its original length."""
    frame = plain(frames.TCP, 4, tcp(payload_of(8948)))
    for policy in POLICIES:
        ((head, body, size),) = Fitter(ROOM, policy).frames(memoryview(frame)[:128], NO_OFFLOAD, len(frame))
        assert (frame[:128], len(frame)) == (bytes(head) + bytes(body), size)


def test_a_slice_that_does_not_fit_is_split_virtually() -> None:
    """3,000 bytes of a jumbo frame: the pieces tell of the rest by their original lengths."""
    frame = plain(frames.TCP, 4, tcp(payload_of(8948)))
    fitter = Fitter(ROOM)
    cut = fitter.frames(memoryview(frame)[:3000], NO_OFFLOAD, len(frame))

    assert [1410] * 6 + [488] == [size - 54 for _, _, size in cut]
    assert [1410, 1410, 126, 0, 0, 0, 0] == [len(body) for _, body, _ in cut]
    assert (2, 5) == (fitter.segmenter.completed, fitter.segmenter.unverifiable)


def test_the_room_may_change_between_two_frames() -> None:
    """As the path MTU does."""
    frame = memoryview(plain(frames.TCP, 4, tcp(payload_of(1460))))
    fitter = Fitter(9000)
    counts = []
    for room in (9000, 1464, 600, 9000):
        fitter.most_frame_bytes = room
        counts.append(len(fitter.frames(frame, NO_OFFLOAD, len(frame))))

    assert [1, 2, 3, 1] == counts


def test_a_tiny_room_truncates_instead_of_multiplying() -> None:
    """Below 48 bytes of payload a path is broken; 1,460 packets of a byte each would be an attack of our own."""
    frame = memoryview(plain(frames.TCP, 4, tcp(payload_of(1460))))
    for room, expected in ((54 + 48, 31), (54 + 47, 1), (10, 1), (0, 1)):
        fitter = Fitter(room)
        cut = fitter.frames(frame, NO_OFFLOAD, len(frame))
        assert (expected, int(expected == 1)) == (len(cut), fitter.truncated)
        assert all(len(whole(one)) <= room for one in cut)


SOURCES = [
    *CAN_NOT_BE_SPLIT.values(),
    plain(frames.TCP, 4, tcp(payload_of(5000), options=STAMPS)),
    plain(frames.TCP, 6, tcp(payload_of(5000), options=STAMPS)),
    ethernet(IPV6, ipv6(41, ipv6(frames.TCP, tcp(payload_of(5000))))),
    ethernet(IPV4, ipv4(frames.TCP, tcp(payload_of(5000))), (0x88A8, 0x8100)),
]


@given(data=st.data(), policy=st.sampled_from(POLICIES), room=st.integers(0, 3000))
def test_nothing_is_longer_than_the_room(data: st.DataObject, policy: str, room: int) -> None:
    """Whatever the frame, slice, tag and virtio header; and what went missing is counted."""
    frame = bytearray(data.draw(st.sampled_from(SOURCES)))
    original = len(frame)
    del frame[data.draw(st.integers(0, original)) :]
    gso = data.draw(st.sampled_from([(0, 0), (1, 1000), (4, 1000), (5, 1472), (1, 60)]))
    tag = data.draw(st.sampled_from([None, (7, 0x8100)]))
    fitter = Fitter(room, policy)
    cut = fitter.frames(memoryview(frame), (0, gso[0], 0, gso[1], 0, 0), original, tag)

    assert all(len(whole(one)) <= room for one in cut)
    assert cut or policy == "drop"
    assert len(cut) + fitter.dropped >= 1
    if policy == "truncate":
        assert not fitter.dropped
