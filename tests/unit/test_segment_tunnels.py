"""Super-packets in tunnels are cut at the inner transport header, where the record proves it."""

import pytest
from scapy.contrib.geneve import GENEVE  # noqa: F401 - scapy dissects it once it is loaded
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from guestagent.encap.segment import Segmenter
from tests import frames
from tests.frames import tcp
from tests.segments import (
    NETWORK_BYTES,
    STAMPS,
    TUNNELS,
    VERSIONS,
    assert_scapy_agrees,
    offload,
    payload_of,
    tunnelled,
    whole,
)


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


def test_headers_of_a_sliced_super_packet_in_a_tunnel() -> None:
    """Of a tunnel too, where nothing but headers was captured."""
    frame, start = tunnelled("vxlan", 4, 4, tcp(payload_of(5001)))
    segmenter = Segmenter()
    cut = segmenter.frames(memoryview(frame)[: start + 20], offload(frames.TCP, 4, 1398, start), len(frame))

    assert [start + 20 + 1398] * 3 + [start + 20 + 807] == [one[2] for one in cut]
    assert [1, 1399, 2797, 4195] == [int.from_bytes(whole(one)[start + 4 : start + 8], "big") for one in cut]
    assert (0, 4) == (segmenter.completed, segmenter.unverifiable)
