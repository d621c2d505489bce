"""The capture filter: one classic BPF program that decides in the kernel which frames are copied, and how much of each.

The program is a row of stages. Each either rejects the frame (`ret 0`) or goes on with the next one; the last accepts.

| stage | rejects |
|---|---|
| loopback | on lo, the outgoing one of the two copies that the kernel shows |
| self | our own connections, or the copy would be copied |
| filter | what the user's pcap-filter expression does not select |
| slice | nothing: it says how many bytes to keep |

Dedupe, heavy and sample will stand between filter and slice: what they reject costs no slicing, and they see only what
the user selected. A stage is assembled on its own, so stages share no labels and no registers: each finds A, X and M[]
undefined and leaves them so.

Two rules hold in every stage of ours:

- A load beyond the frame ends classic BPF with `ret 0`, silently. So every load stands behind a `ld len` that proves
  it, and a frame too short for a question is one that the question does not reject, and that is kept whole.
- Offsets are never absolute once a VLAN tag was possible. X holds the offset of the header in question, which lets
  zero, one and two tags (and IPv4 options, and IPv6 extension headers) share their code.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from guestagent.capture import assembler
from guestagent.capture.assembler import NEXT, Instruction, Line, assemble, encode
from guestagent.capture.dissect import ACCEPT_BYTES, HEADERS, TCP, UDP, ipv4_layer, ipv6_layer, network_layer
from guestagent.errors import ConfigError
from guestagent.model import Exclusion

__all__ = ["ACCEPT_BYTES", "REJECT_ALL", "Instruction", "compose", "encode"]

REJECT_ALL = (Instruction(assembler.RET_K, 0, 0, 0),)
"""Attached to stop a capture, or to start one with nothing in the ring."""

SKF_AD_PKTTYPE = 0xFFFFF000 + 4
"""SKF_AD_OFF + SKF_AD_PKTTYPE of <linux/filter.h>: a load from here is skb->pkt_type, not a byte of the frame."""
PACKET_OUTGOING = 4

PORTED = (TCP, UDP)
SOURCE, DESTINATION = "source", "destination"
ADDRESS_OFFSETS = {(4, SOURCE): 12, (4, DESTINATION): 16, (6, SOURCE): 8, (6, DESTINATION): 24}


def compose(
    *,
    exclusions: Sequence[Exclusion] = (),
    loopback: bool = False,
    user_filter: Sequence[Instruction] = (),
    slice_: str | int = "full",
) -> tuple[Instruction, ...]:
    """The program of one interface; `slice_` is `full`, `headers` or a number of bytes."""
    return (
        *(_LOOPBACK if loopback else ()),
        *_self_stage(tuple(exclusions)),
        *_filter_stage(tuple(user_filter)),
        *_slice_stage(slice_),
    )


_LOOPBACK = assemble(f"""
        ld [{SKF_AD_PKTTYPE}]
        jne #{PACKET_OUTGOING}, next
        ret #0
""")


# Self. A frame of our own is found by its ports first: they are one word and tell our connections from nearly all other
# traffic, so that a foreign TCP or UDP frame pays two compares for each exclusion and never looks at an address.
#
# Exclusions of one IP version and protocol are asked together. Each is two questions, one for each direction: a load
# relative to X, the transport header; the value that hits; the address to compare then. Questions with the same load
# form a section, and a section's hit that the addresses do not confirm goes on with the next section.
#
#     connected       ld [x+0]    both ports at once
#     not yet         ldh [x+2]   local_port 0: any port of ours (port 0 is reserved, RFC 6335)
#                     ldh [x+0]
#     no ports        ld #0       GRE and such: the protocol was the question already, every frame hits
#
# Later fragments have no ports and are kept: our links set DF, so they are not ours.


def _address(text: str) -> IPv4Address | IPv6Address:
    """The address as it stands in a packet: a dual-stack socket names an IPv4 peer ::ffff:a.b.c.d."""
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=64)
def _self_stage(exclusions: tuple[Exclusion, ...]) -> tuple[Instruction, ...]:
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
    sections: dict[str, dict[int, list[tuple[str, str]]]] = {}
    for one in exclusions:
        for load, value, side in _questions(one):
            sections.setdefault(load, {}).setdefault(value, []).append((side, one.remote_address))
    yield f"{name}: txa\n add #4\n tax\n ld len\n jlt x, next"
    for number, (load, hits) in enumerate(sections.items()):
        yield f"{name}_{number}: ldx M[1]\n {load}"
        following = f"{name}_{number + 1}" if number + 1 < len(sections) else NEXT
        for value, addresses in hits.items():
            yield f"jne #{value}, {name}_{number}_not_{value}\n ldx M[0]"
            for i, (side, address) in enumerate(addresses):
                yield from _reject_address(side, address, f"{name}_{number}_{value}_{i}")
            yield f"ja {following}\n {name}_{number}_not_{value}:"
        yield f"ja {following}"


def _questions(one: Exclusion) -> tuple[tuple[str, int, str], tuple[str, int, str]]:
    """Outbound and inbound: what to load, the value that hits, the side on which the remote address then stands."""
    local, remote = one.local_port, one.remote_port
    if one.protocol not in PORTED:
        return ("ld #0", 0, DESTINATION), ("ld #0", 0, SOURCE)
    if not remote:
        raise ValueError(f"{one} would exclude a whole host")
    if not local:
        return ("ldh [x+2]", remote, DESTINATION), ("ldh [x+0]", remote, SOURCE)
    return ("ld [x+0]", local << 16 | remote, DESTINATION), ("ld [x+0]", remote << 16 | local, SOURCE)


def _reject_address(side: str, address: str, name: str) -> Iterator[str]:
    """Reject the frame whose IP header is at X when that side of it is this address."""
    packed = _address(address).packed
    offset = ADDRESS_OFFSETS[_address(address).version, side]
    for at in range(0, len(packed), 4):
        yield f"ld [x+{offset + at}]\n jne #{int.from_bytes(packed[at : at + 4], 'big')}, {name}_other"
    yield f"ret #0\n {name}_other:"


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
def _slice_stage(slice_: str | int) -> tuple[Instruction, ...]:
    if slice_ == "headers":
        return assemble(HEADERS)
    length = ACCEPT_BYTES if slice_ == "full" else slice_
    if not isinstance(length, int) or not 0 < length <= ACCEPT_BYTES:
        raise ConfigError(f'slice must be "full", "headers" or 1 to {ACCEPT_BYTES} bytes, not {slice_!r}')
    return assemble(f"ret #{length}")
