"""TLS 1.3 with certificates on both sides, as a socket that behaves like a plain one. Imported only where it is on.

The handshake happens within the first send or receive, so whoever uses the socket has no state more. Where OpenSSL
wants to read or write first, BlockingIOError says so, as the kernel does.

A write that OpenSSL took only in part must be repeated with the same bytes before any other (SSL_write(3)). The socket
keeps it and offers it again itself, whatever its caller offers then, which begins with the same bytes.
"""

import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

from guestagent.errors import ConfigError
from guestagent.links.ramp import MOST_WRITE_BYTES
from guestagent.tapstream.frames import ProtocolError, printable
from guestagent.tapstream.hello import is_name
from guestagent.trust import refuse_readable, refuse_writable

log = logging.getLogger("guestagent.tls")

_HANDSHAKE_RECORD = 22
"""ContentType handshake, the first byte of whoever speaks TLS (RFC 8446, section 5.1)."""
_SENTENCES = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it demands a certificate and got none",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust the authority of our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our certificate has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it refuses our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it refuses our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "our certificate is not made for this end of a connection",
    "WRONG_VERSION_NUMBER": "it speaks no TLS",
    "UNSUPPORTED_PROTOCOL": "it speaks no TLS 1.3",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it speaks no TLS 1.3",
}
"""What operators meet, by OpenSSL's reason; for the rest the reason itself is said."""


class TlsError(ProtocolError, OSError):
    """No TLS with this peer; the text says why."""


def _sentence(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {printable(error.verify_message)}"
    if isinstance(error, ssl.SSLEOFError):
        return "it ended without goodbye"
    return _SENTENCES.get(error.reason or "", f"the TLS fails ({error.reason or 'no reason given'})")


class SecureSocket(ssl.SSLSocket):
    """See above. Made by `Credentials.wrap` alone."""

    _pending: memoryview | None = None
    """What OpenSSL took in part."""
    _heard = False
    _is_plain = False
    """The other end speaks no TLS, and is told so in plain."""

    def send(self, data: Any, flags: int = 0) -> int:
        """How much was taken; at most MOST_WRITE_BYTES. Raises BlockingIOError, TlsError, OSError."""
        if self._is_plain:
            return socket.socket.send(self, data)
        piece = self._pending if self._pending is not None else memoryview(data)[:MOST_WRITE_BYTES]
        self._pending = piece
        count = self._guarded(lambda: ssl.SSLSocket.send(self, piece))
        self._pending = None
        return count

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Fill `buffer` as far as there is anything to fill it with, so that less than full means drained."""
        if self.server_side and not self._heard:
            self._look()
        view, count = memoryview(buffer), 0
        try:
            while count < len(view):
                got = self._guarded(lambda rest=view[count:]: ssl.SSLSocket.recv_into(self, rest))  # type: ignore[misc]
                if not got:
                    break
                count += got
        except OSError:
            if not count:
                raise
        return count

    def _look(self) -> None:
        first = socket.socket.recv(self, 1, socket.MSG_PEEK)
        self._heard = True
        if first and first[0] != _HANDSHAKE_RECORD:
            self._is_plain = True
            raise TlsError("it speaks no TLS, and this port takes tls:// alone")

    def _guarded(self, call: Callable[[], int]) -> int:
        try:
            return call()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except ssl.SSLError as error:
            raise TlsError(_sentence(error)) from error

    def agent_id(self, claimed: str) -> str:
        """The name in the peer's certificate: of several the claimed one, else the first. Raises TlsError."""
        found = self.getpeercert() or {}
        pairs = cast("tuple[tuple[str, str], ...]", found.get("subjectAltName", ()))
        names = [value for kind, value in pairs if kind == "DNS" and is_name(value)]
        if not names:
            raise TlsError("its certificate names no agent: it needs a DNS name as subjectAltName")
        return claimed if claimed in names else names[0]


class Credentials:
    """Certificate, key and authorities of one end, read again when a file changes."""

    def __init__(self, ca: str, cert: str, key: str, *, server_side: bool) -> None:
        self._files = (ca, cert, key)
        self._server_side = server_side
        self._stamp = self._look()
        self._context = self._load()

    def wrap(self, plain: socket.socket, host: str = "") -> SecureSocket:
        """TLS over a connected socket, which is taken over; `host` is the name that the server must prove."""
        name = None if self._server_side else host.partition("%")[0]
        wrapped = self._current().wrap_socket(
            plain, server_side=self._server_side, do_handshake_on_connect=False, server_hostname=name
        )
        return cast(SecureSocket, wrapped)

    def renew(self, ca: str, cert: str, key: str) -> None:
        """Other files from the next connection on. Raises ConfigError; then the old ones stay in force."""
        before = self._files, self._stamp, self._context
        self._files = (ca, cert, key)
        try:
            self._stamp = self._look()
            self._context = self._load()
        except ConfigError:
            self._files, self._stamp, self._context = before
            raise

    def _current(self) -> ssl.SSLContext:
        """A new certificate counts from the next connection on; a bad one is said once, and the old one stays."""
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._context = self._load()
                log.info("certificates were read again: %s", ", ".join(self._files))
        except ConfigError as error:
            log.error("the new certificates are refused, the old ones stay in force: %s", error)
        return self._context

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for path in self._files:
            try:
                facts = os.stat(path)
            except OSError as error:
                raise ConfigError(f"{path} can't be read: {error.strerror}") from error
            found.append((facts.st_mtime_ns, facts.st_ino, facts.st_size))
        return tuple(found)

    def _load(self) -> ssl.SSLContext:
        ca, cert, key = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if self._server_side else ssl.PROTOCOL_TLS_CLIENT)
        context.sslsocket_class = SecureSocket
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        if self._server_side:
            context.num_tickets = 0  # no session outlives its connection: each is judged by its certificate
        path = ca
        try:
            for path in (ca, cert):
                refuse_writable(path)
            refuse_readable(key)
            path = ca
            context.load_verify_locations(ca)
            path = f"{cert} with the key {key}"
            context.load_cert_chain(cert, key, password=lambda: "")  # never ask on a terminal
        except ssl.SSLError as error:
            what = "don't belong together" if error.reason == "KEY_VALUES_MISMATCH" else f"is no use ({error.reason})"
            raise ConfigError(f"{path} {what}: `guestagent pki` makes what TLS needs") from error
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}") from error
        return context
