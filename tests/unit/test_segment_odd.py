"""Super-packets that are sliced, tagged, odd or hostile: expanded, left whole and counted, never an error."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.geneve import GENEVE  # noqa: F401 - scapy dissects it once it is loaded
from scapy.layers.inet6 import IPv6

from guestagent.encap.segment import Segmenter
from tests import frames
from tests.frames import IPV6, ethernet, ipv4, ipv6, tcp, udp
from tests.segments import (
    STAMPS,
    TUNNELS,
    UDP_L4,
    VERSIONS,
    assert_scapy_agrees,
    innermost,
    offload,
    payload_of,
    plain,
    tunnelled,
    whole,
)


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
