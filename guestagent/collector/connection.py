"""One connection of the collector, and the listeners it comes from."""

import logging
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from guestagent.collector.leases import Leases
from guestagent.collector.run import Run
from guestagent.errors import ConfigError
from guestagent.rlimits import LEAST_FILES, raise_file_limit
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Deframer, Kind, ProtocolError
from guestagent.tapstream.hello import AgentHello
from guestagent.tapstream.lease import encode_lease

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

log = logging.getLogger("guestagent.collector")

MOST_CONNECTIONS = 2048
"""Each holds at most 1.3 MB of buffer; strangers hold 4 KB, some 60 KB with TLS, and go after GREETING_SECONDS."""
FILES_PER_CONNECTION = 2
"""Its socket and its run's file; beyond the process's limit, accept would fail and be called again at once."""
_LISTEN_BACKLOG = 512


class Connection:
    """One peer: a stranger until its hello, then the bearer of a run."""

    def __init__(self, sock: socket.socket, peer: str, now: float) -> None:
        self.socket, self.peer = sock, peer
        self._preface = frames.PREFACE
        self.deframer = Deframer()
        self.run: Run | None = None
        self.unsent = b""
        self.born_at = self.heard_at = self.acked_at = now
        self.waits_for_sink = False
        self.has_more = False
        """Its turn ended before its frames did."""
        self.is_finished = False

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.socket.fileno()

    def preface(self) -> bytes:
        """What goes out before our first frame; empty from then on."""
        preface, self._preface = self._preface, b""
        return preface

    def pong(self, now: float) -> bytes:
        """The answer to a PING; a stranger may ask, too, for it wants to know whether we are well before it comes."""
        if self.run is None:
            self.born_at = now
        return self.preface() + frames.encode(Kind.PONG)

    def vouched(self, hello: AgentHello, allowed: Sequence[str]) -> AgentHello:
        """The hello in the name that the certificate vouches for, where there is one. Raises ProtocolError."""
        vouch = getattr(self.socket, "agent_id", None)
        if vouch is None:
            return hello
        agent_id = vouch(hello.agent_id)
        if allowed and not any(fnmatchcase(agent_id, pattern) for pattern in allowed):
            raise ProtocolError(f"agent {agent_id} is not on the list of tls.allow")
        return replace(hello, agent_id=agent_id)

    def say_goodbye(self, reason: str) -> None:
        """Tell the peer why, if it can be told at once; never behind a frame that is half out."""
        if not self.unsent:
            with suppress(OSError):
                self.socket.send(self.preface() + frames.encode_json(Kind.BYE, {"reason": reason}))


class Lessor:
    """Tells connected agents whose packets they may leave out."""

    def __init__(self) -> None:
        self._leases = Leases()

    def due(self, connections: Iterable[Connection], now: float) -> list[tuple[Connection, bytes]]:
        """The LEASE frames to send now."""
        takers = {one.run.hello.run_id: one for one in connections if one.run and one.run.member.domain}
        members = {key: one.run.member for key, one in takers.items() if one.run}
        leases = self._leases.due(members, now)
        return [(takers[key], frames.encode_json(Kind.LEASE, encode_lease(lease))) for key, lease in leases.items()]


def open_listener(host: str, port: int) -> socket.socket:
    """A listener on one address, or on all of both families where no host is named. Raises ConfigError."""
    try:
        listener = _listener(host, port)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"can't listen on {host or '*'}:{port}: {reason}; choose another --listen") from error
    listener.setblocking(False)
    return listener


def _listener(host: str, port: int) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=_LISTEN_BACKLOG, dualstack_ipv6=True)
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return socket.create_server(address[:2], family=family, backlog=_LISTEN_BACKLOG)


def accept(listener: socket.socket, now: float, tls: "Credentials | None" = None) -> Connection | None:
    """The next stranger; None where it is gone again or the kernel has no room, which is logged."""
    try:
        sock, address = listener.accept()
    except OSError as error:
        log.warning("a connection could not be accepted: %s", error.strerror)
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
