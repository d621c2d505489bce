"""Tunnels inside tunnels: envelopes are opened three deep, what was copied stays as it is, and damage upsets nobody."""

import pytest

from guestagent.encap import erspan, geneve, gre
from guestagent.encap.tunnel import MOST_LAYERS, TUNNELS, unwrap
from tests.frames import GRE, IPV4, IPV6, UDP, ethernet, ipv4, ipv6, udp
from tests.tunnel_headers import FRAME, PACKET


def aws_gateway(inner: bytes) -> bytes:
    """What a gateway load balancer makes of an IP packet."""
    options = "01080102 0011223344556677 01080202 8899aabbccddeeff 01080301 01234567"
    return bytes.fromhex("08000800 00000000" + options) + inner


def test_a_mirror_behind_a_gateway_load_balancer_is_opened() -> None:
    """VXLAN in UDP in IP in GENEVE: both headers are told, and the offset of the frame counts from the outermost."""
    for inner in (ipv4, ipv6):
        outer_type = IPV4 if inner is ipv4 else IPV6
        datagram = geneve.header(9, outer_type) + inner(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME))
        layers = unwrap("geneve", memoryview(datagram))

        assert [("geneve", 9), ("vxlan", 7)] == [(one.scheme, one.key) for one in layers]
        assert FRAME == datagram[layers[-1].inner_at :]
    datagram = aws_gateway(ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME), options=bytes(8)))
    assert FRAME == datagram[unwrap("geneve", memoryview(datagram))[-1].inner_at :]


def test_gre_and_erspan_in_an_envelope_are_told_apart() -> None:
    """Both are protocol 47; what the header says decides."""
    for scheme, header in (("gre", gre.header(7)), ("erspan", erspan.header(7, 1))):
        datagram = aws_gateway(ipv4(GRE, header + FRAME))
        layers = unwrap("geneve", memoryview(datagram))

        assert [("geneve", 0), (scheme, 7)] == [(one.scheme, one.key) for one in layers]
        assert FRAME == datagram[layers[-1].inner_at :]


def test_envelopes_are_opened_three_deep() -> None:
    """The third header is the last that is read, whatever follows."""
    packet = ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME))
    for _ in range(MOST_LAYERS):
        packet = ipv4(UDP, udp(geneve.header(1, IPV4) + packet, destination=6081))
    layers = unwrap("geneve", memoryview(packet)[28:])

    assert ["geneve"] * MOST_LAYERS == [one.scheme for one in layers]


@pytest.mark.parametrize(
    "scheme, datagram",
    [
        ("vxlan", TUNNELS["vxlan"].header(1) + ethernet(IPV4, ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME)))),
        ("gre", bytes.fromhex("00000800") + ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME))),
        (
            "geneve",
            bytes.fromhex("02000800 00000000 01320101 00000001") + ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME)),
        ),
        ("geneve", geneve.header(1, IPV4) + PACKET),
        ("geneve", geneve.header(1, IPV4) + ipv4(UDP, udp(bytes(8) + FRAME))),  # port 4789, no I flag
        ("geneve", geneve.header(1, IPV4) + ipv4(UDP, udp(b"")[:3])),
        ("geneve", geneve.header(1, IPV4) + ipv4(UDP, udp(TUNNELS["vxlan"].header(7) + FRAME), fragment=100)),
        ("geneve", geneve.header(1, IPV6) + PACKET),
        ("geneve", geneve.header(1, 0x0806) + PACKET),
    ],
)
def test_what_was_copied_stays_as_it_is(scheme: str, datagram: bytes) -> None:
    """A tunnel that a tapped host itself speaks, and an envelope of no tunnel, are not opened."""
    assert 1 == len(unwrap(scheme, memoryview(datagram)))


def test_deep_nesting_is_no_stack_overflow() -> None:
    """A datagram of nothing but envelopes is read in bounded time."""
    packet = b""
    for _ in range(400):
        packet = ipv4(UDP, udp(geneve.header(1, IPV4) + packet, destination=6081))

    assert MOST_LAYERS == len(unwrap("geneve", memoryview(packet)[28:]))
