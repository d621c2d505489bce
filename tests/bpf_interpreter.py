"""A classic BPF machine for tests, written from the kernel's filter.rst and not from our assembler.

It knows all of the instruction set that libpcap emits, and the ancillary loads that our programs and libpcap's use.
"""

from collections.abc import Callable, Iterable

WORD_MASK = 0xFFFFFFFF
AD_OFF = 0xFFFFF000
AD_PROTOCOL, AD_PKTTYPE, AD_VLAN_TAG, AD_VLAN_TAG_PRESENT, AD_RANDOM = 0, 4, 44, 48, 56

LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
SIZES = {0x00: 4, 0x08: 2, 0x10: 1}
IMM, ABS, IND, MEM, LEN, MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
TAX = 0x00

ALU_OPERATIONS: dict[int, Callable[[int, int], int]] = {
    0x00: lambda a, b: a + b,
    0x10: lambda a, b: a - b,
    0x20: lambda a, b: a * b,
    0x30: lambda a, b: a // b,
    0x40: lambda a, b: a | b,
    0x50: lambda a, b: a & b,
    0x60: lambda a, b: a << (b & 31),
    0x70: lambda a, b: a >> (b & 31),
    0x80: lambda a, _: -a,
    0x90: lambda a, b: a % b,
    0xA0: lambda a, b: a ^ b,
}

COMPARISONS: dict[int, Callable[[int, int], bool]] = {
    0x10: lambda a, b: a == b,
    0x20: lambda a, b: a > b,
    0x30: lambda a, b: a >= b,
    0x40: lambda a, b: bool(a & b),
}
JUMP_ALWAYS = 0x00


class OutOfBoundsError(Exception):
    """A load beyond the frame: the kernel ends the program with 0."""


class Machine:
    """The registers and one frame; `steps` counts the instructions that ran."""

    def __init__(
        self,
        frame: bytes,
        protocol: int = 0,
        pkttype: int = 0,
        vlan_tag: int = 0,
        vlan_tag_present: int = 0,
        random: int = 0,
    ) -> None:
        """Start with everything 0, as the kernel does; the keywords are what stands beside a frame in its skb."""
        self.frame = frame
        self.ancillary = {
            AD_PROTOCOL: protocol,
            AD_PKTTYPE: pkttype,
            AD_VLAN_TAG: vlan_tag,
            AD_VLAN_TAG_PRESENT: vlan_tag_present,
            AD_RANDOM: random,
        }
        self.a = self.x = self.steps = 0
        self.memory = [0] * 16

    def run(self, program: Iterable[tuple[int, int, int, int]]) -> int:
        """The accept length that the program returns."""
        instructions = list(program)
        at = 0
        while True:
            code, jt, jf, k = instructions[at]
            at += 1
            self.steps += 1
            if code & 7 == RET:
                return self.a if code & 0x18 == 0x10 else k
            if code & 7 == JMP:
                at += self._jump(code, jt, jf, k)
                continue
            try:
                self._execute(code, k)
            except OutOfBoundsError:
                return 0
            except ZeroDivisionError:
                return 0

    def _jump(self, code: int, jt: int, jf: int, k: int) -> int:
        operation = code & 0xF0
        if operation == JUMP_ALWAYS:
            return k
        return jt if COMPARISONS[operation](self.a, self.x if code & 8 else k) else jf

    def _execute(self, code: int, k: int) -> None:
        kind = code & 7
        if kind == LD:
            self.a = self._load(code, k)
        elif kind == LDX:
            self.x = self._load(code, k)
        elif kind == ST:
            self.memory[k] = self.a
        elif kind == STX:
            self.memory[k] = self.x
        elif kind == ALU:
            self.a = ALU_OPERATIONS[code & 0xF0](self.a, self.x if code & 8 else k) & WORD_MASK
        elif code & 0xF8 == TAX:
            self.x = self.a
        else:
            self.a = self.x

    def _load(self, code: int, k: int) -> int:
        mode, size = code & 0xE0, SIZES[code & 0x18]
        if mode == IMM:
            return k
        if mode == MEM:
            return self.memory[k]
        if mode == LEN:
            return len(self.frame)
        if mode == MSH:
            return (self._bytes(k, 1) & 0x0F) * 4
        if mode == ABS and k >= AD_OFF:
            return self.ancillary[k - AD_OFF]
        return self._bytes((k + self.x if mode == IND else k) & WORD_MASK, size)

    def _bytes(self, offset: int, size: int) -> int:
        if offset + size > len(self.frame):
            raise OutOfBoundsError
        return int.from_bytes(self.frame[offset : offset + size], "big")


def kept(program: Iterable[tuple[int, int, int, int]], frame: bytes, pkttype: int = 0, random: int = 0) -> int | None:
    """How many bytes of the frame the program keeps, or None where it rejects the frame."""
    length = Machine(frame, pkttype=pkttype, random=random).run(program)
    return min(length, len(frame)) if length else None
