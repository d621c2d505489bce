"""An assembler for classic BPF: text with symbolic labels in, struct sock_filter out; pure.

The text is that of the kernel's bpf_asm (Documentation/networking/filter.rst), as far as our stages speak it:

    start:  ldh [12]            ; a label, an instruction, a remark
            jeq #0x800, yes     ; the true branch; the false one falls through
            jlt #60, start2, next

The label `next` stands behind the last instruction, so that assembled pieces can be laid end to end: whoever jumps to
`next` goes on with the piece that follows, and no jump ever reaches into it.
"""

import re
import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

JUMP_REACH = 255
"""jt and jf of struct sock_filter are __u8; only `ja` reaches further (by k, 32 bits)."""

INSTRUCTION = struct.Struct("=HBBI")
"""struct sock_filter of <linux/filter.h>, in host order."""

NEXT = "next"

SKF_AD_PKTTYPE, SKF_AD_RANDOM = 0xFFFFF000 + 4, 0xFFFFF000 + 56
"""SKF_AD_OFF + ... of <linux/filter.h>: a load from here is skb->pkt_type, or 32 random bits, no byte of the frame."""
PACKET_OUTGOING = 4

JMP_CLASS, JA = 0x05, 0x05
RET_K, RET_A = 0x06, 0x16
JEQ_K = 0x15

CODES = {
    "ld #k": 0x00, "ld [k]": 0x20, "ld [x+k]": 0x40, "ld M[k]": 0x60, "ld len": 0x80,
    "ldh [k]": 0x28, "ldh [x+k]": 0x48, "ldb [k]": 0x30, "ldb [x+k]": 0x50,
    "ldx #k": 0x01, "ldx M[k]": 0x61, "st M[k]": 0x02, "stx M[k]": 0x03, "tax": 0x07, "txa": 0x87,
    "add #k": 0x04, "add x": 0x0C, "sub #k": 0x14, "sub x": 0x1C, "mul #k": 0x24, "xor x": 0xAC,
    "and #k": 0x54, "lsh #k": 0x64, "rsh #k": 0x74,
    "jeq #k": JEQ_K, "jgt #k": 0x25, "jge #k": 0x35, "jset #k": 0x45, "jgt x": 0x2D, "jge x": 0x3D, "ja": JA,
    "ret #k": RET_K, "ret a": RET_A,
}  # fmt: skip
"""Opcodes of <linux/bpf_common.h> by the shape of the instruction: every number is written k."""

NEGATIONS = {"jne": "jeq", "jlt": "jge", "jle": "jgt"}
"""Classic BPF knows no such jumps: bpf_asm, too, writes the opposite one with its branches swapped."""

_NUMBER = re.compile(r"\b(0x[0-9a-f]+|\d+)\b")
_LINE = re.compile(r"\s*(?:(?P<label>\w+):)?\s*(?P<statement>[^;]*?)\s*(?:;.*)?")


class Instruction(NamedTuple):
    """One struct sock_filter: offsets jt, jf (and k of `ja`) count from the instruction that follows."""

    code: int
    jt: int
    jf: int
    k: int


class Line(NamedTuple):
    """An instruction whose targets still are labels; an empty target is the line that follows."""

    code: int
    k: int = 0
    then: str = ""
    otherwise: str = ""

    @property
    def branches(self) -> tuple[str, ...]:
        """Where it can go: one way for `ja`, two for a conditional jump, none for the rest."""
        if self.code & 0x07 != JMP_CLASS:
            return ()
        return (self.then,) if self.code == JA else (self.then, self.otherwise)


def encode(program: Iterable[Instruction]) -> bytes:
    """The program as the array of struct sock_filter that SO_ATTACH_FILTER points at."""
    program = tuple(program)
    # One call: the governor swaps filters of 500 instructions, twice a second while it samples.
    return struct.pack("=" + INSTRUCTION.format[1:] * len(program), *chain.from_iterable(program))


def decode(image: bytes) -> tuple[Instruction, ...]:
    """The program in an array of struct sock_filter (struct bpf_insn of libpcap is the same)."""
    return tuple(Instruction(*fields) for fields in INSTRUCTION.iter_unpack(image))


def assemble(text: str) -> tuple[Instruction, ...]:
    """The program that the text describes."""
    source: list[str | Line] = []
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"not a line of classic BPF assembly: {line!r}")
        if match["label"]:
            source.append(match["label"])
        if match["statement"]:
            source.append(_parse(match["statement"]))
    return link(source)


def _parse(statement: str) -> Line:
    mnemonic, *rest = statement.replace(",", " ").split()
    operation = NEGATIONS.get(mnemonic, mnemonic)
    code, operand, targets = CODES.get(operation), "", rest
    if code is None and rest:
        operand, *targets = rest
        code = CODES.get(_NUMBER.sub("k", f"{operation} {operand}"))
    if code is None:
        raise ValueError(f"not a classic BPF instruction of ours: {statement!r}")
    number = _NUMBER.search(operand)
    line = Line(code, int(number[0], 0) if number else 0)
    if len(targets) > len(line.branches):
        raise ValueError(f"too many operands: {statement!r}")
    branches = [*targets, "", ""][:2]
    then, otherwise = reversed(branches) if mnemonic in NEGATIONS else branches
    return line._replace(then=then, otherwise=otherwise)


# Linking. A conditional jump reaches 255 instructions, a `ja` any number, and both only forward. A branch that is too
# far is sent over a trampoline: a `ja` of its own right behind the jump.
#
#     jeq #6, far, near    becomes        jeq #6, +0, near
#                                         ja far
#
# A trampoline moves everything behind it by one, which can push another branch out of reach; so the layout is repeated
# until no branch is left to mend. Each round mends at least one for good, so it ends. Fall-through needs no case of its
# own: its target is the next line, and the distance to it counts the trampolines in between.


def link(source: Sequence[str | Line]) -> tuple[Instruction, ...]:
    """Resolve the labels (a bare string names the line that follows it) and mend the branches that are too far."""
    lines = [item for item in source if isinstance(item, Line)]
    targets = _targets(source)
    far = [[False] * len(branches) for branches in targets]
    while True:
        starts = list(accumulate((1 + sum(sides) for sides in far), initial=0))
        distances = [[starts[target] - starts[i] - 1 for target in branches] for i, branches in enumerate(targets)]
        wanted = [
            [line.code != JA and (was or distance > JUMP_REACH) for was, distance in zip(sides, reach, strict=True)]
            for line, sides, reach in zip(lines, far, distances, strict=True)
        ]
        if wanted == far:
            break
        far = wanted
    rows = zip(lines, distances, far, strict=True)
    return tuple(instruction for line, reach, sides in rows for instruction in _emit(line, reach, sides))


def _targets(source: Sequence[str | Line]) -> list[list[int]]:
    """For each line the numbers of the lines that it branches to."""
    labels: dict[str, int] = {}
    lines: list[Line] = []
    for item in source:
        if isinstance(item, Line):
            lines.append(item)
        elif labels.setdefault(item, len(lines)) != len(lines):
            raise ValueError(f"label {item!r} is defined twice")
    labels[NEXT] = len(lines)
    targets = [[labels.get(name, -1) if name else i + 1 for name in line.branches] for i, line in enumerate(lines)]
    for i, (line, branches) in enumerate(zip(lines, targets, strict=True)):
        if any(target <= i for target in branches):
            raise ValueError(f"{line} jumps backward, or to a label that is not there")
    return targets


def _emit(line: Line, distances: list[int], far: list[bool]) -> Iterable[Instruction]:
    """The instruction itself, then its trampolines."""
    if not distances:
        yield Instruction(line.code, 0, 0, line.k)
    elif line.code == JA:
        yield Instruction(JA, 0, 0, distances[0])
    else:
        jt, jf = (sum(far[:side]) if far[side] else distances[side] for side in (0, 1))
        yield Instruction(line.code, jt, jf, line.k)
        mended = [distance for distance, is_far in zip(distances, far, strict=True) if is_far]
        yield from (Instruction(JA, 0, 0, distance - 1 - n) for n, distance in enumerate(mended))
