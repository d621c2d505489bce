"""A packet socket (packet(7)): opened, filtered, bound to a device and paused; what both engines do with theirs."""

import ctypes
import socket
import struct
from collections.abc import Sequence

from guestagent.capture.bpf import Instruction, encode
from guestagent.errors import ConfigError, HostError, PrivilegeError

SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_VNET_HDR = 1, 15
_PACKET_MR_PROMISC = 1
_SO_ATTACH_FILTER = 26
_ETH_P_ALL = 0x0003
_ETH_P_NONE = 0xFFFF
"""Reserved (RFC 1701), so that no packet has it. Binding to 0 would be ignored: the old protocol stays (measured)."""


class Tapping:
    """An engine's socket and the device that it looks at."""

    def __init__(self, sock: socket.socket, index: int, *, promiscuous: bool) -> None:
        self._socket, self.index = sock, index
        self._promiscuous, self._is_paused = promiscuous, False

    def attach(self, program: Sequence[Instruction]) -> None:
        """Swap the filter; 16 to 42 µs, safe while packets arrive."""
        attach_filter(self._socket, program)

    def bind(self, index: int) -> None:
        """Begin, or begin again after the device was made anew, to see the interface's packets. Raises OSError."""
        bind(self._socket, index, paused=self._is_paused)
        self.index = index
        if self._promiscuous:
            be_promiscuous(self._socket, index)

    def is_bound(self) -> bool:
        """False once the device is gone, also where one with its index is there again."""
        return bool(self._socket.getsockname()[0])  # the name of the index that the kernel holds: -1 has none

    def pause(self, paused: bool) -> None:
        """See no packets, or see them again; takes about 10 ms, the kernel waits for its readers."""
        if paused != self._is_paused:
            self._is_paused = paused
            try:
                bind(self._socket, self.index, paused=paused)
            except OSError:
                pass  # the device is gone; the next one is bound as it should be


def open_packet_socket(name: str) -> socket.socket:
    """A packet socket that receives nothing yet. Raises HostError without CAP_NET_RAW."""
    try:
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    except PermissionError:
        raise PrivilegeError(
            f"capturing on {name} needs the capability CAP_NET_RAW: run as root or grant it to the service"
        ) from None
    except OSError as error:
        raise HostError(f"this kernel offers no packet sockets: {error.strerror}") from error


def describe_super_packets(sock: socket.socket) -> None:
    """Ask for a virtio header in front of each frame (PACKET_VNET_HDR); before the ring is made."""
    sock.setsockopt(SOL_PACKET, _PACKET_VNET_HDR, 1)


def bind(sock: socket.socket, index: int, *, paused: bool = False) -> None:
    """Begin to see a device's packets; or none of them, and spare the kernel their clones. Raises OSError."""
    # Python binds by name alone, and names change.
    sock.bind((socket.if_indextoname(index), _ETH_P_NONE if paused else _ETH_P_ALL))


def be_promiscuous(sock: socket.socket, index: int) -> None:
    """Until the socket is closed or the device goes; a device made anew is asked again."""
    membership = struct.pack("@iHH8x", index, _PACKET_MR_PROMISC, 0)
    sock.setsockopt(SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)


def prove(name: str, program: Sequence[Instruction]) -> None:
    """Can a filter be swapped for one as long? Raises ConfigError where the kernel refuses it, HostError."""
    with open_packet_socket(name) as sock:
        attach_filter(sock, program)
        attach_filter(sock, program)


def attach_filter(sock: socket.socket, program: Sequence[Instruction]) -> None:
    """SO_ATTACH_FILTER. Raises ConfigError where the kernel's memory for filters is too small for the program."""
    code = encode(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer))
        )
    except OSError as error:
        raise ConfigError(
            f"the capture filter can take {len(program)} instructions, which the kernel refuses ({error.strerror}; it "
            "takes 4,096 at most): make --filter shorter, or raise net.core.optmem_max"
        ) from error
