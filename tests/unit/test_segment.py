"""Super-packets are cut to what was on the wire: scapy computes the same lengths and checksums, field by field."""

import struct
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.geneve import GENEVE  # noqa: F401 - scapy dissects it once it is loaded
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from guestagent.encap.segment import NO_OFFLOAD, Segmenter
from guestagent.encap.segment_cut import MOST_SEGMENTS
from tests import frames
from tests.frames import IPV4, IPV6, ethernet, ipv4, ipv6, tcp, udp
from tests.segments import (
    ECN,
    STAMPS,
    UDP_L4,
    assert_scapy_agrees,
    innermost,
    offload,
    payload_of,
    plain,
    pseudo_sum,
    whole,
)

FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80
VERSIONS = (4, 6)
SIZES = (1, 99, 1448, 1449, 2896, 10_000, 60_001)
NETWORK_BYTES = {4: 20, 6: 40}


def start_of(version: int) -> int:
    """Where the transport header begins in a plain frame."""
    return 14 + NETWORK_BYTES[version]


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


def by_layer(frame: bytes) -> bytes:
    """With scapy's checksums."""
    packet = Ether(frame)
    for layer in (IP, TCP, UDP):
        if layer in packet:
            del packet[layer].chksum
    return bytes(packet)


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


# Inside tunnels.


def vxlan(inner: bytes) -> bytes:
    return struct.pack(">II", 0x08000000, 7 << 8) + inner


def geneve(inner: bytes, options: bytes = bytes.fromhex("01020001aabbccdd")) -> bytes:
    return struct.pack(">BBHI", len(options) // 4, 0, 0x6558, 7 << 8) + options + inner


def gre(inner: bytes, ethertype: int = 0x6558, flags: int = 0x2000) -> bytes:
    check = bytes(4) if flags & 0x8000 else b""
    return struct.pack(">HH", flags, ethertype) + check + (bytes(3) + b"\x07" if flags & 0x2000 else b"") + inner


def tunnelled(name: str, outer: int, inner: int, upper: bytes, check: int = 0) -> tuple[bytes, int]:
    """(frame, offset of the transport inside); `check` fills the outer UDP checksum."""
    packet = (ipv4 if inner == 4 else ipv6)(frames.TCP, upper)
    inner_frame = ethernet(IPV4 if inner == 4 else IPV6, packet)
    shells = {
        "vxlan": (frames.UDP, udp(vxlan(inner_frame))),
        "linux vxlan": (frames.UDP, udp(vxlan(inner_frame), destination=8472)),
        "vxlan, port of its own": (frames.UDP, udp(vxlan(inner_frame), destination=7777)),
        "geneve": (frames.UDP, udp(geneve(inner_frame), destination=6081)),
        "gre": (frames.GRE, gre(inner_frame)),
        "gre, checksum": (frames.GRE, gre(inner_frame, flags=0xA000)),
        "gre, bare": (frames.GRE, gre(packet, IPV4 if inner == 4 else IPV6, 0)),
        "ip in ip": (4 if inner == 4 else 41, packet),
    }
    protocol, body = shells[name]
    frame = bytearray(plain(protocol, outer, body))
    if protocol == frames.UDP and check:
        frame[start_of(outer) + 6 : start_of(outer) + 8] = check.to_bytes(2, "big")
    return bytes(frame), len(frame) - len(upper)


TUNNELS = ("vxlan", "linux vxlan", "vxlan, port of its own", "geneve", "gre", "gre, checksum", "gre, bare", "ip in ip")


@pytest.mark.parametrize("check", [0, 0x1234])
@pytest.mark.parametrize("inner", VERSIONS)
@pytest.mark.parametrize("outer", VERSIONS)
@pytest.mark.parametrize("name", TUNNELS)
def test_super_packets_in_tunnels_are_cut_at_the_inner_tcp(name: str, outer: int, inner: int, check: int) -> None:
    """Both headers are rewritten; an outer UDP checksum of zero stays zero, another one is right."""
    payload = payload_of(5001)
    frame, start = tunnelled(name, outer, inner, tcp(payload, options=STAMPS), check)
    segmenter = Segmenter()
    cut = segmenter.frames(memoryview(frame), offload(frames.TCP, inner, 1398, start), len(frame))

    assert (4, 4, 0) == (len(cut), segmenter.completed, segmenter.not_understood)
    if "port of its own" not in name:  # scapy does not look inside of it
        assert_scapy_agrees(cut)
    inner_at = start - NETWORK_BYTES[inner]
    if "gre" not in name and "ip in ip" not in name:
        inner_at -= 14
        parts = [(Ether(whole(one)[inner_at:]), len(whole(one)) - inner_at) for one in cut]
        assert payload == b"".join(bytes(one[TCP].payload) for one, _ in parts)
    assert [1, 1399, 2797, 4195] == [int.from_bytes(whole(one)[start + 4 : start + 8], "big") for one in cut]
    if outer == 4:
        assert [7, 8, 9, 10] == [int.from_bytes(whole(one)[18:20], "big") for one in cut]


def test_a_tunnel_without_proof_is_found_by_its_port_alone() -> None:
    """Merged at a receiver the checksum is complete and csum_start unknown: an unknown port stays whole."""
    for name, known in (("vxlan", True), ("vxlan, port of its own", False)):
        frame, _ = tunnelled(name, 4, 4, tcp(payload_of(5001)))
        segmenter = Segmenter()
        cut = segmenter.frames(memoryview(frame), (0, 1, 0, 1398, 0, 0), len(frame))

        assert (known, 4 if known else 1) == (not segmenter.not_understood, len(cut))


def test_a_csum_start_that_disagrees_is_not_followed() -> None:
    """What the headers say and what the virtio header says must be one, or the record stays whole."""
    frame = plain(frames.TCP, 4, tcp(payload_of(2500)))
    for start in (30, 38, 54, 200, 0xFFFF):
        segmenter = Segmenter()
        assert [frame] == [
            whole(one) for one in segmenter.frames(memoryview(frame), offload(frames.TCP, 4, 1000, start), len(frame))
        ]
        assert 1 == segmenter.not_understood


# Slices.


@pytest.mark.parametrize("kept", [53, 54, 66, 100, 1065, 1066, 1067, 2066, 3000])
def test_a_sliced_super_packet_is_expanded_virtually(kept: int) -> None:
    """Each segment has its header, the bytes of it that are here, and its length of the wire."""
    payload = payload_of(2500)
    frame = plain(frames.TCP, 4, tcp(payload, options=STAMPS))
    virtio, segmenter = offload(frames.TCP, 4, 1000, 34), Segmenter()
    complete = Segmenter().frames(memoryview(frame), virtio, len(frame))
    cut = segmenter.frames(memoryview(frame)[:kept], virtio, len(frame))

    if kept < 54:  # not even the header without its options is here
        assert ([frame[:kept]], 1) == ([whole(one) for one in cut], segmenter.not_understood)
        return
    assert [one[2] for one in complete] == [one[2] for one in cut]
    here = min(kept, len(frame)) - 66
    for number, (whole_one, sliced) in enumerate(zip(complete, cut, strict=True)):
        size = max(0, min(1000, here - 1000 * number))
        assert whole(whole_one)[66 : 66 + size] == bytes(sliced[1])
        assert whole(whole_one)[:50] == bytes(sliced[0])[:50]  # up to the TCP checksum
        is_whole = len(whole(sliced)) == sliced[2]
        assert is_whole == (whole(whole_one)[50:52] == bytes(sliced[0])[50:52])
        if not is_whole:
            assert frame[50:52] == bytes(sliced[0])[50:52], "left as the super-packet had it"
    wholes = sum(len(whole(one)) == one[2] for one in cut)
    assert (wholes, 3 - wholes) == (segmenter.completed, segmenter.unverifiable)


def test_headers_of_a_sliced_super_packet_in_a_tunnel() -> None:
    """Of a tunnel too, where nothing but headers was captured."""
    frame, start = tunnelled("vxlan", 4, 4, tcp(payload_of(5001)))
    segmenter = Segmenter()
    cut = segmenter.frames(memoryview(frame)[: start + 20], offload(frames.TCP, 4, 1398, start), len(frame))

    assert [start + 20 + 1398] * 3 + [start + 20 + 807] == [one[2] for one in cut]
    assert [1, 1399, 2797, 4195] == [int.from_bytes(whole(one)[start + 4 : start + 8], "big") for one in cut]
    assert (0, 4) == (segmenter.completed, segmenter.unverifiable)


def test_a_partial_checksum_of_a_slice_is_left_and_counted() -> None:
    """Without the rest of the bytes there is no sum."""
    frame = plain(frames.TCP, 4, tcp(payload_of(500)))
    segmenter = Segmenter()
    cut = segmenter.frames(memoryview(frame)[:100], (1, 0, 0, 0, 34, 16), len(frame))

    assert ([frame[:100]], 1, 0) == ([whole(one) for one in cut], segmenter.unverifiable, segmenter.completed)


# What is not understood.

_HEADER_BYTES = 54


@pytest.mark.parametrize(
    "name, frame, virtio",
    [
        ("UFO", plain(frames.UDP, 4, udp(bytes(3000))), (0, 3, 0, 1000, 0, 0)),
        ("unknown type", plain(frames.TCP, 4, tcp(bytes(3000))), (0, 7, 0, 1000, 0, 0)),
        ("TCP over IPv4, it says, and it is UDP", plain(frames.UDP, 4, udp(bytes(3000))), (0, 1, 0, 1000, 0, 0)),
        ("TCP over IPv4, it says, and it is IPv6", plain(frames.TCP, 6, tcp(bytes(3000))), (0, 1, 0, 1000, 0, 0)),
        ("a fragment", plain(frames.TCP, 4, tcp(bytes(3000)), fragment=0x2000), (0, 1, 0, 1000, 0, 0)),
        ("segments of nothing", plain(frames.TCP, 4, tcp(bytes(3000))), (0, 1, 0, 0, 0, 0)),
        ("more segments than there are", plain(frames.TCP, 4, tcp(bytes(3000))), (0, 1, 0, 1, 0, 0)),
        ("data offset 0", plain(frames.TCP, 4, tcp(bytes(3000), offset=0)), (0, 1, 0, 1000, 0, 0)),
        ("ARP", ethernet(0x0806, bytes(3000)), (0, 1, 0, 1000, 0, 0)),
        ("tunnel in a tunnel", plain(4, 4, ipv4(4, ipv4(frames.TCP, tcp(bytes(3000))))), (0, 1, 0, 1000, 0, 0)),
    ],
)
def test_what_is_not_understood_stays_whole(name: str, frame: bytes, virtio: tuple[int, ...]) -> None:
    """Nothing is dropped: the record comes back as it was, and is counted."""
    segmenter = Segmenter()
    cut = segmenter.frames(memoryview(frame), virtio, len(frame))  # type: ignore[arg-type]

    assert ([frame], 1, 0) == ([whole(one) for one in cut], segmenter.not_understood, segmenter.segments)


def test_the_jumbo_header_of_big_tcp_is_taken_out() -> None:
    """RFC 2675's length stands in memory only; the segments have none."""
    upper = tcp(payload_of(70_000), options=STAMPS)
    jumbo = bytes([frames.TCP, 0, 0xC2, 4]) + (8 + len(upper)).to_bytes(4, "big")
    packet = bytearray(ipv6(frames.HOP, jumbo + bytes(10)))
    packet[4:6] = bytes(2)
    frame = ethernet(IPV6, bytes(packet[:48]) + upper)
    cut = Segmenter().frames(memoryview(frame), offload(frames.TCP, 6, 1428, 62), len(frame))

    assert -(-70_000 // 1428) == len(cut)
    assert_scapy_agrees(cut)
    assert {frames.TCP} == {one.nh for one in innermost(cut, IPv6)}


SOURCES = [
    plain(frames.TCP, 4, tcp(payload_of(3000), options=STAMPS)),
    plain(frames.TCP, 6, tcp(payload_of(3000))),
    plain(frames.UDP, 4, udp(payload_of(3000))),
    *(tunnelled(name, 4, 6, tcp(payload_of(3000)))[0] for name in TUNNELS),
    *(tunnelled(name, 6, 4, tcp(payload_of(3000)), 9)[0] for name in TUNNELS),
]


@given(data=st.data())
def test_no_record_upsets_it(data: st.DataObject) -> None:
    """Flipped, cut and with any virtio header: frames come back, at least one, and no byte more than there was."""
    frame = bytearray(data.draw(st.sampled_from(SOURCES) | st.binary(max_size=200)))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 130), st.integers(0, 255)), max_size=4)):
        if at < len(frame):
            frame[at] = value
    original = len(frame)
    del frame[data.draw(st.integers(0, original)) :]
    gso = data.draw(st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x11, 0x61]) | st.integers(0, 255))
    number = st.sampled_from([0, 6, 8, 16, 34, 54, 84, 1000]) | st.integers(0, 0xFFFF)
    virtio = (data.draw(st.integers(0, 3)), gso, *(data.draw(number) for _ in range(4)))
    most = data.draw(st.integers(0, 4000))
    cut = Segmenter().frames(memoryview(frame), virtio, original, most_frame_bytes=most)  # type: ignore[arg-type]

    assert cut
    assert all(len(head) + len(body) <= size or len(cut) == 1 for head, body, size in cut)
    assert sum(len(body) for _, body, _ in cut) <= len(frame)
    sizes = [len(whole(one)) for one in cut]
    assert all(first >= second for first, second in pairwise(sizes)), "no segment is longer than the first"
    if len(cut) > 1:
        headers = {len(head) for head, _, _ in cut}
        assert 1 == len(headers)
        assert original - headers.pop() in (
            list(accumulate(size - len(cut[0][0]) for _, _, size in cut))[-1],
            list(accumulate(size - len(cut[0][0]) for _, _, size in cut))[-1] + 8,  # BIG TCP's header
        )


def test_gso_types_of_udp_cover_both_versions() -> None:
    """VIRTIO_NET_HDR_GSO_UDP_L4 says nothing of the IP version."""
    for version in VERSIONS:
        frame = plain(frames.UDP, version, udp(payload_of(3000)))
        assert 3 == len(Segmenter().frames(memoryview(frame), (0, UDP_L4, 0, 1000, 0, 0), len(frame)))
