"""From records to frames as the wire carried them: super-packets cut, checksums finished, VLAN tags put back. Pure.

The kernel hands a super-packet over as one record with a virtio_net_hdr (include/uapi/linux/virtio_net.h), leaves
checksums to the card and takes VLAN tags off; offsets of the virtio header are counted without the tag. What GRO merged
at the receiver is *reconstructed*: identifications and PSH flags of the merged segments are nowhere.

What is not understood stays as it is, whole, and is counted: nothing is dropped.
"""

from struct import Struct
from typing import NamedTuple

from guestagent.encap.checksum import SCTP_CHECKSUM_OFFSET, unfinished_checksum
from guestagent.encap.inner import TCP, UDP, Layers, locate
from guestagent.encap.segment_cut import Cut, WireFrame, cut

Virtio = tuple[int, int, int, int, int, int]
"""struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
NO_OFFLOAD: Virtio = (0, 0, 0, 0, 0, 0)

_NEEDS_CSUM = 0x01
_GSO_ECN, _GSO_ACCECN = 0x80, 0x10
"""VIRTIO_NET_HDR_GSO_ECN: CWR in the first segment alone. ..._ACCECN, of virtio 1.4: a bit of a counter, in each."""
_GSO_TUNNEL = 0x60
"""VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 and _IPV6 (Linux 6.17): they name the outer header, which is read anyway."""
_GSO_FLAGS = _GSO_ECN | _GSO_ACCECN | _GSO_TUNNEL


class _Kind(NamedTuple):
    """What a gso_type says of the headers nearest to the payload."""

    transport: int
    versions: tuple[int, ...]


_KINDS = {1: _Kind(TCP, (4,)), 4: _Kind(TCP, (6,)), 5: _Kind(UDP, (4, 6))}
"""VIRTIO_NET_HDR_GSO_TCPV4, _TCPV6, _UDP_L4. Not 3, UFO: these are fragments, and the kernel does not tell of them."""

_DATA_OFFSET_AT, _FLAGS_AT = 12, 13
_ONCE_ONLY = 0x26
"""TCP's SYN, RST and URG: no two segments may say the same of it."""
LEAST_SPLIT_BYTES = 48
"""Linux's least MSS (tcp_min_snd_mss): TCP is not split into less, or a tiny path MTU would multiply packets."""
NO_LIMIT = 1 << 32
"""Of frame bytes; no record has more."""

_MAC_ADDRESSES_BYTES = 12
_TAG = Struct(">HH").pack
_NOTHING = memoryview(b"")


class Segmenter:
    """Turns one record after the other into frames, and counts what it did."""

    __slots__ = ("completed", "not_understood", "segments", "split", "super_packets", "unverifiable")

    def __init__(self) -> None:
        self.super_packets = 0
        """Records that were cut to what was on the wire, or smaller."""
        self.segments = 0
        """Frames that these became, and the pieces of split ones."""
        self.completed = 0
        """Frames whose transport checksum was computed here, segments among them."""
        self.split = 0
        """Records of TCP that were cut smaller than they were on the wire, to fit."""
        self.unverifiable = 0
        """Frames with an unfinished checksum left as it was, for they were captured in part."""
        self.not_understood = 0
        """Records left whole: a super-packet of another kind or with other headers, a checksum in no place."""

    def frames(
        self,
        frame: memoryview,
        virtio: Virtio,
        original_bytes: int,
        tag: tuple[int, int] | None = None,
        *,
        most_frame_bytes: int = NO_LIMIT,
    ) -> list[WireFrame]:
        """The frames of one record, at least one; their payloads are views of `frame`.

        `frame` may be cut short of its `original_bytes`; each result has its own original length. `tag` is (tci, tpid).
        TCP is split further where frames would be longer than `most_frame_bytes`; others may come out longer.
        A record without offload or tag that fits comes back as it is: a hot loop may spare itself the call.
        """
        flags, gso_type, _, _, csum_start, csum_offset = virtio
        original_bytes = max(original_bytes, len(frame))
        tag_bytes = _TAG(tag[1], tag[0]) if tag else b""
        if gso_type & ~_GSO_FLAGS:
            if found := self._segments(frame, virtio, original_bytes, tag_bytes, most_frame_bytes):
                return found
            self.not_understood += 1
        elif len(frame) + len(tag_bytes) > most_frame_bytes and (
            found := self._split(frame, virtio, original_bytes, tag_bytes, most_frame_bytes)
        ):
            return found
        elif flags & _NEEDS_CSUM and (place := self._place(frame, csum_start, csum_offset, original_bytes)):
            check = unfinished_checksum(frame[csum_start:], csum_offset).to_bytes(2, "big")
            head = b"".join((frame[:_MAC_ADDRESSES_BYTES], tag_bytes, frame[_MAC_ADDRESSES_BYTES:place], check))
            return [(head, frame[place + 2 :], original_bytes + len(tag_bytes))]
        if not tag_bytes:
            return [(frame, _NOTHING, original_bytes)]
        head = bytes(frame[:_MAC_ADDRESSES_BYTES])
        if len(head) == _MAC_ADDRESSES_BYTES:  # else the slice ends before the tag
            head += tag_bytes
        return [(head, frame[_MAC_ADDRESSES_BYTES:], original_bytes + len(tag_bytes))]

    def _segments(
        self, frame: memoryview, virtio: Virtio, original_bytes: int, tag_bytes: bytes, most_frame_bytes: int
    ) -> list[WireFrame] | None:
        """The frames of a super-packet; None, and nothing counted, where it is not understood."""
        flags, gso_type, _, gso_bytes, csum_start, _ = virtio
        kind = _KINDS.get(gso_type & ~_GSO_FLAGS)
        if not kind:
            return None
        layers = locate(frame, kind.transport, kind.versions, csum_start if flags & _NEEDS_CSUM else None)
        if not layers:
            return None
        fitting_bytes = _fitting(frame, layers, most_frame_bytes - len(tag_bytes))
        is_split = 0 < fitting_bytes < gso_bytes
        if is_split:
            gso_bytes = fitting_bytes
        keeps_cwr = gso_type & _GSO_ACCECN != 0
        result = cut(frame, original_bytes, layers, gso_bytes, tag=tag_bytes, keeps_cwr=keeps_cwr)
        if not result:
            return None
        self.super_packets += 1
        return self._counted(result, is_split)

    def _split(
        self, frame: memoryview, virtio: Virtio, original_bytes: int, tag_bytes: bytes, most_frame_bytes: int
    ) -> list[WireFrame] | None:
        """The pieces of a TCP segment that does not fit; None, and nothing counted, where it can't be split."""
        flags, _, _, _, csum_start, _ = virtio
        layers = locate(frame, TCP, (4, 6), csum_start if flags & _NEEDS_CSUM else None)
        if not layers or layers.network.stop(frame) != original_bytes:  # a trailer is no payload
            return None
        fitting_bytes = _fitting(frame, layers, most_frame_bytes - len(tag_bytes))
        if not fitting_bytes or frame[layers.network.end + _FLAGS_AT] & _ONCE_ONLY:
            return None
        result = cut(frame, original_bytes, layers, fitting_bytes, tag=tag_bytes)
        return self._counted(result, is_split=True) if result else None

    def _counted(self, result: Cut, is_split: bool) -> list[WireFrame]:
        segments = len(result.frames)
        self.split += is_split
        self.segments += segments
        self.completed += result.whole
        self.unverifiable += segments - result.whole
        return result.frames

    def _place(self, frame: memoryview, csum_start: int, csum_offset: int, original_bytes: int) -> int:
        """The offset of an unfinished checksum, counted as completed; 0, counted otherwise, where it must be left."""
        place = csum_start + csum_offset
        if len(frame) < original_bytes:
            self.unverifiable += 1
        elif csum_offset == SCTP_CHECKSUM_OFFSET or place + 2 > len(frame) or place < _MAC_ADDRESSES_BYTES:
            self.not_understood += 1
        else:
            self.completed += 1
            return place
        return 0


def _fitting(frame: memoryview, layers: Layers, most_frame_bytes: int) -> int:
    """Bytes of TCP payload that fit behind the headers, where splitting helps; else 0."""
    at = layers.network.end
    if len(frame) <= most_frame_bytes or layers.network.protocol != TCP or len(frame) <= at + _FLAGS_AT:
        return 0
    room_bytes = most_frame_bytes - at - (frame[at + _DATA_OFFSET_AT] >> 4) * 4
    return room_bytes if room_bytes >= LEAST_SPLIT_BYTES else 0
