"""Questions to the kernel over rtnetlink(7): a message, its answers, their attributes (linux/netlink.h).

Who asks names the kind of question and packs its fixed part; here is what all kinds share.
"""

import socket
from collections.abc import Iterator
from struct import Struct

DUMP = 0x300
"""NLM_F_DUMP: all that there is, not one."""
_NLM_F_REQUEST = 0x01
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = Struct("=IHHII")
"""struct nlmsghdr: its size with all that follows, kind, flags, sequence, port."""
_ATTRIBUTE = Struct("=HH")
"""struct nlattr: its size with what it holds, kind."""
_NLA_TYPE_MASK = 0x3FFF
_ERROR = Struct("=i")
_WORD = Struct("=I")
_ANSWER_BYTES = 1 << 16
"""The kernel fits a part of a dump into 32 KB (NLMSG_GOODSIZE)."""


def open_socket(*, groups: int = 0, blocking: bool = False) -> socket.socket:
    """To NETLINK_ROUTE of this network namespace, hearing of the changes that `groups` name (RTMGRP_*). OSError."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.setblocking(blocking)
    if groups:
        opened.bind((0, groups))
    return opened


def question(kind: int, body: bytes, flags: int = 0) -> bytes:
    """The message to send: RTM_GET* and its fixed part with what else it says."""
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 1, 0) + body


def records(data: bytes, header: Struct) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Header and body of each; a header begins with its size and the body's. What is cut short is left out."""
    at = 0
    while at + header.size <= len(data):
        fields = header.unpack_from(data, at)
        if not header.size <= fields[0] <= len(data) - at:
            return
        yield fields, data[at + header.size : at + fields[0]]
        at += fields[0] + 3 & ~3  # NLMSG_ALIGN, NLA_ALIGN, RTNH_ALIGN: to a multiple of four


def messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each message of one datagram."""
    return ((fields[1], body) for fields, body in records(answer, _HEADER))


def attributes(data: bytes) -> dict[int, bytes]:
    """What each kind of attribute holds."""
    return {fields[1] & _NLA_TYPE_MASK: body for fields, body in records(data, _ATTRIBUTE)}


def attribute(kind: int, data: bytes) -> bytes:
    """The last one of a message: nothing follows for which it had to be padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data


def word(found: dict[int, bytes], kind: int) -> int:
    """An attribute of 32 bits; 0 where there is none."""
    data = found.get(kind, b"")
    return int(_WORD.unpack_from(data)[0]) if len(data) >= _WORD.size else 0


def ask(kind: int, body: bytes, flags: int = 0) -> Iterator[bytes]:
    """The body of each answer, over a socket for this question alone. Raises OSError where the kernel refuses."""
    with open_socket(blocking=True) as opened:
        opened.sendall(question(kind, body, flags))
        while True:
            for answered, found in messages(opened.recv(_ANSWER_BYTES)):
                if answered == _NLMSG_DONE:
                    return
                if answered == _NLMSG_ERROR:
                    raise OSError(-_ERROR.unpack_from(found)[0], "netlink request refused")
                yield found
            if not flags & DUMP:
                return
