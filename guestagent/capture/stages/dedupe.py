"""The stage `dedupe`: what a peer's own agent copies on its way out is not copied again on its way in."""

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_address
from itertools import groupby
from struct import unpack

from guestagent.capture.assembler import NEXT, PACKET_OUTGOING, SKF_AD_PKTTYPE, Instruction, assemble
from guestagent.capture.dissect import network_layer

__all__ = ["dedupe_stage"]

# A frame with the IP source address of a peer is rejected unless it leaves. The addresses are a tree of 32-bit words,
# so that hosts of one IPv6 network share the compares of its prefix. Here is fd00::1, fd00::2 and fd00:0:0:1::1:
#
#     ld [x+8]     fd00:0 ── ld [x+12]   0:0 ── ld [x+16]   0:0 ── ld [x+20]   0:1, 0:2: reject
#                                        0:1 ── ld [x+16]   0:0 ── ld [x+20]   0:1: reject
#
# A word that stands nowhere in its place of the tree ends the search: the frame is kept.

_Words = tuple[int, ...]


@lru_cache(maxsize=16)
def dedupe_stage(peers: tuple[str, ...]) -> tuple[Instruction, ...]:
    """Reject incoming frames from these addresses; no instruction when there are none."""
    if not peers:
        return ()
    packed = sorted({ip_address(peer).packed for peer in peers})
    four = [unpack(">I", address) for address in packed if len(address) == 4]
    six = [unpack(">4I", address) for address in packed if len(address) == 16]
    text = [
        f"ld [{SKF_AD_PKTTYPE}]\n jeq #{PACKET_OUTGOING}, next",
        network_layer("ipv4" if four else NEXT, "ipv6" if six else NEXT, NEXT),
    ]
    if four:
        text += ["ipv4: ld len\n sub x\n jlt #20, next", *_tree(four, 12, "ipv4_")]
    if six:
        text += ["ipv6: ld len\n sub x\n jlt #40, next", *_tree(six, 8, "ipv6_")]
    return assemble("\n".join([*text, "reject: ret #0"]))


def _tree(addresses: list[_Words], offset: int, name: str) -> Iterator[str]:
    """Go to `reject` if one of these sorted addresses stands at this offset of the header at X, else to `next`."""
    yield f"ld [x+{offset}]"
    branches = {word: [words[1:] for words in group] for word, group in groupby(addresses, lambda words: words[0])}
    is_last = len(addresses[0]) == 1
    for word in branches:
        yield f"jeq #{word}, {'reject' if is_last else f'{name}{word}_'}"
    yield "ja next"
    for word, rest in branches.items():
        if not is_last:
            yield f"{name}{word}_:"
            yield from _tree(rest, offset + 4, f"{name}{word}_")
