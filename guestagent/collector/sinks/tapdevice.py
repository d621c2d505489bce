"""A TAP device (Documentation/networking/tuntap.rst): frames written to it appear on an interface, for any tool.

The host must not answer what it sees there: ARP and IPv6 are off, and IPv4 takes no packet whose way back is not
through this device, which is none as it has no address. The device is gone when its descriptor is closed.
"""

import errno
import fcntl
import os
import socket
import struct
from collections import Counter
from pathlib import Path
from struct import Struct

from guestagent.encap.segment_cut import WireFrame
from guestagent.errors import ConfigError, HostError, PrivilegeError

MOST_MTU, FIRST_MTU = 65_521, 9216
"""The first is the kernel's (tun_net_init); the other has room for the jumbo frames of clouds, announced or not."""
MOST_NAME_BYTES = 15
"""IFNAMSIZ less its NUL."""

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
"""linux/if_tun.h."""
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_IFF_UP, _IFF_NOARP = 0x01, 0x80
_REQUEST = Struct("16sH22x")
_MTU_REQUEST = Struct("16si20x")
_SETTINGS = {"ipv6/conf/{}/disable_ipv6": "1", "ipv4/conf/{}/rp_filter": "1"}
"""Below /proc/sys/net: IPv6 says nothing there, IPv4 takes nothing that it would not send there."""
_NO_OFFLOAD = bytes(10)
"""struct virtio_net_hdr: a whole frame, its checksum done."""


class TapDevice:
    """One device. Made, it is up. Raises HostError, or ConfigError where the name is taken."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mtu = 0
        self.frames = self.bytes = 0
        """That the kernel took."""
        self.lost: Counter[str] = Counter()
        """Frames that it did not, by the name of the error."""
        self._descriptor = _attach(name)
        try:
            for path, value in _SETTINGS.items():
                _set(path.format(name), value)
            self.fit(FIRST_MTU)
            _raise_up(name)
        except OSError as error:
            os.close(self._descriptor)
            raise HostError(f"the TAP device {name} can't be set up: {error.strerror}; run as root") from error

    def fit(self, mtu: int) -> None:
        """No smaller than this: tools size their buffers by it. Raises OSError."""
        mtu = min(mtu, MOST_MTU)
        if mtu > self.mtu:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, _SIOCSIFMTU, _MTU_REQUEST.pack(self.name.encode(), mtu))
            self.mtu = mtu

    def write(self, frame: WireFrame) -> None:
        """One frame; what the kernel refuses is counted."""
        head, body, _ = frame
        try:
            os.writev(self._descriptor, (_NO_OFFLOAD, head, body))
        except OSError as error:
            self.lost[_REASONS.get(error.errno or 0, os.strerror(error.errno or 0).lower().replace(" ", "_"))] += 1
            return
        self.frames += 1
        self.bytes += len(head) + len(body)

    def close(self) -> None:
        """The device goes, too."""
        os.close(self._descriptor)


_REASONS = {errno.EIO: "device_is_down", errno.EBADFD: "device_was_removed", errno.EINVAL: "too_short"}


def _attach(name: str) -> int:
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"--tap {name}: /dev/net/tun can't be opened: {error.strerror}; load the module tun, or run as root"
        ) from error
    request = _REQUEST.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EPERM:
            raise PrivilegeError(f"--tap {name} needs CAP_NET_ADMIN; run as root or grant it") from error
        raise ConfigError(f"--tap {name}: {error.strerror}; is there a device of that name? choose another") from error
    return descriptor


def _set(path: str, value: str) -> None:
    place = Path("/proc/sys/net") / path
    if place.exists():  # a kernel without IPv6 has nothing to turn off
        place.write_text(value)


def _raise_up(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        (flags,) = struct.unpack_from("16xH", fcntl.ioctl(control, _SIOCGIFFLAGS, _REQUEST.pack(name.encode(), 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _REQUEST.pack(name.encode(), flags | _IFF_UP | _IFF_NOARP))
