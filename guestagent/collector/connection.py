"""One connection of the collector, and the listeners it comes from."""

import resource
import socket

from guestagent.collector.run import Run
from guestagent.tapstream.frames import Deframer

_LISTEN_BACKLOG = 512
_ENOUGH_FILES = 65_536


class Connection:
    """One peer: a stranger until its hello, then the bearer of a run."""

    def __init__(self, sock: socket.socket, peer: str, now: float) -> None:
        self.socket, self.peer = sock, peer
        self.deframer = Deframer()
        self.run: Run | None = None
        self.unsent = b""
        self.born_at = self.heard_at = self.acked_at = now
        self.waits_for_sink = False
        self.is_finished = False

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.socket.fileno()


def open_listener(host: str, port: int) -> socket.socket:
    """A listener on one address, or on all of both families where no host is named."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=_LISTEN_BACKLOG, dualstack_ipv6=True)
    family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    return socket.create_server(address[:2], family=family, backlog=_LISTEN_BACKLOG)


def raise_file_limit() -> int:
    """Take all the descriptors that this process may have; how many that is."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = _ENOUGH_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return most
