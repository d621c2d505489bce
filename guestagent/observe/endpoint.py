"""The metrics endpoint: as much HTTP/1.1 as a scraper needs, inside the one loop; no thread, no blocking call.

Whoever connects has a bounded request, gets one answer and is closed. There are no timers: when one client too many
comes, the one that has been connected longest gives way, so slow clients hold a few descriptors and never a scraper.
"""

import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guestagent.errors import RunError
from guestagent.loop import READABLE, WRITABLE, Loop

log = logging.getLogger("guestagent.metrics")

MOST_CLIENTS = 16
MOST_REQUEST_BYTES = 8192
"""Prometheus sends about 300."""
FRESH_SECONDS = 0.5
"""One rendering (some ms) serves all who ask within this time: a local user who asks in a loop costs little."""
PATHS = ("/metrics", "/")
_SOCKET_MODE = 0o660
_END_OF_HEAD = b"\r\n\r\n"


class MetricsEndpoint:
    """Serves `render()` on a loopback port (host, port) or a UNIX socket (its path). Raises RunError."""

    def __init__(self, loop: Loop, address: tuple[str, int] | str, render: Callable[[], tuple[str, bytes]]) -> None:
        self._loop, self._address, self._render = loop, address, render
        self._clients: dict[int, _Client] = {}
        self._body: tuple[str, bytes] = ("", b"")
        self._stale_at = float("-inf")
        self._listener = _listen(address)
        self.address = self._listener.getsockname()
        loop.watch(self._listener, READABLE, self._accept)
        log.info("metrics at %s", address if isinstance(address, str) else f"http://{_host(address[0])}:{self.port}/")

    @property
    def port(self) -> int:
        """Of a TCP endpoint."""
        return int(self.address[1])

    def _accept(self, _events: int) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return  # it left again, or this process is out of descriptors
        peer.setblocking(False)
        if len(self._clients) >= MOST_CLIENTS:
            self._close(next(iter(self._clients.values())))
        client = _Client(peer)
        self._clients[peer.fileno()] = client
        self._loop.watch(peer, READABLE, lambda events: self._ready(client, events))

    def _ready(self, client: "_Client", events: int) -> None:
        try:
            if not client.answer and not self._read(client):
                return
            client.answer = client.answer[client.socket.send(client.answer) :]
            if client.answer:
                self._loop.change(client.socket, WRITABLE)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(client)

    def _read(self, client: "_Client") -> bool:
        """Take what is there; whether there is something to answer. Raises OSError where the client is gone."""
        data = client.socket.recv(MOST_REQUEST_BYTES)
        if not data:
            raise ConnectionResetError
        client.request += data
        head, end, _ = client.request.partition(_END_OF_HEAD)
        if not end and len(client.request) < MOST_REQUEST_BYTES:
            return False
        client.answer = self._answer(head) if end else _response("431 Request Header Fields Too Large")
        return True

    def _answer(self, head: bytes) -> bytes:
        words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response("400 Bad Request")
        method, path = words[0], words[1].partition("?")[0]
        if path not in PATHS:
            return _response("404 Not Found", "metrics are at /metrics\n")
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", allow=True)
        if (now := self._loop.now()) >= self._stale_at:
            self._body, self._stale_at = self._render(), now + FRESH_SECONDS
        kind, body = self._body
        whole = _response("200 OK", body, kind)
        return whole if method == "GET" else whole[: len(whole) - len(body)]

    def _close(self, client: "_Client") -> None:
        self._clients.pop(client.socket.fileno(), None)
        self._loop.forget(client.socket)
        client.socket.close()

    def close(self) -> None:
        """Close all; a UNIX socket is removed."""
        for client in list(self._clients.values()):
            self._close(client)
        if self._listener.fileno() >= 0:
            self._loop.forget(self._listener)
            self._listener.close()
            if isinstance(self._address, str):
                Path(self._address).unlink(missing_ok=True)


class _Client:
    """One connection: what it asked so far, what it is still to get."""

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer
        self.request = self.answer = b""


def serve(loop: Loop, address: tuple[str, int] | str, snapshot: Callable[[], dict[str, Any]]) -> MetricsEndpoint:
    """The endpoint over a snapshot; loads prometheus_client. Raises HostError, RunError."""
    from guestagent.observe.metrics import Exposition

    return MetricsEndpoint(loop, address, Exposition(snapshot).render)


def _listen(address: tuple[str, int] | str) -> socket.socket:
    is_unix = isinstance(address, str)
    family = socket.AF_UNIX if is_unix else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if is_unix:
            _remove_stale(str(address))
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if is_unix:
            Path(str(address)).chmod(_SOCKET_MODE)
        listener.listen(MOST_CLIENTS)
    except OSError as error:
        listener.close()
        where = address if is_unix else f"{_host(str(address[0]))}:{address[1]}"
        raise RunError(
            f"metrics can't be served at {where}: {error.strerror or error}; choose another address"
        ) from error
    return listener


def _remove_stale(path: str) -> None:
    """A socket file that nobody listens on is left from a kill; any other file stays and is the operator's to move."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker, contextlib.suppress(OSError):
        try:
            asker.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _response(
    status: str, body: str | bytes = b"", kind: str = "text/plain; charset=utf-8", allow: bool = False
) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return (head + ("Allow: GET, HEAD\r\n" if allow else "") + "\r\n").encode() + body
