"""One connection: what may happen between two of its steps, and what a collector that never listens costs."""

import socket
import ssl
import struct
import time
from typing import cast

import pytest

from guestagent.endpoint import Endpoint
from guestagent.links.secure import Credentials, SecureSocket
from guestagent.links.stream import StreamLink
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.session import Backoff
from tests.streams import Bench


class Late:
    """Credentials of an agent whose collector resets each connection just before TLS begins on it."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def wrap(self, plain: socket.socket, host: str) -> SecureSocket:
        """As links.secure does, a moment too late."""
        accepted, _ = self._listener.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        accepted.close()
        time.sleep(0.02)
        wrapped = ssl.create_default_context().wrap_socket(plain, do_handshake_on_connect=False, server_hostname=host)
        return cast(SecureSocket, wrapped)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # ssl leaves what it could not wrap to the collector
def test_a_reset_before_tls_begins_is_a_connection_that_broke(bench: Bench) -> None:
    """Between the kernel's word that it is connected and OpenSSL's first look the peer may go; the link tries again."""
    tls = cast(Credentials, Late(bench.collector.listener))
    endpoint = Endpoint("tls", "127.0.0.1", bench.collector.port)
    bench.link.close()
    bench.link = StreamLink([endpoint], bench.owner, bench.loop, tls, Backoff(lambda: 0.0))
    bench.until(lambda: len(bench.owner.changes) >= 2)
    name = f"127.0.0.1:{bench.collector.port}"
    assert {(False, f"the connection to {name} broke: Connection reset by peer; the ring holds on")} == set(
        bench.owner.changes
    )


def test_a_flood_of_pings_is_one_answer(bench: Bench) -> None:
    """Pings that come while nothing can go out wait as one PONG: a collector that hears nothing costs no memory."""
    bench.connect()
    bench.owner.allowed_bytes = 0.0
    bench.collector.say(frames.encode(Kind.PING) * 10_000)
    channel = bench.link._channel
    bench.until(lambda: channel._ramp)
    for _ in range(50):
        bench.turn()
    assert len(channel._control) <= 2  # an answer, and a question of our own
    bench.owner.allowed_bytes = float("inf")
    bench.until(lambda: bench.collector.hear() or pongs(bench))
    heard = pongs(bench)
    bench.collector.say(frames.encode(Kind.PING))
    bench.until(lambda: bench.collector.hear() or pongs(bench) > heard)


def pongs(bench: Bench) -> int:
    """How many the collector heard."""
    return sum(kind is Kind.PONG for kind, _, _ in bench.collector.heard)
