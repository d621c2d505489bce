"""pcapng as we write it: checksums and tags that the kernel left beside the frame are in it again."""

from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Dot1Q, Ether

from guestagent.capture.block import (
    STATUS_CSUM_NOT_READY,
    STATUS_USER,
    STATUS_VLAN_VALID,
    VIRTIO,
)
from guestagent.collector.sinks.pcapng import PacketEncoder
from tests.fakes import run_of_records
from tests.pcapng_files import raw_packets, with_tag
from tests.unit.test_checksum import NETWORKS, TRANSPORTS, partial


def encode_one(frame: bytes, **fields: Any) -> tuple[bytes, PacketEncoder]:
    """(frame in the file, encoder) of a single record."""
    records, count = run_of_records([frame], **fields)
    encoder = PacketEncoder(has_virtio=True)
    data, _, _ = encoder.encode(memoryview(records), count, 0)
    return raw_packets(data)[0][1], encoder


@pytest.mark.parametrize("version", NETWORKS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("vlan", [None, (0x2064, 0x8100), (5, 0x88A8)])
@pytest.mark.parametrize("size", [0, 1, 100, 1001])
def test_checksum_first_then_the_tag(version: int, transport: str, vlan: tuple[int, int] | None, size: int) -> None:
    """A partial checksum is completed as scapy would, also where the VLAN tag comes back into the frame."""
    frame, start, offset, whole = partial(version, transport, (bytes(range(256)) * 4)[:size])
    virtio = VIRTIO.pack(1, 0, 0, 0, start, offset)

    written, encoder = encode_one(frame, virtio=virtio, status=STATUS_USER | STATUS_CSUM_NOT_READY, vlan=vlan)

    assert with_tag(whole, vlan) == written
    assert (1, 0) == (encoder.checksums_completed, encoder.checksums_left)


def test_a_restored_tag_is_what_scapy_makes_of_it() -> None:
    """scapy finds priority, id and the packet behind the restored tag."""
    frame = bytes(Ether(type=0x0800) / IP(src="10.0.0.1", dst="10.0.0.9") / TCP())
    written, _ = encode_one(frame, vlan=(5 << 13 | 42, 0x8100))
    packet = Ether(written)

    assert (5, 42) == (packet[Dot1Q].prio, packet[Dot1Q].vlan)
    assert "10.0.0.9" == packet[IP].dst


def test_a_tag_without_its_type_is_a_c_tag() -> None:
    """Where the kernel does not know the tag's EtherType, 0x8100 is written."""
    frame = bytes(range(40))
    written, _ = encode_one(frame, status=STATUS_USER | STATUS_VLAN_VALID)

    assert with_tag(frame, (0, 0x8100)) == written


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"original_bytes": 200}, id="cut short"),
        pytest.param({"virtio": VIRTIO.pack(0, 0, 0, 0, 34, 16)}, id="not described"),
        pytest.param({"virtio": VIRTIO.pack(1, 0, 0, 0, 98, 1)}, id="place outside"),
        pytest.param({"virtio": VIRTIO.pack(1, 0, 0, 0, 0xFFFF, 0xFFFF)}, id="place far outside"),
    ],
)
def test_a_checksum_that_can_not_be_completed_is_left_and_counted(fields: dict[str, Any]) -> None:
    """A frame that is cut, or whose header lies, is written as it came, and counted."""
    frame = bytes(range(100))
    written, encoder = encode_one(frame, **{"virtio": VIRTIO.pack(1, 0, 0, 0, 34, 16), **fields, "status": 9})

    assert frame == written
    assert (0, 1) == (encoder.checksums_completed, encoder.checksums_left)


def test_without_virtio_headers_nothing_is_completed() -> None:
    """In the plain layout the ten bytes before a frame mean nothing."""
    frame = bytes(range(100))
    records, count = run_of_records([frame], virtio=VIRTIO.pack(1, 0, 0, 0, 34, 16), status=9)
    encoder = PacketEncoder(has_virtio=False)
    data, _, _ = encoder.encode(memoryview(records), count, 0)

    assert frame == raw_packets(data)[0][1]
    assert (0, 1) == (encoder.checksums_completed, encoder.checksums_left)


@pytest.mark.parametrize("original", [2**32 - 4, 2**32 - 1])
def test_the_greatest_length_with_a_tag(original: int) -> None:
    """A peer's frame of 4 GB on the wire does not overflow when its tag is put back."""
    frame = bytes(60)
    written, _ = encode_one(frame, original_bytes=original, vlan=(1, 0x8100))

    assert with_tag(frame, (1, 0x8100)) == written
