"""Asks a collector whether it is well, as an agent would: connect, TLS, PING. Blocking; `guestagent check` uses it."""

import socket
from contextlib import closing
from typing import TYPE_CHECKING

from guestagent.endpoint import Endpoint
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Deframer, Kind, ProtocolError
from guestagent.trust import cleartext_sentence, is_private

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials

PATIENCE_SECONDS = 3.0


def ask_collector(endpoint: Endpoint, tls: "Credentials | None", *, allow_cleartext: bool) -> str:
    """What it answers, in words. Raises OSError, ProtocolError with the reason why it does not."""
    plain = socket.create_connection((endpoint.host, endpoint.port), PATIENCE_SECONDS)
    address = str(plain.getpeername()[0])
    if not (endpoint.is_secure or allow_cleartext or is_private(address)):
        plain.close()
        raise ProtocolError(cleartext_sentence(f"{endpoint} at {address}"))
    with closing(tls.wrap(plain, endpoint.host) if tls else plain) as sock:
        data = frames.PREFACE + frames.encode(Kind.PING)
        while data:
            data = data[sock.send(data) :]
        _await_pong(sock, bytes_at_once=1 if tls else 4096)
        if tls is None:
            return "answers"
        shown = sock.getpeercert()  # type: ignore[attr-defined]
        version = sock.version()  # type: ignore[attr-defined]
        return f"answers over {version}; its certificate ends {shown['notAfter']}"


def _await_pong(sock: socket.socket, bytes_at_once: int) -> None:
    """A secure socket fills all the room that it is given, so it gets one byte at a time."""
    deframer = Deframer()
    while True:
        count = sock.recv_into(deframer.space()[:bytes_at_once])
        if not count:
            raise ProtocolError("it closed the connection")
        deframer.filled(count)
        for frame in deframer.frames():
            if frame.kind == Kind.PONG:
                return
            if frame.kind == Kind.BYE:
                reason = str(frames.decode_json(frame).get("reason", ""))[:200]
                raise ProtocolError(f"it said goodbye: {frames.printable(reason)}")
