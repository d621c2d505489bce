"""One socket that takes the datagrams of a tunnel: UDP with GRO, or a raw socket for GRE.

With UDP_GRO the kernel hands over runs of datagrams of one size and flow as one (udp(7)); they are told apart here.
What found no room is counted by the socket itself (SK_MEMINFO_DROPS), also what fell out after the last datagram.
"""

import errno
import socket
import time
from contextlib import suppress
from struct import Struct
from typing import Any

from guestagent.encap import gre
from guestagent.encap.tunnel import GRE, TUNNELS
from guestagent.endpoint import Endpoint
from guestagent.errors import ConfigError, PrivilegeError

MOST_DATAGRAM_BYTES = 65_535
RECEIVE_BYTES = 32 * 1024 * 1024
"""A tenth of a second at 2 Gbit/s; without CAP_NET_ADMIN the kernel gives as much as net.core.rmem_max."""

_SO_RCVBUFFORCE, _SO_MEMINFO, _SO_TIMESTAMPNS = 33, 55, 35
"""asm-generic/socket.h; the last is also the type of the control message."""
_MEMINFO = Struct("=9I")
_DROPS = 8
"""SK_MEMINFO_DROPS (linux/sock_diag.h)."""
_SOL_UDP, _UDP_GRO = 17, 104
"""linux/udp.h."""
_TIMESPEC, _INT = Struct("@qq"), Struct("@i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size) + socket.CMSG_SPACE(_INT.size)
_NANOSECONDS = 1_000_000_000
_ERSPAN = (gre.ERSPAN_TYPE_II.to_bytes(2, "big"), gre.ERSPAN_TYPE_III.to_bytes(2, "big"))

Message = tuple[int, int, str, list[memoryview]]
"""Bytes received, time in ns, who sent it, and its datagrams, each from the tunnel header on."""


class Intake:
    """A bound socket and its counts."""

    def __init__(self, scheme: str, one: socket.socket) -> None:
        self.scheme = scheme
        host, port = one.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        self.name = f"{scheme}://{host}" if one.type == socket.SOCK_RAW else f"{scheme}://{host}:{port}"
        self._socket = one
        self._has_ip_header = one.type == socket.SOCK_RAW and one.family == socket.AF_INET
        self.leaves_others = False
        """GRE and ERSPAN come as one IP protocol and to both listeners: each leaves the other its own."""
        self.datagrams = self.bytes = self.messages = self.left_to_other = 0
        self._last: dict[str, Any] = {}
        """What it counted by its end."""

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def receive(self, space: memoryview) -> Message | None:
        """The next message, read into `space`; None where there is none now."""
        try:
            size, extras, _, address = self._socket.recvmsg_into([space], _ANCILLARY_BYTES)
        except OSError:  # nothing there, or an error of the past that this call has taken away
            return None
        time_ns = step = 0
        for _, kind, data in extras:
            if kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack(data)
                time_ns = seconds * _NANOSECONDS + nanoseconds
            elif kind == _UDP_GRO:
                (step,) = _INT.unpack(data)
        self.messages += 1
        self.bytes += size
        if 0 < step < size:
            datagrams = [space[at : min(at + step, size)] for at in range(0, size, step)]
        else:
            start = 4 * (space[0] & 0x0F) if self._has_ip_header and size else 0
            datagrams = [space[start:size]]
            if self.leaves_others and (space[start + 2 : start + 4] in _ERSPAN) != (self.scheme == "erspan"):
                self.left_to_other += 1
                datagrams = []
        self.datagrams += len(datagrams)
        return size, time_ns or time.time_ns(), address[0], datagrams

    @property
    def dropped_by_kernel(self) -> int:
        """Datagrams for which the socket had no room, or whose checksum was wrong."""
        return int(_MEMINFO.unpack(self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[_DROPS])

    def describe(self) -> dict[str, Any]:
        """For status and report."""
        if self._last:
            return self._last
        return {
            "listen": self.name,
            "datagrams": self.datagrams,
            "bytes": self.bytes,
            "messages": self.messages,
            "left_to_other": self.left_to_other,
            "dropped_by_kernel": self.dropped_by_kernel,
            "receive_buffer_bytes": self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
        }

    def close(self) -> None:
        """Close the socket; its counts stay."""
        self._last = self.describe()
        self._socket.close()


def open_intakes(endpoint: Endpoint) -> list[Intake]:
    """The sockets of one `--listen`: one, or where no host is named as many as both families need.

    Raises ConfigError where the address is not ours or taken, PrivilegeError where GRE needs CAP_NET_RAW.
    """
    is_raw = TUNNELS[endpoint.scheme].transport == GRE
    try:
        found = [_open(is_raw, *one) for one in _places(endpoint, is_raw)]
    except OSError as error:
        where = f"{endpoint.scheme}://{endpoint.host or '*'}{f':{endpoint.port}' if endpoint.port else ''}"
        if error.errno == errno.EPERM:
            raise PrivilegeError(f"can't listen on {where}: GRE needs CAP_NET_RAW; run as root or grant it") from error
        reason = error.strerror or error
        raise ConfigError(f"can't listen on {where}: {reason}; choose another --listen") from error
    return [Intake(endpoint.scheme, one) for one in found]


def _places(endpoint: Endpoint, is_raw: bool) -> list[tuple[int, tuple[Any, ...]]]:
    """(family, address) of each socket."""
    if endpoint.host:
        family, _, _, _, address = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_DGRAM)[0]
        return [(family, address)]
    both = socket.has_dualstack_ipv6()
    if not both:
        return [(socket.AF_INET, ("", endpoint.port))]
    here = (socket.AF_INET6, ("::", endpoint.port))
    return [(socket.AF_INET, ("", 0)), here] if is_raw else [here]


def _open(is_raw: bool, family: int, address: tuple[Any, ...]) -> socket.socket:
    kind = (socket.SOCK_RAW, GRE) if is_raw else (socket.SOCK_DGRAM, 0)
    one = socket.socket(family, kind[0] | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, kind[1])
    try:
        if family == socket.AF_INET6 and not is_raw:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        try:
            one.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BYTES)
        except PermissionError:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        one.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        if not is_raw:
            with suppress(OSError):  # before Linux 5.0; all comes one by one then
                one.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one
