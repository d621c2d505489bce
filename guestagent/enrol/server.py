"""`guestagent pki serve`: signs requests that come with a token, over TLS 1.3 with the authority's own certificate.

POST /enrol, `Authorization: Bearer TOKEN`, a certificate request in PEM (RFC 2986); the answer is the certificate, or a
sentence with a status of 4xx. A name that holds a certificate gets no second one: a token is no way to become another.
"""

import ssl
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guestagent.enrol import tokens
from guestagent.errors import ConfigError, GuestagentError, RunError
from guestagent.pki import certify_request
from guestagent.tapstream.frames import printable
from guestagent.tapstream.hello import is_name

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MOST_REQUEST_BYTES = 8 * 1024
"""Ten times a request for an EC key."""
MOST_CONNECTIONS = 64
PATIENCE_SECONDS = 10.0
"""For each read, the handshake's too; a silent peer holds one of the connections no longer."""


class Refusal(Exception):
    """What is told to the asker, with an HTTP status."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Desk:
    """The authority's directory, where one request is decided at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def certificate(self, token: str, name_of_request: str, request: bytes, now: float) -> bytes:
        """PEM of a new certificate. Raises Refusal."""
        with self._lock:
            grant = tokens.find(self._folder, token, name_of_request, now)
            if grant is None:
                raise Refusal(403, "the token is unknown, has ended, is used up, or is not for this name")
            if (self._folder / f"{name_of_request}.crt").exists():
                raise Refusal(409, f"{name_of_request} holds a certificate already: remove it at the authority first")
            tokens.spend(self._folder, token, grant)
            try:
                return certify_request(self._folder, name_of_request, request)
            except GuestagentError as error:
                raise Refusal(400, str(error)) from error


def serve(folder: Path, name: str, host: str, port: int) -> int:
    """Until interrupted. `name` is whose certificate the server shows. Raises ConfigError, RunError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    try:
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key", password=lambda: "")
    except OSError as error:
        made = f"make them with `guestagent pki collector {name}`"
        raise ConfigError(f"{folder}/{name}.crt and .key are no use ({error.strerror}): {made}") from error
    try:
        server = listen(Desk(folder), context, host, port)
    except OSError as error:
        raise RunError(f"--listen: {host}:{port} can't be listened on: {error.strerror}") from error
    sys.stderr.write(f"pki: signs for agents with a token on {host}:{server.server_address[1]}\n")
    with server:
        server.serve_forever()
    return 0


def listen(desk: Desk, context: ssl.SSLContext, host: str, port: int) -> "ThreadingHTTPServer":
    """The bound server, not yet serving."""
    import socket
    from http.server import ThreadingHTTPServer

    places = threading.BoundedSemaphore(MOST_CONNECTIONS)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = MOST_CONNECTIONS
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def process_request(self, request: Any, client_address: Any) -> None:
            if places.acquire(blocking=False):
                super().process_request(request, client_address)
            else:
                self.shutdown_request(request)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                super().process_request_thread(request, client_address)
            finally:
                places.release()

        def finish_request(self, request: Any, client_address: Any) -> None:
            """The handshake happens here, in the connection's own thread."""
            request.settimeout(PATIENCE_SECONDS)
            with context.wrap_socket(request, server_side=True) as secure:
                super().finish_request(secure, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            sys.stderr.write(f"pki: {client_address[0]}: {printable(str(sys.exc_info()[1]))}\n")

    return Server((host, port), _handler(desk))


def _handler(desk: Desk) -> "type[BaseHTTPRequestHandler]":
    """What speaks HTTP on one connection."""
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "guestagent", ""

        def do_POST(self) -> None:
            try:
                status, body = 200, self._signed()
            except Refusal as refusal:
                status, body = refusal.status, f"{refusal}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _signed(self) -> bytes:
            length = self.headers.get("Content-Length", "")
            kind, _, token = self.headers.get("Authorization", "").partition(" ")
            if self.path != "/enrol" or kind != "Bearer":
                raise Refusal(404, "POST /enrol with a bearer token is all that is served here")
            if not length.isdecimal() or len(length) > 9:
                raise Refusal(411, "how many bytes has the request? Content-Length is missing")
            request = self.rfile.read(min(int(length), 8 * MOST_REQUEST_BYTES))
            if len(request) > MOST_REQUEST_BYTES:
                raise Refusal(413, f"a request has at most {MOST_REQUEST_BYTES} bytes")
            return desk.certificate(token, _name_in(request), request, time.time())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
            sys.stderr.write(f"pki: {self.client_address[0]}: {printable(format % args)}\n")

    return Handler


def _name_in(request: bytes) -> str:
    """The common name of a request."""
    from cryptography.x509 import NameOID, load_pem_x509_csr

    try:
        (name,) = load_pem_x509_csr(request).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise Refusal(400, "the body is no certificate request with one common name") from error
    if not is_name(str(name.value)):
        raise Refusal(400, "the common name must be 1 to 64 of A-Z a-z 0-9 . _ -, the name of the agent")
    return str(name.value)
