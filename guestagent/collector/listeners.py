"""The collector's doors: listening sockets, one or one for each worker, and who comes through them."""

import logging
import socket
from typing import TYPE_CHECKING

from guestagent.collector.connection import Connection
from guestagent.errors import ConfigError
from guestagent.loop import OUT_OF_FILES
from guestagent.rlimits import LEAST_FILES, raise_file_limit

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

log = logging.getLogger("guestagent.collector")

MOST_CONNECTIONS = 2048
"""Each holds at most 1.3 MB of buffer; strangers hold 4 KB, some 60 KB with TLS, and go after GREETING_SECONDS."""
FILES_PER_CONNECTION = 2
"""Its socket and its run's file; beyond the process's limit, accept would fail and be called again at once."""
_LISTEN_BACKLOG = 512


def open_listeners(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """Listeners on one address, or on all of both families where no host is named. Raises ConfigError.

    Of several the kernel picks one for each connection (SO_REUSEPORT, socket(7)).
    """
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            listener = _listener(host, made[0].getsockname()[1] if made else port, shared=count > 1)
            made.append(listener)
            listener.setblocking(False)
    except OSError as error:
        for listener in made:
            listener.close()
        reason = error.strerror or error
        raise ConfigError(f"can't listen on {host or '*'}:{port}: {reason}; choose another --listen") from error
    return made


def _listener(host: str, port: int, *, shared: bool) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=_LISTEN_BACKLOG, dualstack_ipv6=True, reuse_port=shared
        )
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family, backlog=_LISTEN_BACKLOG, reuse_port=shared)


def accept(listener: socket.socket, now: float, tls: "Credentials | None" = None) -> Connection | None:
    """The next stranger; None where it is gone again, which is logged. Raises OSError where no descriptor is left."""
    try:
        sock, address = listener.accept()
    except OSError as error:
        log.warning("a connection could not be accepted: %s", error.strerror)
        if error.errno in OUT_OF_FILES:
            raise
        return None
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        try:
            sock = tls.wrap(sock)
        except OSError:  # it is gone again
            sock.close()
            return None
    return Connection(sock, f"{address[0]}:{address[1]}", now)


def most_connections() -> int:
    """Take all the descriptors that this process may have; how many connections that allows."""
    return min(MOST_CONNECTIONS, (raise_file_limit() - LEAST_FILES) // FILES_PER_CONNECTION)
