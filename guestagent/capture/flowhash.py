"""The flow hash: 32 bits that both directions of a flow share, in Python and as text for the capture filter; pure.

The filter decides by it which flows it keeps; the agent computes it for the frames that it peeks at, to name a flow to
the filter. So the two must agree to the bit, on every frame: the tests hold them to it.
"""

# The hash. It is made from an addition, a multiplication and a shift, which is what classic BPF has:
#
#     end(address, port)    rounds over the words of the address, then one over the port
#     hash                  two rounds over end(source) + end(destination) + protocol
#
# - A sum does not care which end is the source. Neither does plain xor, but that leaves 16 bits to tell the flows of
#   one network apart; here addresses and ports are mixed before the ends meet.
# - A round, (a * odd) ^ (a * odd >> n), can be undone: no two client ports to one port of one server share a hash.
# - Multipliers and shifts are those of a known good pair (lowbias32 of C. Wellons' hash-prospector).
# - Two numbers that come from the seed go in, one before the first round of each end and one before the last two. Who
#   does not know them can't pick the flows that a sample leaves out; and the samples of two seeds are independent.
#
# A hash has each IP frame whose headers can be followed, except ICMP errors: these belong to the flow that they quote.
# Only TCP and UDP have ports. Of a fragmented packet the first fragment alone has them, and all shall have one hash: so
# fragments do without, and their protocol counts as 44, that of the IPv6 fragment header, whatever they carry.

from functools import lru_cache
from struct import Struct

from guestagent.capture.dissect import (
    ICMP,
    ICMP_ERRORS,
    ICMPV6,
    IPV6_AUTHENTICATION,
    IPV6_DEPTH,
    IPV6_FRAGMENT,
    IPV6_OPTIONS,
    LEAST_TCP_BYTES,
    TCP,
    UDP,
    VLAN_TAGS,
)

ROUNDS = ((0x7FEB352D, 15), (0x846CA68B, 16))
"""Multiplier and shift of the first and of the second round."""

_MASK = 0xFFFFFFFF
_IPV4 = Struct(">6xHxB2xII")
"""Fragment field, protocol, source and destination of an IPv4 header."""
_IPV6 = Struct(">6xBx4I4I")
_PORTS = Struct(">HH")
_IPV6_EXTENSIONS = (IPV6_FRAGMENT, IPV6_AUTHENTICATION, *IPV6_OPTIONS)
_FLOWS_REMEMBERED = 4096

_Words = tuple[int, ...]
_Flow = tuple[_Words, _Words, int, int, int]
"""Words of the source, words of the destination, source port, destination port, protocol."""


def flow_hash(frame: bytes | memoryview, seed: int) -> int | None:
    """The hash of the frame's flow, or None where it belongs to none. All that `headers` keeps of a frame is enough."""
    flow = _flow(frame)
    return None if flow is None else _hash(flow, seed)


@lru_cache(maxsize=64)
def keys(seed: int) -> tuple[int, int]:
    """What is added before the first round of each end, and before the last two."""
    first = _mix(_mix(seed + 0x9E3779B9))
    return first, _mix(_mix(first + 0x9E3779B9))


def _round(value: int, number: int) -> int:
    multiplier, shift = ROUNDS[number]
    value = value * multiplier & _MASK
    return value ^ value >> shift


def _mix(value: int) -> int:
    return _round(_round(value, 0), 1)


@lru_cache(maxsize=_FLOWS_REMEMBERED)
def _hash(flow: _Flow, seed: int) -> int:
    source, destination, source_port, destination_port, protocol = flow
    before, after = keys(seed)
    return _mix(_end(source, source_port, before) + _end(destination, destination_port, before) + protocol + after)


def _end(words: _Words, port: int, key: int) -> int:
    for word in words:
        key = _round(key + word, 0)
    return _round(key + port, 1)


# The same in the filter. X is needed to reach into the frame and for half of the arithmetic, so each word of an address
# is loaded, mixed with what M[] has of the words before it, and stored again.


def _round_text(number: int) -> str:
    multiplier, shift = ROUNDS[number]
    return f"mul #{multiplier}\n tax\n rsh #{shift}\n xor x\n"


def address_text(offset: int, words: int, slot: int, seed: int) -> str:
    """Mix the address at this offset of the IP header in M[0] into M[slot]."""
    first = f"ldx M[0]\n ld [x+{offset}]\n add #{keys(seed)[0]}\n {_round_text(0)} st M[{slot}]\n"
    further = (
        f"ldx M[0]\n ld [x+{offset + 4 * i}]\n ldx M[{slot}]\n add x\n {_round_text(0)} st M[{slot}]\n"
        for i in range(1, words)
    )
    return first + "".join(further)


def combine_text(source: int, destination: int, ports: int, protocol: int, seed: int) -> str:
    """A = the hash of what these slots of M[] hold; `ports` is the word that begins a TCP or UDP header."""
    return f"""
        ld M[{ports}]
        rsh #16
        ldx M[{source}]
        add x
        {_round_text(1)}
        st M[{source}]
        ld M[{ports}]
        and #0xffff
        ldx M[{destination}]
        add x
        {_round_text(1)}
        ldx M[{source}]
        add x
        ldx M[{protocol}]
        add x
        add #{keys(seed)[1]}
        {_round_text(0)}
        {_round_text(1)}
"""


# The walk of dissect.py, once more: where it ends in `exempt` there is no flow.


def _flow(frame: bytes | memoryview) -> _Flow | None:
    at, length = 14, len(frame)
    while length >= at:
        kind = frame[at - 2] << 8 | frame[at - 1]
        if kind == 0x0800:
            return _ipv4_flow(frame, at)
        if kind == 0x86DD:
            return _ipv6_flow(frame, at)
        if kind not in VLAN_TAGS or at == 22:
            break
        at += 4
    return None


def _ipv4_flow(frame: bytes | memoryview, at: int) -> _Flow | None:
    if len(frame) < at + 20 or not 0x45 <= frame[at] <= 0x4F:
        return None
    fragment, protocol, source, destination = _IPV4.unpack_from(frame, at)
    ends = (source,), (destination,)
    if fragment & 0x1FFF:
        return *ends, 0, 0, IPV6_FRAGMENT
    at += (frame[at] & 0x0F) * 4
    if protocol == ICMP and (len(frame) <= at or frame[at] in ICMP_ERRORS):
        return None
    return _upper_flow(frame, at, ends, protocol, bool(fragment & 0x3FFF))


def _ipv6_flow(frame: bytes | memoryview, at: int) -> _Flow | None:
    if len(frame) < at + 40 or frame[at] >> 4 != 6:
        return None
    protocol, *words = _IPV6.unpack_from(frame, at)
    ends = tuple(words[:4]), tuple(words[4:])
    at, fragment = at + 40, 0
    for _ in range(IPV6_DEPTH):
        if protocol not in _IPV6_EXTENSIONS:
            break
        if len(frame) < at + 8:
            return None
        following, units = frame[at], frame[at + 1]
        size = (units + 2) * 4 if protocol == IPV6_AUTHENTICATION else (units + 1) * 8
        if protocol == IPV6_FRAGMENT:
            fragment, size = frame[at + 2] << 8 | frame[at + 3], 8
            if fragment & 0xFFF8:
                return *ends, 0, 0, IPV6_FRAGMENT
        protocol, at = following, at + size
    if protocol == ICMPV6 and (len(frame) <= at or frame[at] < 128):
        return None
    return _upper_flow(frame, at, ends, protocol, bool(fragment & 0xFFF9))


def _upper_flow(
    frame: bytes | memoryview, at: int, ends: tuple[_Words, _Words], protocol: int, is_fragment: bool
) -> _Flow | None:
    if protocol in (TCP, UDP):
        if len(frame) < at + (LEAST_TCP_BYTES if protocol == TCP else 4):
            return None
        if not is_fragment:
            return *ends, *_PORTS.unpack_from(frame, at), protocol
    return *ends, 0, 0, IPV6_FRAGMENT if is_fragment else protocol
