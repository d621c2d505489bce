"""Which interfaces to tap: names, globs, those of the default route; read over netlink.

Not from /sys: a process moved into another network namespace still sees the old one's /sys/class/net.
"""

import errno
import fnmatch
import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from guestagent import netlink
from guestagent.errors import AbsentError, HostError
from guestagent.model import MOST_ADDRESSES, Interface

ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
_ETHERNET_FRAMED = {ARPHRD_ETHER, ARPHRD_LOOPBACK}

_TUNNEL_KINDS = frozenset(
    "vxlan geneve gre gretap ip6gre ip6gretap erspan ip6erspan ipip ip6tnl sit vti vti6 xfrm wireguard tun gtp".split()
)
"""IFLA_INFO_KIND of devices whose packets leave again, wrapped, through another interface."""

_RTM_GETLINK, _RTM_GETROUTE = 18, 26
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 4, 10, 18, 1
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_MULTIPATH = 1, 4, 6, 9
_IFINFOMSG_BYTES = 16
_RTMSG = struct.Struct("=BB10x")
"""struct rtmsg: the family, and how long the prefix of the destination is; the rest is left open."""
_RTNEXTHOP = struct.Struct("=HBBi")
"""struct rtnexthop: its size with its attributes, flags, hops, and the index of its device."""
_IFF_UP_AND_RUNNING = 0x01 | 0x40
_RTN_UNICAST, _RT_TABLE_MAIN = 1, 254
_CHANGES = 0x1 | 0x10 | 0x100
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR (linux/rtnetlink.h)."""
_MOST_CHANGES = 256
"""Heard at once; a host that changes all the time is looked at all the time."""


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel tells of one network device (struct ifinfomsg and its attributes)."""

    index: int
    name: str
    hardware_type: int
    mac: str
    mtu: int
    master: int
    kind: str
    is_up: bool
    """Administratively up, and a carrier or unknown (IFF_UP, IFF_RUNNING)."""

    @property
    def is_tunnel(self) -> bool:
        """Packets sent into it leave, wrapped, through another device."""
        return self.kind in _TUNNEL_KINDS


class Changes:
    """Hears of every change of a device or an address in this network namespace. Raises OSError where it can't."""

    def __init__(self) -> None:
        self._socket = netlink.open_socket(groups=_CHANGES)

    def seen(self) -> bool:
        """Was there one since the last question?"""
        for number in range(_MOST_CHANGES):
            try:
                self._socket.recv(1)
            except BlockingIOError:
                return number > 0
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # which says that there were more than it could hold
                    raise
        return True

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()


def links() -> dict[str, Link]:
    """Every device of this network namespace, by name."""
    found = {}
    for message in netlink.ask(_RTM_GETLINK, bytes(_IFINFOMSG_BYTES), netlink.DUMP):
        hardware_type, index, flags = struct.unpack_from("=HII", message, 2)
        attributes = netlink.attributes(message[_IFINFOMSG_BYTES:])
        name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        info = netlink.attributes(attributes.get(_IFLA_LINKINFO, b""))
        found[name] = Link(
            index=index,
            name=name,
            hardware_type=hardware_type,
            mac=":".join(f"{byte:02x}" for byte in attributes.get(_IFLA_ADDRESS, b"")),
            mtu=netlink.word(attributes, _IFLA_MTU),
            master=netlink.word(attributes, _IFLA_MASTER),
            kind=info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace"),
            is_up=flags & _IFF_UP_AND_RUNNING == _IFF_UP_AND_RUNNING,
        )
    return found


def default_interfaces() -> tuple[str, ...]:
    """The devices of the default route, IPv4 before IPv6, least metric first; several where it has several next hops.

    Raises AbsentError without such a route.
    """
    by_index = {link.index: name for name, link in links().items()}
    for family in (socket.AF_INET, socket.AF_INET6):
        by_metric: dict[int, dict[str, None]] = {}
        for message in netlink.ask(_RTM_GETROUTE, _RTMSG.pack(family, 0), netlink.DUMP):
            _, prefix, _, _, table, _, _, route_type = struct.unpack_from("=8B", message)
            if prefix == 0 and table == _RT_TABLE_MAIN and route_type == _RTN_UNICAST:
                attributes = netlink.attributes(message[_RTMSG.size :])
                names = [by_index[index] for index in _ways_out(attributes) if index in by_index]
                by_metric.setdefault(netlink.word(attributes, _RTA_PRIORITY), {}).update(dict.fromkeys(names))
        if named := sorted((metric, tuple(names)) for metric, names in by_metric.items() if names):
            return named[0][1]
    raise AbsentError("no default route says which interface to tap: name one with -i (`ip link` lists them)")


def _ways_out(attributes: dict[int, bytes]) -> list[int]:
    """Indexes of the devices of a route, in the order of its next hops."""
    if _RTA_OIF in attributes:
        return [netlink.word(attributes, _RTA_OIF)]
    return [index for (*_, index), _ in netlink.records(attributes.get(_RTA_MULTIPATH, b""), _RTNEXTHOP)]


def route_interface(address: str) -> str:
    """The device through which packets to `address` leave, empty where there is no route."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    body = _RTMSG.pack(family, ip.max_prefixlen) + netlink.attribute(_RTA_DST, ip.packed)
    try:
        for message in netlink.ask(_RTM_GETROUTE, body):
            index = netlink.word(netlink.attributes(message[_RTMSG.size :]), _RTA_OIF)
            return next((name for name, link in links().items() if link.index == index), "")
    except OSError:
        pass
    return ""


def select(patterns: Sequence[str]) -> list[Link]:
    """The devices that names and globs mean, each once; nothing named means those of the default route.

    A glob skips devices that have a master (a bridge or bond shows their packets) unless they are named in full.
    Raises AbsentError for a name that is not there, HostError for a device without Ethernet frames.
    """
    known = links()
    chosen: dict[str, Link] = {}
    for pattern in patterns or default_interfaces():
        if pattern in known:
            chosen[pattern] = known[pattern]
            continue
        matches = [name for name in known if fnmatch.fnmatchcase(name, pattern) and not known[name].master]
        if not matches:
            names = ", ".join(sorted(known))
            raise AbsentError(f"no interface {pattern!r} here: choose among {names}")
        is_glob_of_many = [name for name in matches if known[name].hardware_type in _ETHERNET_FRAMED]
        chosen.update((name, known[name]) for name in is_glob_of_many or matches)
    for link in chosen.values():
        if link.hardware_type not in _ETHERNET_FRAMED:
            raise HostError(
                f"interface {link.name} carries no Ethernet frames (ARPHRD type {link.hardware_type}), "
                "which this version can't tap: name the Ethernet interface below it"
            )
    return list(chosen.values())


def local_addresses() -> dict[str, tuple[str, ...]]:
    """The IP addresses of every device, by its name; the first MOST_ADDRESSES."""
    import psutil

    wanted = (socket.AF_INET, socket.AF_INET6)
    return {
        name: tuple(address.address for address in found if address.family in wanted)[:MOST_ADDRESSES]
        for name, found in psutil.net_if_addrs().items()
    }


def describe(link: Link, interface_id: int) -> Interface:
    """The facts of a device as hello and INFO carry them."""
    import psutil

    stats = psutil.net_if_stats().get(link.name)
    return Interface(
        id=interface_id,
        name=link.name,
        mac=link.mac,
        mtu=link.mtu,
        addresses=local_addresses().get(link.name, ()),
        speed_mbit=stats.speed if stats else 0,
    )
