"""The stage `self`: our own connections are not captured, or the copy would be copied."""

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import unpack

from guestagent.capture.assembler import NEXT, Instruction, assemble
from guestagent.capture.dissect import TCP, UDP, ipv4_layer, ipv6_layer, network_layer
from guestagent.model import Exclusion

__all__ = ["own_stage"]

PORTED = (TCP, UDP)
SOURCE, DESTINATION = "source", "destination"
ADDRESS_OFFSETS = {(1, SOURCE): 12, (1, DESTINATION): 16, (4, SOURCE): 8, (4, DESTINATION): 24}
"""Where an address of 1 or 4 words of 32 bits stands in its IP header."""

_Range = tuple[int, int]
_Answer = tuple[int, tuple[int, ...], _Range | None]
"""The value of a question that hits, and what to find then: the words of the address, and the range of source ports."""

# Self. A frame of our own is found by its ports first: they are one word and tell our connections from nearly all other
# traffic, so that a foreign TCP or UDP frame pays two compares for each exclusion and never looks at an address.
#
# Exclusions of one IP version and protocol are asked together. Each is two questions, one for each direction: a load
# relative to X, the transport header; the value that hits; the address to compare then. Questions with the same load
# form a section, and a section's hit that the addresses do not confirm goes on with the next section. A hit copies the
# address to M[] before it compares: a load relative to X costs eight times the memory of a load from M[].
#
#     connected       ld [x+0]    both ports at once
#     not yet         ldh [x+2]   local_port 0: any port of ours (port 0 is reserved, RFC 6335)
#                     ldh [x+0]
#     tunnel          ldh [x+2]   a range of local ports: packets go one way, so both questions are of the destination
#     no ports        ld #0       GRE and such: the protocol was the question already, every frame hits
#
# Later fragments have no ports and are kept: our links set DF, so they are not ours.


def _address(text: str) -> IPv4Address | IPv6Address:
    """The address as it stands in a packet: a dual-stack socket names an IPv4 peer ::ffff:a.b.c.d."""
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def _words(text: str) -> tuple[int, ...]:
    packed = _address(text).packed
    return unpack(f">{len(packed) // 4}I", packed)


@lru_cache(maxsize=8)
def own_stage(exclusions: tuple[Exclusion, ...]) -> tuple[Instruction, ...]:
    """Reject the frames of these connections and no others."""
    groups: dict[tuple[int, int], list[Exclusion]] = {}
    for one in exclusions:
        groups.setdefault((_address(one.remote_address).version, one.protocol), []).append(one)
    if not groups:
        return ()
    versions = {version for version, _ in groups}
    text = [network_layer("ipv4" if 4 in versions else NEXT, "ipv6" if 6 in versions else NEXT, NEXT)]
    for version in sorted(versions):
        text.append(ipv4_layer(NEXT, NEXT) if version == 4 else ipv6_layer(NEXT))
        protocols = [protocol for v, protocol in groups if v == version]
        text += [f"jeq #{protocol}, p{version}_{protocol}" for protocol in protocols]
        text.append("ja next")
        for protocol in protocols:
            text += _group(f"p{version}_{protocol}", groups[version, protocol])
    return assemble("\n".join(text))


def _group(name: str, exclusions: list[Exclusion]) -> Iterator[str]:
    """The questions about one IP version and protocol; begins with A = the protocol and X = M[1] = its header."""
    sections: dict[str, dict[str, list[_Answer]]] = {}
    for one in exclusions:
        words = _words(one.remote_address)
        ports = (one.local_port, one.last_local_port) if one.last_local_port else None
        for load, value, side in _questions(one):
            sections.setdefault(load, {}).setdefault(side, []).append((value, words, ports))
    yield f"{name}: txa\n add #4\n tax\n ld len\n jlt x, next"
    for number, (load, sides) in enumerate(sections.items()):
        section = f"{name}_{number}"
        yield f"{section}: ldx M[1]\n {load}"
        for value in dict.fromkeys(value for answers in sides.values() for value, *_ in answers):
            yield f"jeq #{value}, {section}_hit"
        yield f"ja {section}_end\n {section}_hit: st M[2]\n ldx M[0]"
        for side, answers in sides.items():
            yield from _reject(side, answers, f"{section}_{side}")
        yield f"{section}_end:"
    yield "ja next"


def _questions(one: Exclusion) -> tuple[tuple[str, int, str], tuple[str, int, str]]:
    """Outbound and inbound: what to load, the value that hits, the side on which the remote address then stands."""
    local, remote = one.local_port, one.remote_port
    if one.protocol not in PORTED:
        return ("ld #0", 0, DESTINATION), ("ld #0", 0, SOURCE)
    if not remote:
        raise ValueError(f"{one} would exclude a whole host")
    if one.last_local_port:
        return ("ldh [x+2]", remote, DESTINATION), ("ldh [x+2]", remote, SOURCE)
    if not local:
        return ("ldh [x+2]", remote, DESTINATION), ("ldh [x+0]", remote, SOURCE)
    return ("ld [x+0]", local << 16 | remote, DESTINATION), ("ld [x+0]", remote << 16 | local, SOURCE)


def _reject(side: str, answers: list[_Answer], name: str) -> Iterator[str]:
    """Reject the frame with its IP header at X if M[2] and the address on this side of it are one of the answers.

    X is the IP header again behind each.
    """
    count = len(answers[0][1])
    for i in range(count):
        yield f"ld [x+{ADDRESS_OFFSETS[count, side] + 4 * i}]\n st M[{3 + i}]"
    for n, (value, words, ports) in enumerate(answers):
        for slot, word in enumerate((value, *words), 2):
            yield f"ld M[{slot}]\n jne #{word}, {name}_not_{n}"
        if ports:
            yield "ldx M[1]\n ldh [x+0]\n ldx M[0]"
            yield f"jlt #{ports[0]}, {name}_not_{n}\n jgt #{ports[1]}, {name}_not_{n}"
        yield f"ret #0\n {name}_not_{n}:"
