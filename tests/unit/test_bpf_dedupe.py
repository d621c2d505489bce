"""Dedupe against an interpreter: what comes from a peer is rejected, and nothing else."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.capture.bpf import compose
from tests import frames
from tests.bpf_cases import PACKET_BROADCAST, PACKET_HOST, PACKET_MULTICAST, PACKET_OTHERHOST, PACKET_OUTGOING, PEERS
from tests.bpf_interpreter import kept
from tests.frames import HERE4, HERE6, PEER4, PEER6

DEDUPE = compose(dedupe=PEERS)
OTHERS = (HERE4, "10.0.0.8", "9.0.0.10", HERE6, "fd00::8", "fd00:0:0:2::9", "2001:db8::10", "fd00:0:0:1::1")


def from_to(source: str, destination: str, tags: Sequence[int] = ()) -> bytes:
    """A UDP frame between two addresses of one family."""
    if ":" in source:
        packet = frames.ipv6(17, frames.udp(), source=source, destination=destination)
        return frames.ethernet(frames.IPV6, packet, tags)
    return frames.ethernet(frames.IPV4, frames.ipv4(17, frames.udp(), source=source, destination=destination), tags)


@pytest.mark.parametrize("tags", frames.TAGGINGS)
@pytest.mark.parametrize("peer", PEERS)
def test_dedupe_leaves_a_peers_frames_to_the_peer(peer: str, tags: Sequence[int]) -> None:
    """What comes from a peer is rejected, whomever it is for; what goes to it, or leaves with its address, is kept."""
    here = HERE6 if ":" in peer else HERE4
    for kind in (PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST, PACKET_OTHERHOST):
        assert kept(DEDUPE, from_to(peer, here, tags), kind) is None
        assert kept(DEDUPE, from_to(here, peer, tags), kind) is not None
    assert kept(DEDUPE, from_to(peer, here, tags), PACKET_OUTGOING) is not None


@pytest.mark.parametrize("tags", frames.TAGGINGS)
@pytest.mark.parametrize("other", OTHERS)
def test_dedupe_keeps_all_others(other: str, tags: Sequence[int]) -> None:
    """An address that shares words with a peer's is not a peer."""
    assert kept(DEDUPE, from_to(other, PEER6 if ":" in other else PEER4, tags)) is not None


def test_dedupe_keeps_what_is_too_short_or_not_ip() -> None:
    """A frame that ends inside its IP header is kept, and so is what merely holds a peer's address."""
    four, six = from_to(PEER4, HERE4), from_to(PEER6, HERE6)

    assert all(kept(DEDUPE, four[:n]) for n in range(1, 34))
    assert all(kept(DEDUPE, six[:n]) for n in range(1, 54))
    assert kept(DEDUPE, four[:34]) is kept(DEDUPE, six[:54]) is None
    assert kept(DEDUPE, frames.ethernet(frames.ARP, four[14:])) is not None
    assert kept(DEDUPE, frames.ethernet(frames.IPV4, four[14:], (0x8100,) * 3)) is not None


@given(
    st.lists(st.ip_addresses(v=6, network="fd00::/120") | st.ip_addresses(v=4, network="10.0.0.0/28"), max_size=40),
    st.ip_addresses(v=6, network="fd00::/120") | st.ip_addresses(v=4, network="10.0.0.0/28"),
)
def test_dedupe_means_exactly_its_peers(peers: list[object], source: object) -> None:
    """With any list of peers a frame from any address is rejected if and only if the address is in the list."""
    frame = from_to(str(source), HERE6 if ":" in str(source) else HERE4)

    assert (source in peers) == (kept(compose(dedupe=[str(peer) for peer in peers]), frame) is None)
