"""A small fuzzer: inputs of a corpus are changed at random; one that reaches code that none did before is kept."""

import random
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
MOST_INPUT_BYTES = 4096
MOST_CHANGES = 6
_TELLING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x01\0\0\0",
    b"\0\x01",
    b"}",
    b'"',
    b"[",
)
"""Where lengths, signs and nesting end."""

Lines = set[tuple[str, int]]


class FoundError(Exception):
    """A parser failed in a way that is not its own; the text names the input."""


def kept(name: str) -> list[bytes]:
    """Seeds and corpus of a target."""
    return [*TARGETS[name].seeds(), *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]


def changed(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Another input, a few changes away."""
    value = bytearray(data)
    for _ in range(chance.randint(1, MOST_CHANGES)):
        at = chance.randint(0, len(value))
        match chance.randrange(6):
            case 0 if value:
                value[at % len(value)] ^= 1 << chance.randrange(8)
            case 1:
                value[at : at + chance.randint(0, 4)] = chance.choice(_TELLING)
            case 2:
                del value[at : at + chance.randint(1, 40)]
            case 3:
                other = chance.choice(others)
                start = chance.randint(0, len(other))
                value[at:at] = other[start : start + chance.randint(1, 60)]
            case 4:
                value[at:at] = value[at : at + chance.randint(1, 60)]
            case _:
                value[at:at] = chance.randbytes(chance.randint(1, 8))
    return bytes(value[:MOST_INPUT_BYTES])


def tried(name: str, target: Target, data: bytes) -> None:
    """Give one input to a target. Raises FoundError where it fails in another way than it may."""
    try:
        target.run(data)
    except target.refusals:
        return
    except Exception as error:
        place = CORPUS / name / f"{zlib.crc32(data):08x}"
        raise FoundError(f"{type(error).__name__}: {error}; put {data.hex()} into {place}") from error


def fuzz(name: str, seconds: float, seed: int) -> int:
    """Change what is kept for so long; how many inputs that were. Raises FoundError."""
    target, inputs, chance = TARGETS[name], kept(name), random.Random(f"{name} {seed}")
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        tried(name, target, changed(chance.choice(inputs), inputs, chance))
        count += 1
    return count


def grow(name: str, seconds: float, seed: int) -> list[bytes]:
    """The same, watched line by line: the inputs that reached lines which none before did."""
    target, inputs, chance = TARGETS[name], kept(name), random.Random(f"{name} {seed}")
    seen = reached(name, target, inputs)
    until, found = time.monotonic() + seconds, []
    while time.monotonic() < until:
        data = changed(chance.choice(inputs), inputs, chance)
        if new := reached(name, target, [data]) - seen:
            seen |= new
            inputs.append(data)
            found.append(data)
    return found


def reached(name: str, target: Target, inputs: Iterable[bytes]) -> Lines:
    """The lines of the product that these inputs run through."""
    lines: Lines = set()

    def watch(frame: FrameType, event: str, _: Any) -> Any:
        if "/guestagent/" not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
            return None
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return watch

    sys.settrace(watch)
    try:
        for data in inputs:
            tried(name, target, data)
    finally:
        sys.settrace(None)
    return lines
