"""The capture filter: one classic BPF program that decides in the kernel which frames are copied, and how much of each.

The program is a row of stages. Each either rejects the frame (`ret 0`) or goes on with the next one; the last accepts.

| stage | rejects |
|---|---|
| loopback | on lo, the outgoing one of the two copies that the kernel shows |
| self | our own connections, or the copy would be copied |
| filter | what the user's pcap-filter expression does not select |
| dedupe | incoming frames of peers whose own agents copy them |
| hash | nothing: it names the flow, for those that follow; frames that belong to none it accepts |
| sample | whole flows, all but a fraction |
| heavy | packets of flows in a short list, all but a fraction; what is left of these it cuts to headers |
| slice | nothing: it says how many bytes to keep |

A stage that has nothing to do is not there. Each is assembled on its own, so stages share no labels, and no jump leads
into another. Nor do they share registers: each finds A, X and M[] undefined and leaves them so, except that hash hands
on its findings (see stages/flow.py), to slice as well, so that `headers` need not walk the same headers again.

Two rules hold in every stage of ours:

- A load beyond the frame ends classic BPF with `ret 0`, silently. So every load stands behind a `ld len` that proves
  it, and a frame too short for a question is one that the question does not reject, and that is kept whole.
- Offsets are never absolute once a VLAN tag was possible. X holds the offset of the header in question, which lets
  zero, one and two tags (and IPv4 options, and IPv6 extension headers) share their code.
"""

from collections.abc import Sequence
from functools import lru_cache

from guestagent.capture import assembler
from guestagent.capture.assembler import NEXT, PACKET_OUTGOING, SKF_AD_PKTTYPE, Instruction, Line, assemble, encode
from guestagent.capture.dissect import ACCEPT_BYTES, HEADERS
from guestagent.capture.stages.dedupe import dedupe_stage
from guestagent.capture.stages.flow import CUT, MOST_HEAVY, hash_stage, heavy_stage, sample_stage
from guestagent.capture.stages.own import own_stage
from guestagent.errors import ConfigError
from guestagent.model import Exclusion

__all__ = ["ACCEPT_BYTES", "MOST_HEAVY", "REJECT_ALL", "Instruction", "compose", "encode"]

REJECT_ALL = (Instruction(assembler.RET_K, 0, 0, 0),)
"""Attached to stop a capture, or to start one with nothing in the ring."""


def compose(
    *,
    exclusions: Sequence[Exclusion] = (),
    loopback: bool = False,
    user_filter: Sequence[Instruction] = (),
    dedupe: Sequence[str] = (),
    heavy: Sequence[int] = (),
    heavy_fraction: float = 1.0,
    sample: float = 1.0,
    seed: int = 0,
    slice_: str | int = "full",
) -> tuple[Instruction, ...]:
    """The program of one interface; a stage that has nothing to do has no instruction.

    `dedupe` names peers by address, `heavy` flows by flowhash.flow_hash with this `seed`; `heavy_fraction` of their
    packets and `sample` of all flows are kept. `slice_` is `full`, `headers` or a number of bytes.
    """
    is_hashed = bool(heavy) or sample < 1
    return (
        *(_LOOPBACK if loopback else ()),
        *own_stage(tuple(exclusions)),
        *_filter_stage(tuple(user_filter)),
        *dedupe_stage(tuple(dedupe)),
        *(hash_stage(seed, _slice(slice_, "ret a")) if is_hashed else ()),
        *sample_stage(sample),
        *heavy_stage(tuple(heavy), heavy_fraction, slice_ if isinstance(slice_, int) else ACCEPT_BYTES),
        *_slice_stage(slice_, is_hashed),
    )


_LOOPBACK = assemble(f"""
        ld [{SKF_AD_PKTTYPE}]
        jne #{PACKET_OUTGOING}, next
        ret #0
""")


@lru_cache(maxsize=16)
def _filter_stage(program: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    """The program of libpcap, its accepting returns turned into jumps to the next stage; lines are named by number."""
    source: list[str | Line] = []
    for i, (code, jt, jf, k) in enumerate(program):
        source.append(str(i))
        if code == assembler.RET_K and k:
            source.append(Line(assembler.JA, then=NEXT))
        elif code == assembler.RET_A:
            source += [Line(assembler.JEQ_K, 0, otherwise=NEXT), Line(assembler.RET_K, 0)]
        elif code == assembler.JA:
            source.append(Line(assembler.JA, then=str(i + 1 + k)))
        elif code & 0x07 == assembler.JMP_CLASS:
            source.append(Line(code, k, str(i + 1 + jt), str(i + 1 + jf)))
        else:
            source.append(Line(code, k))
    return assembler.link(source)


@lru_cache(maxsize=16)
def _slice_stage(slice_: str | int, is_hashed: bool) -> tuple[Instruction, ...]:
    return assemble(_slice(slice_, f"ld M[{CUT}]\n ret a" if is_hashed else HEADERS))


def _slice(slice_: str | int, headers: str) -> str:
    """The text that accepts; `headers` is what does so under that slice."""
    if slice_ == "headers":
        return headers
    length = ACCEPT_BYTES if slice_ == "full" else slice_
    if not isinstance(length, int) or not 0 < length <= ACCEPT_BYTES:
        raise ConfigError(f'slice must be "full", "headers" or 1 to {ACCEPT_BYTES} bytes, not {slice_!r}')
    return f"ret #{length}"
