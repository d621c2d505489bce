"""Assembly text that walks a frame from header to header: Ethernet, VLAN tags, IPv4, IPv6 and, for `headers`, beyond.

Pieces of text, not functions of bytes: whoever assembles them gives the labels to branch to. Each load stands behind a
`ld len` that proves it (see bpf.py), and X is the offset of the header in question.
"""

ACCEPT_BYTES = 0x40000
"""The accept length of "all of it" as tcpdump has it: no ring block of ours holds a longer record."""

NON_IP_BYTES = 64
"""What `headers` keeps of ARP, LLDP, MPLS...; also the whole of a frame that ends inside its IP header (< 22 + 40)."""

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
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
        jeq #0x8100, tag1               ; 802.1Q, C-tag
        jeq #0x88a8, tag1, network      ; 802.1ad, S-tag
tag1:   ld len
        jlt #18, {other}
        ldh [16]
        ldx #18
        jeq #0x8100, tag2
        jeq #0x88a8, tag2, network
tag2:   ld len
        jlt #22, {other}
        ldh [20]
        ldx #22
network: jeq #0x0800, {ipv4}
        jeq #0x86dd, {ipv6}, {other}
"""


def ipv4_layer(later_fragment: str, other: str) -> str:
    """From X = the IPv4 header to X = M[1] = its end (maybe beyond the frame), A = the protocol, M[0] = the header."""
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
        ldh [x+6]
        jset #0x1fff, {later_fragment}
        ldb [x+9]
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


# Headers. The accept length is the end of the last header that is understood. X walks from header to header and may
# come to stand beyond the frame; the kernel keeps the smaller of accept length and frame, so that needs no care, but
# asking for a byte behind X does: `ld len; jlt x; sub x; jlt #n` (the difference is unsigned and must not wrap).
#
# IPv6 extension headers have no loop in classic BPF; one step is written IPV6_DEPTH times. A step begins with A = the
# kind of the header at X. A kind that is no extension header is an upper layer, and so is the seventh extension header:
# the upper layer knows no such protocol and cuts at X, the last byte that was understood.

_TRANSPORT = f"""
upper6: jeq #{TCP}, tcp
        jeq #{UDP}, eight
        jeq #{ICMPV6}, icmpv6, end
tcp:    ld len
        jlt x, keep
        sub x
        jlt #13, keep
        ldb [x+12]                      ; data offset: options are kept, the data of a TCP Fast Open SYN is not
        and #0xf0
        rsh #2
        jge #20, fits
        ld #20                          ; a nonsensical offset shall not cost the ports
fits:   add x
        ret a
icmpv4: ld len
        jle x, keep
        ldb [x+0]
        jeq #3, quote                   ; RFC 792: unreachable, quench, redirect, time exceeded, parameter problem
        jeq #4, quote
        jeq #5, quote
        jeq #11, quote
        jeq #12, quote, eight
quote:  ld len
        sub x
        jlt #9, keep
        ldb [x+8]                       ; the quoted header's IHL
        and #0x0f
        lsh #2
        add #16
        add x
        ret a
icmpv6: ld len
        jle x, keep
        ldb [x+0]
        jge #128, eight                 ; RFC 4443: below are errors
        txa
        add #{8 + 40 + 8}
        ret a
eight:  txa                             ; UDP, ICMP and the IPv6 fragment header
        add #8
        ret a
later_fragment: ldx M[1]
end:    txa
        ret a
other:  ret #{NON_IP_BYTES}
keep:   ret #{ACCEPT_BYTES}
"""


def _ipv6_step(depth: int) -> str:
    kinds = (IPV6_FRAGMENT, IPV6_AUTHENTICATION, *IPV6_OPTIONS)
    tests = "\n".join(f"jeq #{kind}, extension{depth}" for kind in kinds)
    return f"""
        st M[0]
        {tests}
        ja upper6
extension{depth}: ld len
        jlt x, keep
        sub x
        jlt #8, keep                    ; no extension header is shorter
        ldb [x+0]
        st M[1]
        ld M[0]
        jeq #{IPV6_FRAGMENT}, fragment{depth}
        jeq #{IPV6_AUTHENTICATION}, authentication{depth}
        ldb [x+1]
        add #1
        lsh #3
        ja step{depth}
authentication{depth}: ldb [x+1]        ; RFC 4302: in 4 bytes, less two
        add #2
        lsh #2
        ja step{depth}
fragment{depth}: ldh [x+2]
        jset #0xfff8, eight
        ld #8
step{depth}: add x
        tax
        ld M[1]
"""


HEADERS = "".join((
    network_layer("ipv4", "ipv6", "other"),
    ipv4_layer("later_fragment", "other"),
    f"jeq #{TCP}, tcp\n jeq #{UDP}, eight\n jeq #{ICMP}, icmpv4, end\n",
    ipv6_layer("other"),
    *map(_ipv6_step, range(IPV6_DEPTH)),
    _TRANSPORT,
))  # fmt: skip
"""The whole stage of `headers`: it accepts, always."""
