"""The assembler: labels resolve, far branches arrive, and what is no program is refused."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestagent.capture.assembler import Line, assemble, decode, encode, link
from guestagent.capture.bpf import REJECT_ALL, compose
from tests.bpf_interpreter import Machine


def test_encode_is_sock_filter() -> None:
    """A program is encoded as 8-byte struct sock_filter in host order, and decodes to itself."""
    program = compose(slice_="headers")

    assert struct.pack("=HBBI", 0x06, 0, 0, 0) == encode(REJECT_ALL)
    assert program == decode(encode(program))


@pytest.mark.parametrize("distance", [1, 254, 255, 256, 257, 1000])
@pytest.mark.parametrize(
    "jump, on_one, on_zero", [("jeq #1, yes, no", 1, 2), ("jeq #1, yes", 1, 3), ("jne #1, no", 3, 2)]
)
def test_far_branches_get_trampolines(distance: int, jump: str, on_one: int, on_zero: int) -> None:
    """A branch of any length arrives: the true one, the false one and both at once."""
    program = assemble(f"ldb [0]\n {jump}\n" + "ret #3\n" * distance + "yes: ret #1\n no: ret #2")

    assert on_one == Machine(b"\1").run(program)
    assert on_zero == Machine(b"\0").run(program)


def test_trampolines_push_others_out_of_reach() -> None:
    """A branch that only a later trampoline pushes out of reach is mended as well."""
    jumps = "".join(f"jeq #{n}, out\n" for n in range(300))
    program = assemble(f"ldb [0]\n {jumps} ret #7\n out: ret #9")

    assert len(program) > 303
    assert {9} == {Machine(bytes([n])).run(program) for n in range(256)}


@pytest.mark.parametrize(
    "text, message",
    [
        ("ldq [0]", "not a classic BPF instruction"),
        ("ld", "not a classic BPF instruction"),
        ("tax #1", "too many"),
        ("jeq #1, a, b, c", "too many"),
        ("back: ret #0\n ja back", "backward"),
        ("ja nowhere", "not there"),
        ("a: ret #0\n a: ret #1", "defined twice"),
        ("a b: c: d", "not a"),
    ],
)
def test_assembler_refuses(text: str, message: str) -> None:
    """Text that is no program is refused with what is wrong about it."""
    with pytest.raises(ValueError, match=message):
        assemble(text)


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.integers(1, 700))
def test_linked_programs_run_as_written(rng: random.Random, length: int) -> None:
    """Random forward jumps of any length take the same way linked as they do by their labels."""
    lines = [
        Line(rng.choice([0x05, 0x15, 0x35]), rng.randrange(256), *(str(rng.randint(at + 1, length)) for _ in "tf"))
        for at in range(length)
    ]
    source = [item for at, line in enumerate(lines) for item in (str(at), line)]
    program = link([Line(0x30), *source, str(length), Line(0x06, 5)])
    at, value = 0, rng.randrange(256)
    jumps = 0
    while at < length:
        line = lines[at]
        hit = line.code == 0x05 or (value == line.k if line.code == 0x15 else value >= line.k)
        at, jumps = int(line.then if hit else line.otherwise), jumps + 1
    machine = Machine(bytes([value]))

    assert machine.run(program) == 5
    assert jumps + 2 <= machine.steps <= 2 * jumps + 2
