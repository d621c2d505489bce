"""The composed capture filter against an interpreter: what it keeps of every kind of frame, and what it never does."""

from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestagent.capture.bpf import ACCEPT_BYTES, REJECT_ALL, compose
from guestagent.errors import ConfigError
from guestagent.model import Exclusion
from tests import frames
from tests.bpf_cases import HEADERS, TWENTY, mutated_frame
from tests.bpf_interpreter import kept
from tests.frames import EXCLUSIONS, HEADERS_CASES, OWN_CASES, Case, OwnCase

SELF = compose(exclusions=EXCLUSIONS)
ALL_FRAMES = [*(case.frame for case in HEADERS_CASES), *(case.frame for case in OWN_CASES)]
PACKET_HOST, PACKET_OUTGOING = 0, 4


def named(cases: Sequence[Case | OwnCase]) -> pytest.MarkDecorator:
    """One test for each case of a table, under the case's name."""
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@named(HEADERS_CASES)
def test_headers_keeps_what_the_table_says(case: Case) -> None:
    """`headers` cuts each frame right behind the last header that it understands."""
    assert case.kept == kept(HEADERS, case.frame)


@named(HEADERS_CASES)
def test_headers_of_a_cut_frame(case: Case) -> None:
    """A frame that ends early loses nothing more: of any prefix, `headers` keeps what it keeps of the whole."""
    expected = [min(n, case.kept) for n in range(len(case.frame))]

    assert expected == [kept(HEADERS, case.frame[:n]) or 0 for n in range(len(case.frame))]


@named(OWN_CASES)
def test_self_rejects_what_the_table_says(case: OwnCase) -> None:
    """The self stage rejects our own connections and nothing that merely resembles them."""
    assert case.ours == (kept(SELF, case.frame) is None)


@named(OWN_CASES)
def test_self_with_twenty_exclusions(case: OwnCase) -> None:
    """Many exclusions, whose branches need trampolines, decide each frame as few do."""
    program = compose(exclusions=(*TWENTY, *EXCLUSIONS, *TWENTY))
    ours = case.ours or kept(compose(exclusions=TWENTY), case.frame) is None

    assert ours == (kept(program, case.frame) is None)


ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2", "fd00:0:0:1::2")
PORTS = st.sampled_from([1, 2, 3])
OPTIONS = st.integers(0, 10).map(lambda words: bytes(4 * words))


@st.composite
def packet_and_exclusions(draw: st.DrawFn) -> tuple[bytes, bool, tuple[Exclusion, ...]]:
    """A TCP or UDP frame, and exclusions from a space so small that they often match; whether one does."""
    protocol, source_port, destination_port = draw(st.sampled_from([6, 17])), draw(PORTS), draw(PORTS)
    family = draw(st.sampled_from([ADDRESSES[:3], ADDRESSES[3:]]))
    source, destination = draw(st.sampled_from(family)), draw(st.sampled_from(family))
    exclusion = st.builds(
        Exclusion,
        st.sampled_from([6, 17]),
        st.sampled_from(ADDRESSES),
        PORTS,
        st.sampled_from([0, 1, 2, 3]),
        st.sampled_from([0, 0, 2, 3]),
    )
    exclusions = tuple(draw(st.lists(exclusion, max_size=6)))
    ours = any(
        one.protocol == protocol
        and (one.remote_address, one.remote_port) == (address, remote)
        and one.local_port in (0, local)
        for one in exclusions
        if not one.last_local_port
        for address, remote, local in (
            (destination, destination_port, source_port),
            (source, source_port, destination_port),
        )
    ) or any(
        (one.protocol, one.remote_port) == (protocol, destination_port)
        and one.remote_address in (source, destination)
        and one.local_port <= source_port <= one.last_local_port
        for one in exclusions
    )
    transport = frames.tcp if protocol == 6 else frames.udp
    body = transport(source=source_port, destination=destination_port)
    tags = draw(st.sampled_from(frames.TAGGINGS))
    if ":" in source:
        packet = frames.ipv6(protocol, body, source=source, destination=destination)
        return frames.ethernet(frames.IPV6, packet, tags), ours, exclusions
    packet = frames.ipv4(protocol, body, source=source, destination=destination, options=draw(OPTIONS))
    return frames.ethernet(frames.IPV4, packet, tags), ours, exclusions


@settings(max_examples=400)
@given(packet_and_exclusions())
def test_self_means_exactly_its_exclusions(drawn: tuple[bytes, bool, tuple[Exclusion, ...]]) -> None:
    """A whole frame is rejected when and only when an exclusion names its protocol, addresses and ports."""
    frame, ours, exclusions = drawn

    assert ours == (kept(compose(exclusions=exclusions), frame) is None)


KINDS = st.sampled_from([frames.HOP, frames.ROUTING, frames.FRAGMENT, frames.DESTINATION, frames.AH, frames.SHIM6])


@st.composite
def transport_frame(draw: st.DrawFn) -> tuple[bytes, int]:
    """A sound TCP or UDP frame with any tags, options and extension headers; where its payload begins."""
    payload = draw(st.binary(max_size=50))
    protocol = draw(st.sampled_from([6, 17]))
    body = frames.tcp(payload, options=draw(OPTIONS)) if protocol == 6 else frames.udp(payload)
    tags = draw(st.sampled_from(frames.TAGGINGS))
    if draw(st.booleans()):
        packet = frames.ipv4(protocol, body, options=draw(OPTIONS), fragment=draw(st.sampled_from([0, 0x2000, 0x4000])))
        frame = frames.ethernet(frames.IPV4, packet, tags)
    else:
        packet = frames.chained(draw(st.lists(KINDS, max_size=6)), protocol, body, draw(st.sampled_from([8, 16, 64])))
        frame = frames.ethernet(frames.IPV6, packet, tags)
    return frame, len(frame) - len(payload)


@settings(max_examples=400)
@given(transport_frame())
def test_headers_keeps_all_headers_and_no_payload(drawn: tuple[bytes, int]) -> None:
    """`headers` keeps a TCP or UDP frame up to the first byte of its payload, whatever stands before."""
    frame, payload_at = drawn

    assert payload_at == kept(HEADERS, frame)


@settings(max_examples=600)
@given(st.one_of(st.binary(max_size=200), mutated_frame(ALL_FRAMES)), st.sampled_from(["full", "headers", 1, 96]))
def test_no_frame_is_rejected(frame: bytes, slice_: str | int) -> None:
    """With no exclusion and no user filter no frame of any length and content is rejected."""
    assert kept(compose(slice_=slice_, loopback=True), frame, PACKET_HOST) is not None


@settings(max_examples=600)
@given(st.one_of(st.binary(max_size=200), mutated_frame(ALL_FRAMES)))
def test_only_a_frame_that_names_the_remote_is_rejected(frame: bytes) -> None:
    """With exclusions a frame is only rejected when an excluded remote address stands in it."""
    if kept(SELF, frame) is None:
        remotes = {ip_address(one.remote_address.removeprefix("::ffff:")).packed for one in EXCLUSIONS}

        assert any(remote in frame for remote in remotes)


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=200), mutated_frame(ALL_FRAMES)))
def test_stages_are_independent(frame: bytes) -> None:
    """Behind the self stage `headers` keeps the same bytes as alone, though the registers hold leftovers."""
    expected = kept(HEADERS, frame) if kept(SELF, frame) is not None else None

    assert expected == kept(compose(exclusions=EXCLUSIONS, slice_="headers", loopback=True), frame)


def test_loopback_drops_the_outgoing_copy() -> None:
    """On lo the outgoing copy of a frame is rejected, the incoming one and any on other interfaces are kept."""
    frame = frames.ethernet(frames.IPV4, frames.ipv4(6, frames.tcp()))

    assert kept(compose(loopback=True), frame, PACKET_OUTGOING) is None
    assert len(frame) == kept(compose(loopback=True), frame, PACKET_HOST)
    assert len(frame) == kept(compose(), frame, PACKET_OUTGOING)


@pytest.mark.parametrize("slice_, expected", [("full", 154), (96, 96), (1, 1), (4000, 154), (ACCEPT_BYTES, 154)])
def test_slice_by_bytes(slice_: str | int, expected: int) -> None:
    """A number cuts at that many bytes, `full` not at all."""
    assert expected == kept(compose(slice_=slice_), frames.ethernet(frames.IPV4, frames.ipv4(6, frames.tcp())))


@pytest.mark.parametrize("slice_", [0, -1, ACCEPT_BYTES + 1, "header", "96"])
def test_slice_refuses(slice_: str | int) -> None:
    """A slice that would reject everything, or means nothing, is an error of the config that names it."""
    with pytest.raises(ConfigError, match="slice must be"):
        compose(slice_=slice_)


def test_exclusion_never_is_a_whole_host() -> None:
    """An exclusion of TCP without a remote port is refused."""
    with pytest.raises(ValueError, match="whole host"):
        compose(exclusions=[Exclusion(6, "10.0.0.1", 0, 0)])


def test_reject_all() -> None:
    """REJECT_ALL rejects every frame."""
    assert kept(REJECT_ALL, bytes(60)) is None
