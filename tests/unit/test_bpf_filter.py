"""The user's filter in the composed program: it selects, the slice decides how much, and no jump leaves its stage."""

import struct
from collections.abc import Sequence
from itertools import chain

import pytest

from guestagent.capture.bpf import Instruction, compose
from guestagent.model import Exclusion
from tests import frames
from tests.bpf_cases import HEADERS, TWENTY
from tests.bpf_interpreter import Machine, kept
from tests.frames import CONNECTED, EXCLUSIONS

OPTMEM_INSTRUCTIONS = 1560
"""What net.core.optmem_max of 20 KB admits: Linux 6.18 charges 13.1 bytes for one of ours; a swap holds two."""
USER_FILTER_INSTRUCTIONS = 200
"""A long filter: of three hosts or networks with their ports libpcap makes 49, which are charged four times as much."""

# The filter stage. `ldb [20]`-like programs as libpcap would make them, small enough to know the answer.

FIRST_BYTE_IS_7 = (
    Instruction(0x30, 0, 0, 0),
    Instruction(0x15, 0, 1, 7),
    Instruction(0x06, 0, 0, 262144),
    Instruction(0x06, 0, 0, 0),
)

RETURNS_FIRST_BYTE = (Instruction(0x30, 0, 0, 0), Instruction(0x16, 0, 0, 0))
JUMPS_OVER_A_RETURN = (Instruction(0x05, 0, 0, 1), Instruction(0x06, 0, 0, 0), *FIRST_BYTE_IS_7)


@pytest.mark.parametrize("slice_", ["full", "headers", 1])
@pytest.mark.parametrize(
    "program, first, selected",
    [
        (FIRST_BYTE_IS_7, 7, True),
        (FIRST_BYTE_IS_7, 8, False),
        (RETURNS_FIRST_BYTE, 1, True),
        (RETURNS_FIRST_BYTE, 0, False),
        (JUMPS_OVER_A_RETURN, 7, True),
        (JUMPS_OVER_A_RETURN, 8, False),
    ],
)
def test_filter_selects_and_slice_decides(
    program: tuple[Instruction, ...], first: int, selected: bool, slice_: str | int
) -> None:
    """What the user's program accepts, by whatever return, goes on to the slice; what it rejects is rejected."""
    frame = bytes([first]) + bytes(80)
    expected = kept(compose(slice_=slice_), frame) if selected else None

    assert expected == kept(compose(exclusions=EXCLUSIONS, user_filter=program, slice_=slice_), frame)


def test_long_user_filter() -> None:
    """A program whose accepting returns lie 600 instructions apart still decides as it does alone."""
    pairs = ((Instruction(0x15, 0, 1, n), Instruction(0x06, 0, 0, 1)) for n in range(300))
    program = (Instruction(0x28, 0, 0, 0), *chain.from_iterable(pairs), Instruction(0x06, 0, 0, 0))

    for n in (0, 150, 299, 300):
        frame = struct.pack(">H", n) + bytes(60)
        assert (n < 300) == (kept(compose(user_filter=program), frame) is not None)


# The programs themselves.


def conditional_jumps(program: Sequence[Instruction]) -> list[tuple[int, int]]:
    """Where each conditional jump stands and the furthest line that it reaches."""
    return [(at, at + 1 + max(i.jt, i.jf)) for at, i in enumerate(program) if i.code & 7 == 5 and i.code != 5]


@pytest.mark.parametrize("count", [0, 1, 4, 20])
def test_conditional_jumps_stay_within_their_stage(count: int) -> None:
    """No conditional jump goes beyond the end of its stage, and no `ja` either."""
    stages = [
        compose(loopback=True)[:-1],
        compose(exclusions=TWENTY[:count])[:-1],
        compose(user_filter=RETURNS_FIRST_BYTE)[:-1],
        HEADERS,
    ]
    whole = compose(loopback=True, exclusions=TWENTY[:count], user_filter=RETURNS_FIRST_BYTE, slice_="headers")

    assert tuple(instruction for stage in stages for instruction in stage) == whole
    for stage in stages:
        assert all(reach <= len(stage) for _, reach in conditional_jumps(stage))
        assert all(at + 1 + i.k <= len(stage) for at, i in enumerate(stage) if i.code == 5)


def test_program_sizes() -> None:
    """`headers` and a few exclusions fit twice into the smallest optmem_max, with room for a user's filter."""
    four = compose(exclusions=TWENTY[:4], slice_="headers", loopback=True)

    assert len(compose()) == 1
    assert len(HEADERS) <= 320
    assert len(four) + USER_FILTER_INSTRUCTIONS <= OPTMEM_INSTRUCTIONS // 2
    assert len(compose(exclusions=TWENTY, slice_="headers", loopback=True)) <= 790


def test_a_foreign_frame_costs_few_steps() -> None:
    """A foreign TCP frame passes four exclusions in under 45 instructions: ports are asked before addresses."""
    machine = Machine(frames.ethernet(frames.IPV4, frames.ipv4(6, frames.tcp(source=1, destination=2))))
    machine.run(compose(exclusions=[CONNECTED, *(Exclusion(6, "10.0.0.7", 4795, n) for n in (5, 6, 7))]))

    assert machine.steps < 45
