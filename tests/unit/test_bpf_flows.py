"""Hash, sample and heavy against an interpreter: the hash is ours bit by bit, flows are whole, or cut to headers."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestagent.capture.bpf import MOST_HEAVY, compose
from guestagent.capture.flowhash import flow_hash
from tests import frames
from tests.bpf_cases import ANY_FRAME, HEADERS, MOST, SEED
from tests.bpf_interpreter import Machine, kept
from tests.frames import FLOWLESS, FLOWS, Flow

SLICES = ("full", "headers", 20, 1500)


def named(flows: Sequence[Flow]) -> pytest.MarkDecorator:
    """One test for each row of a table, under its name."""
    return pytest.mark.parametrize("flow", flows, ids=[flow.name for flow in flows])


def computed(frame: bytes, seed: int) -> int | None:
    """The hash that the filter computes, or None where it finds no flow: A, when sample of nothing has compared it."""
    machine = Machine(frame)
    return None if machine.run(compose(sample=0.0, seed=seed)) else machine.a


# Hash and sample.


@named(FLOWS)
def test_the_filter_computes_the_hash(flow: Flow) -> None:
    """For each frame of the table the filter's hash is that of flow_hash, bit by bit."""
    for seed in (0, SEED, MOST):
        for frame in flow.frames:
            assert flow_hash(frame, seed) == computed(frame, seed)


@settings(max_examples=1500)
@given(ANY_FRAME, st.sampled_from([0, 1, SEED, MOST]))
def test_filter_and_flow_hash_agree(frame: bytes, seed: int) -> None:
    """For whatever frame and seed, both find the same hash, or both none."""
    assert flow_hash(frame, seed) == computed(frame, seed)


@named(FLOWLESS)
def test_what_has_no_flow_is_always_kept(flow: Flow) -> None:
    """A sample of nothing still keeps ICMP errors, what is not IP and what is too short, as the slice alone would."""
    frame = flow.frames[0]
    for slice_ in SLICES:
        expected = kept(compose(slice_=slice_), frame)

        assert expected == kept(compose(sample=0.0, slice_=slice_), frame)
        assert expected == kept(compose(heavy=range(MOST_HEAVY), heavy_fraction=0.0, slice_=slice_), frame, random=MOST)


@settings(max_examples=600)
@given(ANY_FRAME, st.floats(0, 1), st.sampled_from(SLICES))
def test_sample_keeps_whole_flows(frame: bytes, fraction: float, slice_: str | int) -> None:
    """A frame is kept when its hash is below the fraction of 32 bits or it has none, and then sliced as ever."""
    one = flow_hash(frame, SEED)
    expected = kept(compose(slice_=slice_), frame) if one is None or one < fraction * 2**32 else None

    assert expected == kept(compose(sample=fraction, seed=SEED, slice_=slice_), frame)


def test_a_larger_sample_holds_the_smaller_one() -> None:
    """A flow that is kept stays kept when the fraction grows, so that the governor tears no flow by giving back."""
    for flow in FLOWS:
        kept_at = [f for f in range(11) if kept(compose(sample=f / 10, seed=SEED), flow.frames[0]) is not None]

        assert kept_at == list(range(min(kept_at, default=11), 11))


# Heavy.


def headers_of(frame: bytes, slice_: str | int) -> int | None:
    """What is left of a heavy flow's frame: its headers, and no more than the slice leaves."""
    lengths = [kept(HEADERS, frame), kept(compose(slice_=slice_), frame)]
    return min(length for length in lengths if length is not None)


@named(FLOWS)
@pytest.mark.parametrize("slice_", SLICES)
def test_heavy_flows_are_cut_to_headers(flow: Flow, slice_: str | int) -> None:
    """Of a flow that is named by its hash headers are left, of one that is not what the slice says."""
    own = flow_hash(flow.frames[0], SEED)
    assert own is not None
    others = [own ^ 1 << bit for bit in range(0, 30, 2)]
    named_ = compose(heavy=[*others, own], seed=SEED, slice_=slice_)
    unnamed = compose(heavy=others, seed=SEED, slice_=slice_)
    for frame in flow.frames:
        assert headers_of(frame, slice_) == kept(named_, frame, random=MOST)
        assert kept(compose(slice_=slice_), frame) == kept(unnamed, frame, random=MOST)


FLAGS = (
    ("FIN", 0x01, True), ("SYN", 0x02, True), ("RST", 0x04, True), ("SYN ACK", 0x12, True), ("FIN PSH ACK", 0x19, True),
    ("ACK", 0x10, False), ("PSH ACK", 0x18, False), ("URG ECE CWR", 0xE0, False), ("none", 0x00, False),
)  # fmt: skip


@pytest.mark.parametrize("flags, always", [row[1:] for row in FLAGS], ids=[row[0] for row in FLAGS])
@pytest.mark.parametrize("tags", frames.TAGGINGS)
@pytest.mark.parametrize("fragment", [0, frames.MORE_FRAGMENTS])
def test_heavy_keeps_begin_and_end_of_connections(flags: int, always: bool, tags: Sequence[int], fragment: int) -> None:
    """SYN, FIN and RST are kept whatever chance says, all else only with luck."""
    body = frames.tcp(flags=flags)
    for frame in (
        frames.ethernet(frames.IPV4, frames.ipv4(6, body, options=bytes(8), fragment=fragment), tags),
        frames.ethernet(frames.IPV6, frames.chained([frames.HOP, frames.AH], 6, body), tags),
    ):
        own = flow_hash(frame, SEED)
        assert own is not None
        program = compose(heavy=[own], heavy_fraction=0.25, seed=SEED)

        assert kept(HEADERS, frame) == kept(program, frame, random=2**30 - 1)
        assert (kept(HEADERS, frame) if always else None) == kept(program, frame, random=2**30)


def test_payload_is_never_taken_for_flags() -> None:
    """UDP, GRE and later fragments of a heavy flow are left to chance, though a byte of theirs looks like SYN."""
    body = b"\\2" * 100
    for packet in (
        frames.ipv4(17, frames.udp(body)),
        frames.ipv4(frames.GRE, body),
        frames.ipv4(6, body, fragment=100),
    ):
        frame = frames.ethernet(frames.IPV4, packet)
        own = flow_hash(frame, 0)
        assert own is not None

        assert kept(compose(heavy=[own], heavy_fraction=0.5), frame, random=MOST) is None


@settings(max_examples=600)
@given(ANY_FRAME, st.floats(0, 1), st.floats(0, 1), st.integers(0, MOST), st.booleans(), st.sampled_from(SLICES))
def test_heavy_and_sample_together(
    frame: bytes, sample: float, fraction: float, chance: int, is_heavy: bool, slice_: str | int
) -> None:
    """Each does what it does alone: unsampled flows are gone, heavy ones thinned and cut, the rest is as sliced."""
    own = flow_hash(frame, SEED)
    heavy = [1, own if is_heavy and own is not None else 2]
    program = compose(heavy=heavy, heavy_fraction=fraction, sample=sample, seed=SEED, slice_=slice_)
    got = kept(program, frame, random=chance)

    if own is None or own not in heavy:
        assert kept(compose(sample=sample, seed=SEED, slice_=slice_), frame) == got
    elif own >= int(sample * 2**32):
        assert got is None
    elif chance < int(fraction * 2**32):
        assert headers_of(frame, slice_) == got
    else:
        assert got in (None, headers_of(frame, slice_))


def test_heavy_fraction_is_a_fraction() -> None:
    """A tenth of the random numbers lets a heavy flow's packet through; none does at 0; all do at 1."""
    frame = frames.ethernet(frames.IPV4, frames.ipv4(17, frames.udp()))
    own = flow_hash(frame, 0)
    assert own is not None
    draws = [round(MOST * n / 200) for n in range(201)]

    def lucky(fraction: float) -> int:
        program = compose(heavy=[own], heavy_fraction=fraction)
        return sum(kept(program, frame, random=draw) is not None for draw in draws)

    assert (0, 20, 201) == (lucky(0.0), lucky(0.1), lucky(1.0))


def test_a_list_of_heavy_flows_is_short() -> None:
    """More than MOST_HEAVY flows are refused."""
    with pytest.raises(ValueError, match="17 heavy flows"):
        compose(heavy=range(MOST_HEAVY + 1))
