"""The metrics endpoint: where it may listen, and what no client can do to it."""

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.errors import ConfigError, RunError
from guestagent.loop import Loop
from guestagent.observe import endpoint
from guestagent.observe.endpoint import MOST_CLIENTS, MOST_REQUEST_BYTES, MetricsEndpoint
from guestagent.values import metrics_address


@pytest.mark.parametrize(
    "text, address",
    [
        ("127.0.0.1:9795", ("127.0.0.1", 9795)),
        ("localhost:80", ("127.0.0.1", 80)),
        ("127.8.8.8:1", ("127.8.8.8", 1)),
        ("[::1]:9795", ("::1", 9795)),
        ("unix:/run/m.sock", "/run/m.sock"),
    ],
)
def test_loopback_and_unix_are_taken(text: str, address: tuple[str, int] | str) -> None:
    """A loopback address with a port, or a UNIX socket's path."""
    assert address == metrics_address(text, "metrics")


@pytest.mark.parametrize("text", ["0.0.0.0:9795", "10.0.0.1:9795", "[::]:9795", "[fd00::1]:1", "8.8.8.8:53"])
def test_other_addresses_are_refused(text: str) -> None:
    """Nothing is told to the network; the sentence says what to write instead."""
    with pytest.raises(ConfigError, match=r"^--metrics: .* would show the metrics to the network .* unix:PATH"):
        metrics_address(text, "--metrics")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "9795",
        ":9795",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:99999",
        "host:1",
        "unix:",
        "unix:" + "x" * 108,
        "127.0.0.1:9795/metrics",
        4711,
        None,
        "a\0b",
        "u@127.0.0.1:x",
    ],
)
def test_what_is_no_address_is_refused(value: Any) -> None:
    """Bad input gets one sentence."""
    with pytest.raises(ConfigError, match=r"^metrics: "):
        metrics_address(value, "metrics")


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    """No text of a config makes the parser fail otherwise, or opens the network."""
    try:
        found = metrics_address(text, "metrics")
    except ConfigError:
        return
    assert isinstance(found, str) or found[0] == "::1" or found[0].startswith("127.")


# -- the endpoint ----------------------------------------------------------------------------------------------------


class Served:
    """An endpoint whose loop turns in a thread."""

    def __init__(self, address: tuple[str, int] | str = ("127.0.0.1", 0), body: bytes = b"x 1\n") -> None:
        self.loop, self.renders, self.body = Loop(), 0, body
        self.endpoint = MetricsEndpoint(self.loop, address, self._render)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._turn, daemon=True)
        self._thread.start()

    def _render(self) -> tuple[str, bytes]:
        self.renders += 1
        return "text/plain", self.body

    def _turn(self) -> None:
        while not self._stop.is_set():
            self.loop.run_once(0.01)

    def connect(self) -> socket.socket:
        """A client."""
        client = socket.create_connection(("127.0.0.1", self.endpoint.port), 5)
        client.settimeout(5)
        return client

    def ask(self, method: str = "GET", path: str = "/metrics") -> tuple[int, bytes]:
        """(status, body) as the standard library's client reads them."""
        client = http.client.HTTPConnection("127.0.0.1", self.endpoint.port, timeout=5)
        client.request(method, path)
        answer = client.getresponse()
        body = answer.read()
        client.close()
        return answer.status, body

    def close(self) -> None:
        """End the thread, then the endpoint."""
        self._stop.set()
        self._thread.join(5)
        self.endpoint.close()
        self.loop.close()


@pytest.fixture
def served() -> Iterator[Served]:
    """An endpoint on a free port."""
    one = Served()
    yield one
    one.close()


@pytest.mark.parametrize(
    "method, path, status, body",
    [
        ("GET", "/metrics", 200, b"x 1\n"),
        ("GET", "/", 200, b"x 1\n"),
        ("GET", "/metrics?name[]=x", 200, b"x 1\n"),
        ("HEAD", "/metrics", 200, b""),
        ("POST", "/metrics", 405, b""),
        ("GET", "/etc/passwd", 404, b"metrics are at /metrics\n"),
    ],
)
def test_requests_are_answered(served: Served, method: str, path: str, status: int, body: bytes) -> None:
    """A standard client gets the metrics, and a status that says what it did wrong."""
    assert (status, body) == served.ask(method, path)


@given(head=st.binary(max_size=200))
def test_no_request_breaks_it(head: bytes) -> None:
    """Any bytes before an empty line get one answer and the end of the connection."""
    one = object.__new__(MetricsEndpoint)
    one._loop, one._render, one._body, one._stale_at = Loop(), lambda: ("t", b""), ("", b""), float("-inf")  # type: ignore[misc]
    try:
        assert one._answer(head).startswith(b"HTTP/1.1 ")
    finally:
        one._loop.close()


def test_a_request_has_a_bound(served: Served) -> None:
    """A head that never ends is answered 431 after so many bytes."""
    client = served.connect()
    client.sendall(b"GET / HTTP/1.1\r\n" + b"a" * (MOST_REQUEST_BYTES - 16))

    assert client.recv(100).startswith(b"HTTP/1.1 431 ")
    client.close()


def test_slow_clients_hold_no_scraper(served: Served) -> None:
    """With far more silent connections than there is room for, a scraper is answered at once; descriptors are few."""
    idle = [served.connect() for _ in range(3 * MOST_CLIENTS)]
    for client in idle[-MOST_CLIENTS:]:
        client.sendall(b"GET /met")

    assert (200, b"x 1\n") == served.ask()
    assert len(served.endpoint._clients) <= MOST_CLIENTS
    for client in idle:
        client.close()


def test_a_client_that_does_not_read_stalls_nobody() -> None:
    """A large answer that one client leaves unread does not keep another one from its own."""
    one = Served(body=b"# " + b"x" * 8_000_000 + b"\n")
    lazy = one.connect()
    lazy.sendall(b"GET / HTTP/1.1\r\n\r\n")
    status, body = one.ask()
    lazy.close()
    one.close()

    assert (200, 8_000_003) == (status, len(body))


def test_asking_often_costs_one_rendering(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks in a loop is served from the same text for FRESH_SECONDS."""
    monkeypatch.setattr(endpoint, "FRESH_SECONDS", 60.0)
    for _ in range(20):
        served.ask()

    assert 1 == served.renders


def test_a_unix_socket_is_served_and_removed(tmp_path: Path) -> None:
    """The path answers, only owner and group may ask, a stale file is replaced, and it is gone at the end."""
    path = str(tmp_path / "m.sock")
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    one = Served(path)
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while part := client.recv(4096):
        answer += part
    client.close()
    mode = Path(path).stat().st_mode & 0o777
    with pytest.raises(RunError, match="Address already in use; choose another address"):
        MetricsEndpoint(one.loop, path, one._render)
    one.close()

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nx 1\n")
    assert mode == 0o660
    assert not Path(path).exists()


def test_a_taken_port_is_said(served: Served) -> None:
    """A port of another process is one sentence."""
    with pytest.raises(RunError, match=r"^metrics can't be served at 127.0.0.1:\d+: Address already in use; choose"):
        MetricsEndpoint(served.loop, ("127.0.0.1", served.endpoint.port), served._render)
