"""Tunnels that are an IP protocol of their own, GRE and ERSPAN in it: a raw socket, the kernel writes the IP header."""

import ctypes
import socket
import struct
from typing import Any

from guestagent.links.sender import Sender
from guestagent.model import Exclusion

GRE = 47
_SO_ATTACH_FILTER = 26
_REJECT_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""struct sock_filter: BPF_RET | BPF_K, 0."""


def open_raw(family: int, address: tuple[Any, ...]) -> Sender:
    """A sender to a host by GRE; all flows share one lane. Raises OSError; it needs CAP_NET_RAW."""
    one = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, GRE)
    program = ctypes.create_string_buffer(_REJECT_ALL)
    # A raw socket hears what the host sends us of the protocol, too: nobody reads it, so none of it shall be kept.
    one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))
    host = str(address[0]).partition("%")[0]
    where = (address[0], 0, *address[2:])
    return Sender([one], where, [Exclusion(GRE, host, 0, 0)], header_bytes=0, segmented=False)
