"""Tunnels over UDP: 64 sockets to one sensor, so that the source port tells the flow.

Load balancers on the way and the sensor's own queues choose by the outer ports; a port for each of 64 classes of flows
spreads the load, and one that both directions share keeps a conversation together.
"""

import socket
from contextlib import suppress
from typing import Any

from guestagent.encap.flow import SOURCE_PORTS
from guestagent.links.sender import Sender
from guestagent.model import Exclusion

FIRST_PORT, BLOCKS = 61_440, 32
"""Dynamic ports (RFC 7348, section 5, asks for these) beyond those that Linux gives to others, 32768 to 60999."""
UDP_BYTES = 8
_IPPROTO_UDP = 17


def open_datagrams(family: int, address: tuple[Any, ...]) -> Sender:
    """A sender to (host, port, ...) by UDP; a lane for each of SOURCE_PORTS. Raises OSError."""
    first_port = _free_block(family)
    sockets = [_socket(family, first_port + lane) for lane in range(SOURCE_PORTS)]
    ports = [one.getsockname()[1] for one in sockets]
    host, port = str(address[0]).partition("%")[0], int(address[1])
    block = Exclusion(_IPPROTO_UDP, host, port, first_port, first_port + SOURCE_PORTS - 1)
    others = [taken for taken in ports if not block.local_port <= taken <= block.last_local_port]
    exclusions = [block, *(Exclusion(_IPPROTO_UDP, host, port, one, one) for one in others)]
    return Sender(sockets, address, exclusions, header_bytes=UDP_BYTES, segmented=True)


def _free_block(family: int) -> int:
    """The first of SOURCE_PORTS ports that another sender, of this process or not, does not have."""
    for first_port in range(FIRST_PORT, FIRST_PORT + BLOCKS * SOURCE_PORTS, SOURCE_PORTS):
        probe = _socket(family, first_port)
        with probe:
            if probe.getsockname()[1] == first_port:
                return first_port
    return FIRST_PORT


def _socket(family: int, port: int) -> socket.socket:
    """Bound to this port, or where it is taken to one that the kernel chooses."""
    one = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    anywhere = ""
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        anywhere = "::"
    with suppress(OSError):
        one.bind((anywhere, port))
        return one
    one.bind((anywhere, 0))
    return one
