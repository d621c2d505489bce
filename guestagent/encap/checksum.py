"""Sums of RFC 1071: of one frame, to finish what the kernel left to the card, or of every segment of a payload. Pure.

A number modulo 65535 is the ones' complement sum of its 16-bit words, so Python's long integers do the loop. They are
read as little-endian, where an odd last byte needs no care, and multiplied by 256, which swaps the two bytes of a sum
(RFC 1071, section 2 (B)).

Bytes, medians of 300 on one core of an AMD EPYC, Python 3.11, for the 45 segments of 1,448 bytes of a super-packet,
ns per segment: sum(struct.unpack(">724H")) 15,300, the same of 64-bit words 8,700, int.from_bytes big-endian and
% 65535 3,500, little-endian 2,960, folded twice in between 2,300, and in two halves (`residues`) 1,900. 1,100 of it is
int.from_bytes alone: Python has nothing faster that touches every byte. zlib.adler32 takes 430, but modulo 65521.
"""

from functools import lru_cache
from struct import Struct

MODULUS = 0xFFFF
_SWAP = 8
_CHUNK_BYTES = 4096
"""Even, or the words would shift. Summing numbers of this size before one division halves the time of 64 KB."""
_FRAME_BYTES, _FOLD_FROM_BYTES = 1536, 800
"""Up to a usual frame the number is folded in four before it is divided: 2.4 instead of 3.2 µs at 1,480 bytes."""
_WIDE, _NARROW = _FRAME_BYTES * 4, _FRAME_BYTES * 2
_WIDE_MASK, _NARROW_MASK = (1 << _WIDE) - 1, (1 << _NARROW) - 1
_SIZES = 64
"""Of segments, remembered: a host meets one for each path MTU and set of TCP options."""


def residue(covered: bytes | memoryview) -> int:
    """A number that is, modulo 65535, the sum of the big-endian 16-bit words; an odd last byte is an upper half."""
    return int.from_bytes(covered, "little") % MODULUS << _SWAP


TCP_CHECKSUM_OFFSET, SCTP_CHECKSUM_OFFSET = 16, 8
"""RFC 9293, section 3.1. SCTP's is a CRC32c (RFC 9260, appendix A), which the kernel leaves to the card in the same
way; nothing else stands at that offset."""


def unfinished_checksum(covered: bytes | memoryview, csum_offset: int) -> int:
    """What belongs at an offset of the transport header, whose checksum field holds the sum of the pseudo header.

    A sum of zero is sent as ones, as skb_checksum_help does, for zero means none in UDP (RFC 768). Not so in TCP: there
    the two are equal on the wire (RFC 1624), cards send zero, and tshark calls ones bad.
    """
    checksum = internet_checksum(covered)
    return 0 if csum_offset == TCP_CHECKSUM_OFFSET and checksum == MODULUS else checksum


def internet_checksum(covered: bytes | memoryview) -> int:
    """The complemented ones' complement sum of 16-bit words; 0 becomes 0xffff."""
    size = len(covered)
    if size <= _FRAME_BYTES:
        total = int.from_bytes(covered, "little")
        if size > _FOLD_FROM_BYTES:
            total = (total >> _WIDE) + (total & _WIDE_MASK)
            total = (total >> _NARROW) + (total & _NARROW_MASK)
    else:
        total = 0
        for start in range(0, size, _CHUNK_BYTES):
            total += int.from_bytes(covered[start : start + _CHUNK_BYTES], "little")
    return MODULUS - (total % MODULUS << _SWAP) % MODULUS


def residues(payload: memoryview, segment_bytes: int) -> list[int]:
    """The `residue` of each run of `segment_bytes` (1 at least) of a payload, the last of what remains, if anything."""
    halves, wide, wide_mask, narrow, narrow_mask = _folding(segment_bytes)
    whole = len(payload) // segment_bytes * segment_bytes
    from_bytes, modulus, swap = int.from_bytes, MODULUS, _SWAP
    sums = []
    for first, second in halves.iter_unpack(payload[:whole]):
        total = from_bytes(first, "little") + from_bytes(second, "little")
        total = (total >> wide) + (total & wide_mask)
        sums.append(((total >> narrow) + (total & narrow_mask)) % modulus << swap)
    if whole < len(payload):
        sums.append(residue(payload[whole:]))
    return sums


@lru_cache(_SIZES)
def _folding(segment_bytes: int) -> tuple[Struct, int, int, int, int]:
    """How to halve a segment three times: its halves, then twice the bits to fold at and their mask; whole words all.

    A fold adds the upper bits to the lower: 2 to the power of any multiple of 16 is 1 modulo 65535. Three of them
    leave so little that a division of it costs less than another fold.
    """
    words = (segment_bytes + 1) // 2
    first = words // 2 * 2
    wide, narrow = (max(1, words // parts) * 16 for parts in (4, 8))
    return Struct(f"{first}s{segment_bytes - first}s"), wide, (1 << wide) - 1, narrow, (1 << narrow) - 1
