"""The stages `hash`, `sample` and `heavy`: which flows are kept, and what of a flow too heavy to be kept whole."""

from functools import lru_cache

from guestagent.capture.assembler import SKF_AD_RANDOM, Instruction, assemble
from guestagent.capture.dissect import IPV6_FRAGMENT, Endings, walk
from guestagent.capture.flowhash import address_text, combine_text

__all__ = ["CUT", "MOST_HEAVY", "hash_stage", "heavy_stage", "sample_stage"]

MOST_HEAVY = 16
"""The list is one compare after the other, paid for by every packet of every other flow."""

# Three stages that hand on what they know, unlike the others. `hash` walks a frame's headers, once for all:
#
#     walk ── tcp, udp, portless ── A = the flow's hash ──► sample ──► heavy ──► slice
#       └──── exempt: accepted with what the slice leaves
#
# Exempt are frames of no flow: not IP, ICMP errors, too short to tell. They are few, they tell much, they are kept.
#
# Sample stands before heavy: it is one compare, and rejects a flow whether it is heavy or not. Heavy's list changes
# several times a second while the governor works, so `hash`, five hundred lines that depend on the seed alone, is not
# assembled with it.

_PROTOCOL, _FRAGMENT, CUT, _PORTS, _TCP, _SOURCE, _DESTINATION = range(2, 9)
"""Slots of M[]: protocol; the word with the fragment field, or 0; accept length of `headers`; both ports, or 0; offset
of the TCP header, or 0; one mixed end; the other."""

_IPV4 = 0x100
"""No protocol: what the walk finds in M[_PROTOCOL] and replaces only for IPv6."""

_CLEAR = f"ld #{_IPV4}\n st M[{_PROTOCOL}]\n ld #0\n" + "".join(
    f"st M[{slot}]\n" for slot in (0, _FRAGMENT, CUT, _PORTS, _TCP)
)
"""Also what is always stored before it is loaded: the kernel attaches no program in which it may not be, and takes the
line behind a `ret` for reachable from it."""

_FIN_SYN_RST = 0x07


@lru_cache(maxsize=8)
def hash_stage(seed: int, exempt: str) -> tuple[Instruction, ...]:
    """Go on with A = the flow's hash, as flowhash.flow_hash has it, and M[] as `heavy` and `slice` want it.

    `exempt` ends the program for frames without one; A is what `headers` leaves of them.
    """
    endings = Endings(
        tcp=f"st M[{CUT}]\n stx M[{_TCP}]\n ja ports",
        udp=f"st M[{CUT}]\n ld len\n sub #4\n jlt x, keep\n ja ports",
        portless=f"st M[{CUT}]\n ja flow",
        exempt=exempt,
        fragment=f"st M[{_FRAGMENT}]",
    )
    return assemble(f"""
        {_CLEAR}
        {walk(endings)}
ports:  ld [x+0]
        st M[{_PORTS}]
flow:   ld M[{_PROTOCOL}]
        jne #{_IPV4}, flow6
        ld M[{_FRAGMENT}]
        and #0xff
        st M[{_PROTOCOL}]
        {address_text(12, 1, _SOURCE, seed)}
        {address_text(16, 1, _DESTINATION, seed)}
        ld M[{_FRAGMENT}]
        jset #0x3fff0000, fragment, combine
flow6:
        {address_text(8, 4, _SOURCE, seed)}
        {address_text(24, 4, _DESTINATION, seed)}
        ld M[{_FRAGMENT}]
        jset #0xfff9, fragment, combine
fragment: ld #0                         ; only the first of its siblings has ports: all do without
        st M[{_PORTS}]
        ld #{IPV6_FRAGMENT}
        st M[{_PROTOCOL}]
combine:
        {combine_text(_SOURCE, _DESTINATION, _PORTS, _PROTOCOL, seed)}
    """)


def sample_stage(fraction: float) -> tuple[Instruction, ...]:
    """Behind `hash`: reject all but a fraction of the flows. A larger fraction holds every flow of a smaller one."""
    return assemble(f"jlt #{_threshold(fraction)}, next\n ret #0") if fraction < 1 else ()


def heavy_stage(flows: tuple[int, ...], fraction: float, ceiling: int) -> tuple[Instruction, ...]:
    """Behind `hash`: cut these flows to headers, or leave that to a slice of `ceiling` bytes that cuts more; thin them.

    SYN, FIN and RST are kept, so that begin and end of a connection are seen; of the rest chance keeps a fraction.
    """
    if len(flows) > MOST_HEAVY:
        raise ValueError(f"{len(flows)} heavy flows are more than {MOST_HEAVY}")
    if not flows:
        return ()
    return assemble("".join((
        *(f"jeq #{flow}, heavy\n" for flow in flows),
        f"ja next\n heavy: ldx M[{_TCP}]\n",
        _thin(fraction) if fraction < 1 else "",
        f"cut: ld M[{CUT}]\n jge #{ceiling}, next\n ret a\n",
    )))  # fmt: skip


def _thin(fraction: float) -> str:
    return f"""
        txa
        jeq #0, chance
        ldb [x+13]
        jset #{_FIN_SYN_RST}, cut
chance: ld [{SKF_AD_RANDOM}]
        jlt #{_threshold(fraction)}, cut
        ret #0
"""


def _threshold(fraction: float) -> int:
    """How many of the 32-bit numbers lie below the fraction."""
    return max(0, int(fraction * 2**32))
