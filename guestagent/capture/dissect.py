"""Assembly text that walks a frame from header to header: Ethernet, VLAN tags, IPv4, IPv6 and what they carry.

Pieces of text, not functions of bytes: whoever assembles them gives the labels to branch to. Each load stands behind a
`ld len` that proves it (see bpf.py), and X is the offset of the header in question.
"""

from typing import NamedTuple

ACCEPT_BYTES = 0x40000
"""The accept length of "all of it" as tcpdump has it: no ring block of ours holds a longer record."""

NON_IP_BYTES = 64
"""What `headers` keeps of ARP, LLDP, MPLS...; also the whole of a frame that ends inside its IP header (< 22 + 40)."""

VLAN_TAGS = _C_TAG, _S_TAG = 0x8100, 0x88A8
"""802.1Q and 802.1ad."""

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
LEAST_TCP_BYTES = 14
"""Up to the flags: what a TCP header must have in the frame to be asked anything."""
ICMP_ERRORS = (3, 4, 5, 11, 12)
"""RFC 792: unreachable, quench, redirect, time exceeded, parameter problem. Of ICMPv6 (RFC 4443): all below 128."""
IPV6_FRAGMENT, IPV6_AUTHENTICATION = 44, 51
IPV6_OPTIONS = (0, 43, 60, 135, 139, 140)
"""Hop-by-hop, routing, destination, mobility, HIP, shim6: length in units of 8 bytes, less the first (RFC 6564)."""
IPV6_DEPTH = 6
"""How many extension headers are followed: the order of RFC 8200 section 4.1 has six before ESP and the upper layer."""


def network_layer(ipv4: str, ipv6: str, other: str) -> str:
    """Put the offset of the network header in X and branch; `ipv4` and `ipv6` begin with X <= len."""
    return f"""
        ld len
        jlt #14, {other}
        ldh [12]
        ldx #14
        jeq #{_C_TAG}, tag1
        jeq #{_S_TAG}, tag1, network
tag1:   ld len
        jlt #18, {other}
        ldh [16]
        ldx #18
        jeq #{_C_TAG}, tag2
        jeq #{_S_TAG}, tag2, network
tag2:   ld len
        jlt #22, {other}
        ldh [20]
        ldx #22
network: jeq #0x0800, {ipv4}
        jeq #0x86dd, {ipv6}, {other}
"""


def ipv4_layer(later_fragment: str, other: str, fragment: str = "") -> str:
    """From X = the IPv4 header to X = M[1] = its end (maybe beyond the frame), A = the protocol, M[0] = the header.

    `fragment` is text that falls through, where A has fragment field, time to live and protocol.
    """
    return f"""
ipv4:   stx M[0]
        ld len
        sub x
        jlt #20, {other}
        ldb [x+0]                       ; version and IHL in one byte: 0x45 to 0x4f are sound
        jlt #0x45, {other}
        jgt #0x4f, {other}
        and #0x0f
        lsh #2
        add x
        st M[1]
        ld [x+6]
        {fragment}
        jset #0x1fff0000, {later_fragment}
        and #0xff
        ldx M[1]
"""


def ipv6_layer(other: str) -> str:
    """From X = the IPv6 header to X = M[1] = its end, A = the next header, M[0] = the header."""
    return f"""
ipv6:   stx M[0]
        ld len
        sub x
        jlt #40, {other}
        ldb [x+0]
        and #0xf0
        jne #0x60, {other}
        txa
        add #40
        st M[1]
        ldb [x+6]
        ldx M[1]
"""


# The walk. Its result is the end of the last header that is understood: the accept length of `headers`. X goes from
# header to header and may come to stand beyond the frame; the kernel keeps the smaller of accept length and frame, so
# that needs no care, but asking for n bytes at X does: `ld len; sub #n; jlt x` (it can't wrap: the frame holds an IP
# header, which is longer than any n).
#
# IPv6 extension headers have no loop in classic BPF; one step is written IPV6_DEPTH times, and sparingly: the kernel
# makes a call of about 13 ns and 64 bytes of a load relative to X, one instruction of 8 bytes of arithmetic. A step
# begins with A = the kind of the header at X. A kind that is no extension header is an upper layer, and so is the
# seventh extension header: the upper layer knows no such protocol and cuts at X, the last byte that was understood.
#
# Walking is half of a long program, so nobody walks twice: who has more to ask of a frame than where its headers end
# says with `Endings` how the text goes on.


class Endings(NamedTuple):
    """What to do at the end of a walk: text that begins with A = the accept length of `headers`, and jumps away.

    M[0] holds the IP header, which is in the frame. M[1] is the walk's own, and so is M[2], which IPv6 leaves with the
    protocol and IPv4 as it was.
    """

    tcp: str
    """X = the TCP header, of which the first LEAST_TCP_BYTES are in the frame."""
    udp: str
    """X = the UDP header, which may lie beyond the frame."""
    portless: str
    """Any other protocol, a later fragment, an ICMP message that is no error."""
    exempt: str
    """Not IP, an ICMP error, or a frame too short to tell."""
    fragment: str = ""
    """Falls through; the fragment field is in the upper half of A (IPv4) or the lower (IPv6, where there is one)."""


def walk(to: Endings) -> str:
    """The text from the first byte of the frame to one of these endings; labels `next`, `other`, `keep` can be used."""
    return "".join((
        network_layer("ipv4", "ipv6", "other"),
        ipv4_layer("later_fragment", "other", to.fragment),
        f"jeq #{TCP}, tcp\n jeq #{UDP}, udp\n jeq #{ICMP}, icmpv4, end\n",
        ipv6_layer("other"),
        *(_ipv6_step(depth, to.fragment) for depth in range(IPV6_DEPTH)),
        _upper_layer(to),
    ))  # fmt: skip


def _upper_layer(to: Endings) -> str:
    errors = "\n".join(f"jeq #{kind}, quote" for kind in ICMP_ERRORS)
    return f"""
        st M[2]
upper6: jeq #{TCP}, tcp
        jeq #{UDP}, udp
        jeq #{ICMPV6}, icmpv6, end
tcp:    ld len
        sub #{LEAST_TCP_BYTES}
        jlt x, keep
        ldb [x+12]                      ; data offset: options are kept, the data of a TCP Fast Open SYN is not
        and #0xf0
        rsh #2
        jge #20, fits
        ld #20                          ; a nonsensical offset shall not cost the ports
fits:   add x
        {to.tcp}
icmpv4: ld len
        jle x, keep
        ldb [x+0]
        {errors}
        ja eight
quote:  ld len
        sub #9
        jlt x, keep
        ldb [x+8]                       ; the quoted header's IHL
        and #0x0f
        lsh #2
        add #16
        add x
        {to.exempt}
icmpv6: ld len
        jle x, keep
        ldb [x+0]
        jge #128, eight                 ; below are errors
        txa
        add #{8 + 40 + 8}
        {to.exempt}
udp:    txa
        add #8
        {to.udp}
eight:  txa                             ; ICMP and the IPv6 fragment header
        add #8
        {to.portless}
later_fragment: ldx M[1]
end:    txa
        {to.portless}
other:  ld #{NON_IP_BYTES}
        {to.exempt}
keep:   ld #{ACCEPT_BYTES}
        {to.exempt}
"""


def _ipv6_step(depth: int, fragment: str) -> str:
    kinds = (IPV6_FRAGMENT, IPV6_AUTHENTICATION, *IPV6_OPTIONS)
    tests = "\n".join(f"jeq #{kind}, extension{depth}" for kind in kinds)
    return f"""
        st M[2]
        {tests}
        ja upper6
extension{depth}: ld len
        sub #8                          ; no extension header is shorter
        jlt x, keep
        ld [x+0]                        ; next header, length, and of a fragment header offset and flags
        st M[1]
        ld M[2]
        jeq #{IPV6_FRAGMENT}, fragment{depth}
        jeq #{IPV6_AUTHENTICATION}, authentication{depth}
        ld M[1]
        rsh #{16 - 3}
        and #{0xFF << 3}
        ja step{depth}
authentication{depth}: ld M[1]          ; RFC 4302: in 4 bytes, less two
        rsh #{16 - 2}
        and #{0xFF << 2}
        ja step{depth}
fragment{depth}: ld M[1]
        {fragment}
        jset #0xfff8, eight
        ld #0
step{depth}: add #8
        add x
        tax
        ld M[1]
        rsh #24
"""


HEADERS = walk(Endings("ret a", "ret a", "ret a", "ret a"))
"""The whole stage of `headers`: it accepts, always."""
