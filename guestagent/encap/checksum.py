"""Finish the checksums that the kernel left to the network card (RFC 1071). Pure."""


def complete(frame: bytearray, csum_start: int, csum_offset: int) -> bool:
    """Fill in a partial checksum as struct virtio_net_hdr describes it; False where the place is outside the frame.

    The field holds the pseudo header's sum; the sum over everything from `csum_start` on, complemented, replaces it.
    A big-endian number modulo 65535 is the ones' complement sum of its 16-bit words, which lets Python's long
    division do the loop. As in the kernel's skb_checksum_help, zero is sent as 0xffff.
    """
    place = csum_start + csum_offset
    if place + 2 > len(frame):
        return False
    covered = memoryview(frame)[csum_start:]
    total = int.from_bytes(covered, "big")
    if len(covered) & 1:
        total <<= 8
    frame[place : place + 2] = (0xFFFF - total % 0xFFFF).to_bytes(2, "big")
    return True
