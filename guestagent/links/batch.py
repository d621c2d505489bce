"""Many messages with one system call: sendmmsg(2), and UDP_SEGMENT, by which one message is up to 64 datagrams.

The headers that the kernel reads are made once. For each call only the addresses and lengths of the pieces change, and
these are written column by column, so that no message costs a line of Python.

    mmsghdr    64 bytes    name, name length, vectors, their count, control, its length, flags; what was sent
    iovec      16 bytes    address, length
    cmsghdr    24 bytes    length, level, type, the segment's size in 2 bytes, padding
"""

import ctypes
import os
import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate

MOST_MESSAGES = 64
"""Of one call. Where the system call no longer shows in the cost of a message."""

UDP_SEGMENT = 103
"""linux/udp.h."""
_SOL_UDP = 17
_MMSGHDR = struct.Struct("@PI4xPNPNi4xI4x")
_IOVEC = struct.Struct("@PN")
_CMSGHDR = struct.Struct("@NiiH6x")
_CMSG_BYTES = 18
"""CMSG_LEN(2): the header and two bytes."""
_SIZE_AT, _SIZE_STEP = 8, _CMSGHDR.size // 2
"""Where the first size stands among the controls, and how far from it the next, in units of 2 bytes."""


class Batch:
    """The headers of up to MOST_MESSAGES messages over one connected socket at a time."""

    def __init__(self, *, segmented: bool) -> None:
        """With `segmented` each message says the size of its datagrams; only UDP sockets take that."""
        self._call = ctypes.CDLL(None, use_errno=True).sendmmsg
        vectors, controls, headers = (bytearray(MOST_MESSAGES * shape.size) for shape in (_IOVEC, _CMSGHDR, _MMSGHDR))
        vectors_at, controls_at, self._headers_at = (_address(memory) for memory in (vectors, controls, headers))
        for i in range(MOST_MESSAGES):
            _CMSGHDR.pack_into(controls, i * _CMSGHDR.size, _CMSG_BYTES, _SOL_UDP, UDP_SEGMENT, 0)
            control = (controls_at + i * _CMSGHDR.size, _CMSGHDR.size) if segmented else (0, 0)
            _MMSGHDR.pack_into(headers, i * _MMSGHDR.size, 0, 0, vectors_at + i * _IOVEC.size, 1, *control, 0, 0)
        self._memory = vectors, controls, headers
        self._vectors = memoryview(vectors).cast("L")
        self._sizes = memoryview(controls).cast("H")

    def send(self, descriptor: int, whole: bytes, lengths: Sequence[int], sizes: Sequence[int]) -> tuple[int, int]:
        """Send consecutive pieces of `whole` as messages of these lengths; of these sizes the datagrams in each.

        (messages that the kernel took, errno of the first that it did not take). At most MOST_MESSAGES.
        """
        count = len(lengths)
        address = ctypes.cast(ctypes.c_char_p(whole), ctypes.c_void_p).value or 0
        self._vectors[0 : 2 * count : 2] = array("L", accumulate(lengths[:-1], initial=address))
        self._vectors[1 : 2 * count : 2] = array("L", lengths)
        self._sizes[_SIZE_AT : _SIZE_STEP * count : _SIZE_STEP] = array("H", sizes)
        taken = self._call(descriptor, ctypes.c_void_p(self._headers_at), count, 0)
        if taken < 0:
            return 0, ctypes.get_errno()
        return taken, 0


def _address(memory: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(memory)).from_buffer(memory))


def reason(number: int) -> str:
    """An errno as status and reports name it."""
    return os.strerror(number).lower().replace(" ", "_")
