"""Dedupe, heavy and sample together: what one rejects alone they reject together, and what they cost."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from guestagent.capture.bpf import MOST_HEAVY, Instruction, compose
from guestagent.capture.stages.dedupe import dedupe_stage
from guestagent.capture.stages.flow import hash_stage, heavy_stage, sample_stage
from guestagent.model import Exclusion
from tests import frames
from tests.bpf_cases import ANY_FRAME, MOST, PACKET_HOST, PACKET_OUTGOING, PEERS, SEED
from tests.bpf_interpreter import Machine, kept
from tests.frames import EXCLUSIONS

# All together.

EVERYTHING = compose(
    exclusions=EXCLUSIONS, loopback=True, dedupe=PEERS, heavy=range(5), heavy_fraction=0.5, sample=0.5, slice_="headers"
)


@settings(max_examples=400)
@given(ANY_FRAME, st.sampled_from([PACKET_HOST, PACKET_OUTGOING]), st.integers(0, MOST))
def test_stages_are_independent(frame: bytes, kind: int, chance: int) -> None:
    """All stages together reject what one of them rejects alone, though the registers hold leftovers."""
    alone = (
        compose(exclusions=EXCLUSIONS),
        compose(loopback=True),
        compose(dedupe=PEERS),
        compose(heavy=range(5), heavy_fraction=0.5, sample=0.5, slice_="headers"),
    )
    lengths = [kept(program, frame, kind, chance) for program in alone]
    expected = None if None in lengths else lengths[-1]

    assert expected == kept(EVERYTHING, frame, kind, chance)


def test_a_stage_without_work_has_no_instruction() -> None:
    """At its defaults none of the three costs anything."""
    idle = compose(dedupe=(), heavy=(), heavy_fraction=0.5, sample=1.0, seed=9)

    assert len(idle) == 1


def test_jumps_stay_within_their_stage() -> None:
    """No jump of a stage goes beyond the line that follows it, however long its list is."""
    many = tuple(range(MOST_HEAVY))
    stages = {
        "dedupe": dedupe_stage(tuple(f"fd00::{n:x}" for n in range(300)) + tuple(f"10.0.0.{n}" for n in range(200))),
        "hash": hash_stage(SEED, "ret a"),
        "sample": sample_stage(0.5),
        "heavy": heavy_stage(many, 0.5, 20),
    }
    for stage in stages.values():
        for at, one in enumerate(stage):
            if one.code & 7 == 5:
                assert at + 1 + (one.k if one.code == 5 else max(one.jt, one.jf)) <= len(stage)
    whole = compose(heavy=many, heavy_fraction=0.5, sample=0.5, seed=SEED, slice_="headers")

    assert whole == (*stages["hash"], *sample_stage(0.5), *heavy_stage(many, 0.5, 0x40000), *whole[-2:])


def steps(program: Sequence[Instruction], frame: bytes) -> int:
    """How many instructions the frame passes."""
    machine = Machine(frame)
    machine.run(program)
    return machine.steps


def test_program_sizes() -> None:
    """The largest program that the governor makes is known; what the kernel charges for it, the lab tests."""
    four = [Exclusion(6, f"fd00::{n}", 4795, 40000 + n) for n in range(4)]
    largest = compose(
        exclusions=four, loopback=True, heavy=range(MOST_HEAVY), heavy_fraction=0.1, sample=0.5, slice_="headers"
    )

    assert len(compose(sample=0.5)) <= 475
    assert len(largest) <= 660


def test_steps() -> None:
    """A TCP packet over IPv4 costs 100 instructions to sample, and one for each heavy flow that it is compared with."""
    frame = frames.ethernet(frames.IPV4, frames.ipv4(6, frames.tcp()))
    heavy = compose(sample=0.9999999, heavy=range(MOST_HEAVY), heavy_fraction=0.5)

    assert steps(compose(sample=0.9999999), frame) <= 100
    assert steps(heavy, frame) <= 101 + MOST_HEAVY
    assert steps(compose(dedupe=PEERS), frame) <= 20
