"""One connection: what may happen between two of its steps, and what a collector that never listens costs."""

import socket
import ssl
import struct
import time
from itertools import pairwise
from typing import cast

import pytest

from guestagent.endpoint import Endpoint
from guestagent.links.collectors import HEALTHY_PONGS
from guestagent.links.inbox import LEAST_FRAME_COST_BYTES, TURN_BYTES
from guestagent.links.secure import Credentials, SecureSocket
from guestagent.links.stream import StreamLink
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.session import Backoff
from tests.fakes import PATIENCE_SECONDS
from tests.streams import UNPACED, Bench, FakeCollector, max_pacing_rate


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


def test_a_connection_is_paced_by_the_cap_in_force(bench: Bench) -> None:
    """Also where the cap changes while it stands, and is lifted."""
    bench.connect()
    connection = bench.link._channel._socket
    assert connection
    paces = []
    for cap in (float("inf"), 4e8, 8e8, float("inf")):
        bench.owner.cap_bytes_per_second = cap
        bench.link.pump(bench.loop.now())
        paces.append(max_pacing_rate(connection))
    assert paces == [UNPACED, 500_000_000, 1_000_000_000, UNPACED]


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


def test_a_flood_of_acknowledgements_leaves_the_agent_its_turns(bench: Bench) -> None:
    """One step of the loop takes so much of it and no more; the rest follows in order, though no edge tells of it."""
    bench.connect()
    count, most = 1000, TURN_BYTES // LEAST_FRAME_COST_BYTES
    bench.collector.say(b"".join(frames.encode_json(Kind.ACK, {"at": at}) for at in range(count)))
    notes, steps, end = bench.owner.notes, [0], time.monotonic() + PATIENCE_SECONDS
    while len(notes) < count and time.monotonic() < end:
        bench.loop.run_once(0.0)
        steps.append(len(notes))
        has_more = bench.link.pump(bench.loop.now())
        steps.append(len(notes))
        assert has_more or steps[-1] == steps[-2] or len(notes) == count

    assert [{"at": at} for at in range(count)] == notes
    assert max(after - before for before, after in pairwise(steps)) == most


def test_a_collector_that_breaks_while_it_is_left_costs_nothing(bench: Bench) -> None:
    """The goodbye to the one that serves fails: the run still goes to the preferred one that was found well."""
    preferred = FakeCollector()
    to = [Endpoint("tcp", "127.0.0.1", one.port) for one in (preferred, bench.collector)]
    bench.link.close()
    bench.link = StreamLink(to, bench.owner, bench.loop, None, Backoff(lambda: 0.0))
    bench.link._rota.at = 1
    bench.connect()
    preferred.listener.settimeout(0.0)
    bench.until(lambda: came(bench, preferred))
    preferred.say(frames.PREFACE + frames.encode(Kind.PONG) * HEALTHY_PONGS)
    end = time.monotonic() + PATIENCE_SECONDS
    while not bench.link._channel.is_leaving:
        assert time.monotonic() < end
        bench.loop.run_once(0.1)
    serving = bench.collector.socket
    serving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    bench.collector.close_connection()
    bench.link.pump(bench.loop.now())
    bench.until(lambda: preferred.hear() or any(kind is Kind.HELLO for kind, _, _ in preferred.heard))
    preferred.close_connection()
    preferred.listener.close()


def came(bench: Bench, collector: FakeCollector) -> bool:
    """Has the link come to watch it? Half a second goes by, in which the one that serves says that it lives."""
    bench.loop.skew += 0.5
    bench.collector.say(frames.encode(Kind.PONG))
    try:
        collector.accept()
    except BlockingIOError:
        return False
    return True


def pongs(bench: Bench) -> int:
    """How many the collector heard."""
    return sum(kind is Kind.PONG for kind, _, _ in bench.collector.heard)
