"""Checksums that the kernel left to the card: completed as scapy computes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, in4_chksum
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from guestagent.encap.checksum import internet_checksum, unfinished_checksum

NETWORKS = {4: IP(src="10.0.0.1", dst="10.0.0.9"), 6: IPv6(src="fd00::1", dst="fd00::9")}
TRANSPORTS = {"tcp": (TCP(sport=40000, dport=443, seq=7), 16), "udp": (UDP(sport=40000, dport=53), 6)}


def partial(version: int, transport: str, payload: bytes) -> tuple[bytes, int, int, bytes]:
    """(frame as the kernel hands it over, csum_start, csum_offset, the same frame with scapy's checksum)."""
    header, csum_offset = TRANSPORTS[transport]
    packet: Packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / NETWORKS[version] / header / Raw(payload)
    whole = bytes(packet)
    csum_start = 14 + (20 if version == 4 else 40)
    length = len(whole) - csum_start
    protocol = 6 if transport == "tcp" else 17
    # The one's complement of a checksum over no data is the pseudo header's sum.
    inner = Ether(whole)[1]
    nothing = in4_chksum(protocol, inner, bytes(length)) if version == 4 else in6_chksum(protocol, inner, bytes(length))
    place = csum_start + csum_offset
    frame = bytearray(whole)
    frame[place : place + 2] = (~nothing & 0xFFFF).to_bytes(2, "big")
    return bytes(frame), csum_start, csum_offset, whole


@pytest.mark.parametrize("version", NETWORKS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@given(payload=st.binary(max_size=70))
def test_completed_as_scapy_does(version: int, transport: str, payload: bytes) -> None:
    """TCP and UDP over IPv4 and IPv6, of odd and even length, get the checksum that scapy computes."""
    frame, start, offset, whole = partial(version, transport, payload)
    place = start + offset

    assert int.from_bytes(whole[place : place + 2], "big") == internet_checksum(frame[start:])


@pytest.mark.parametrize("version", NETWORKS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [0, 1, 2, 1459, 1460, 65_000, 65_001])
def test_sizes_up_to_a_super_packet(version: int, transport: str, size: int) -> None:
    """Payloads of every parity, up to the 64 KB of a super-packet, agree with scapy."""
    frame, start, offset, whole = partial(version, transport, bytes(at & 0xFF for at in range(size)))
    place = start + offset

    assert int.from_bytes(whole[place : place + 2], "big") == internet_checksum(frame[start:])


def ones_complement_sum(data: bytes) -> int:
    """RFC 1071: the sum of the 16-bit words, the last one padded with a zero byte, carries added back."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(min_size=1, max_size=120) | st.binary(min_size=4090, max_size=8200).filter(any))
def test_it_is_the_complement_of_the_sum(data: bytes) -> None:
    """What is told is RFC 1071's complement of the sum, and zero is told as 0xffff."""
    assert (~ones_complement_sum(data) & 0xFFFF or 0xFFFF) == internet_checksum(data)
    assert internet_checksum(data) == internet_checksum(memoryview(data))


@pytest.mark.parametrize("csum_offset, told", [(16, 0x0000), (6, 0xFFFF), (2, 0xFFFF)], ids=["TCP", "UDP", "ICMPv6"])
def test_a_sum_of_zero_is_told_as_its_protocol_has_it(csum_offset: int, told: int) -> None:
    """Ones in UDP, where zero means that there is none; zero in TCP, as cards send and tshark expects it."""
    assert told == unfinished_checksum(b"\xff\xfe\x00\x01", csum_offset)
    assert 0xFFFD == unfinished_checksum(b"\x00\x02", csum_offset)
