"""What Prometheus reads: every number of the books under a sound name, over an endpoint that nobody can stall."""

import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from guestagent.collector.registry import Agent
from guestagent.errors import ConfigError, HostError, RunError
from guestagent.governor.limits import Budgets, Limits
from guestagent.governor.predict import Cost
from guestagent.governor.reason import sentence
from guestagent.loop import Loop
from guestagent.model import InterfaceLedger
from guestagent.observe import endpoint
from guestagent.observe.endpoint import MOST_CLIENTS, MOST_REQUEST_BYTES, MetricsEndpoint
from guestagent.observe.metrics import MOST_AGENT_LABELS, THE_REST, UNKNOWN, Exposition, cause_of, families
from guestagent.values import metrics_address

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
LEDGER = InterfaceLedger(1000, 900, 20, 30, 7, 3, 5_000_000, 4_000_000)


def agent(**changes: Any) -> dict[str, Any]:
    """An agent's snapshot."""
    return {
        "role": "agent",
        "version": "1.2.3",
        "cpu_seconds": 1.25,
        "ring_bytes": 64 << 20,
        "ring_held_fraction": 0.25,
        "not_selected_estimate": 11,
        "interfaces": {"eth0": LEDGER.as_dict()},
        "interfaces_up": {"eth0": True, "eth1": False},
        "link": {
            "connected": True,
            "text": "",
            "reconnects": 2,
            "sent_bytes": 4096,
            "retransmitted": 3,
            "destinations": [],
        },
        "collector_note": "",
        "budgets": {"cpu_percent": 5.0, "bytes_per_second": None, "packets_per_second": None, "yield": True},
        "limits": {
            "slice": "headers",
            "keep": 1.0,
            "sample": 0.5,
            "heavy_flows": 2,
            "heavy_fraction": 0.1,
            "paused": False,
            "byte_cap": 1e6,
            "packet_cap": None,
            "dedupe_peers": 0,
            "reason": "the VM is under pressure (steal): all packets cut to headers",
        },
        **changes,
    }


def collector(count: int = 1) -> dict[str, Any]:
    """A collector's snapshot with so many agents, the n-th of which sent n records."""
    row = {**Agent().totals, "refused": 0, "unclean_ends": [], "unclean_end_count": 0, "streaming": 1}
    agents = {f"vm{number}": {**row, "received": number} for number in range(count)}
    return {"role": "collector", "version": "1.2.3", "connections": 2, "refused": 1, "agents": agents}


SENSOR = {
    "to": "vxlan://10.0.0.9:4789?vni=7",
    "address": "10.0.0.9",
    "well": True,
    "trouble": "",
    "frames": 70,
    "room_bytes": 1450,
    "path_mtu_changes": 1,
    "truncated": 2,
    "lost_frames": {"no_way": 3},
    "faults": {"connection_refused": 4},
}
COLLECTORS = [
    {"to": "tls://a:4795", "serves": False, "takeovers": 2},
    {"to": "tls://b:4795", "serves": True, "takeovers": 1},
]


REPLICAS = [
    {
        **one,
        "serves": True,
        "delivered": 90 - at,
        "in_flight": 1,
        "lost_records": {"collector_away": at, "run_ended": 0},
    }
    for at, one in enumerate(COLLECTORS)
]


def with_destinations(destinations: list[dict[str, Any]]) -> dict[str, Any]:
    """An agent's snapshot with these."""
    return agent(link={**agent()["link"], "destinations": destinations})


def busy_collector() -> dict[str, Any]:
    """A collector that does everything at once."""
    intake = {"listen": "vxlan://0.0.0.0:4789", "datagrams": 9, "bytes": 900, "dropped_by_kernel": 1}
    worker = {"pid": 77, "restarts": 1, "connections": 2, "cpu_seconds": 0.5, "handed_over": 3}
    return {
        **collector(1),
        "workers": [worker, {**worker, "pid": 0}],
        "relay": {"records": 8, "lost": {"loop": 2}, "destinations": [SENSOR]},
        "tunnels": {"listeners": [intake], "malformed": {"short": 5}, "lost": {"no_room": 6}},
        "tap": {"frames": 11, "lost": {"down": 12}},
    }


EVERYTHING = (
    agent(),
    with_destinations([SENSOR]),
    with_destinations(COLLECTORS),
    with_destinations(REPLICAS),
    collector(),
    busy_collector(),
)
NAMES = {family.name for snapshot in EVERYTHING for family in families(snapshot)}


def exposed(snapshot: dict[str, Any]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) -> value, as prometheus_client's own parser reads the text."""
    text = Exposition(lambda: snapshot).render()[1].decode()
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}


def test_the_whole_ledger_is_told() -> None:
    """Every counter of an interface is there, and the identity can be computed from what is told."""
    value = exposed(agent())
    eth0 = (("interface", "eth0"),)
    parts = ("delivered", "capped", "kernel_dropped", "lost_on_link")

    assert 1000 == value["guestagent_captured_records_total", eth0]
    assert [900, 20, 37, 3] == [value[f"guestagent_{part}_records_total", eth0] for part in parts]
    assert 7 == value["guestagent_unsupported_gso_records_total", eth0]
    assert 40 == value["guestagent_in_flight_records", eth0]
    assert (5e6, 4e6) == (
        value["guestagent_captured_ring_bytes_total", eth0],
        value["guestagent_delivered_bytes_total", eth0],
    )


def test_limits_reasons_link_and_build_are_told() -> None:
    """What is in force and why, the link, the build, CPU and memory; what is not bounded has no line."""
    value = exposed(agent())

    assert 1 == value["guestagent_build_info", (("role", "agent"), ("version", "1.2.3"))]
    assert {"pressure"} == {
        dict(key[1])["cause"] for key in value if key[0] == "guestagent_fidelity_reduced" and value[key]
    }
    names = ("connected", "reconnects_total", "sent_bytes_total", "retransmitted_segments_total")
    assert (1, 2, 4096, 3) == tuple(value[f"guestagent_link_{name}", ()] for name in names)
    assert (0.5, 1, 1e6) == tuple(
        value[f"guestagent_limit_{name}", ()] for name in ("flows_ratio", "headers_only", "bytes_per_second")
    )
    assert 0 == value["guestagent_interface_up", (("interface", "eth1"),)]
    assert ("guestagent_limit_records_per_second", ()) not in value
    assert 0.05 == value["guestagent_budget_cpu_ratio", ()]
    assert value["process_resident_memory_bytes", ()] > 1e6


@pytest.mark.parametrize(
    "cause, label",
    [("cpu", "cpu"), ("rate", "cap"), ("packets", "cap"), ("collector", "collector"), ("steal", "pressure")],
)
def test_each_sentence_of_the_governor_has_its_label(cause: str, label: str) -> None:
    """The governor's sentences, which hold numbers, become one of a few labels."""
    for part in ("own", "cpu", "packets", "bytes"):
        said = sentence(Limits(slice="headers"), cause, part, Cost(0.1, 0.2, 1e3, 1e6), budgets=Budgets(), cores=2)

        assert label == cause_of(said)
    assert ("", UNKNOWN) == (cause_of(""), cause_of("a sentence of tomorrow"))


def test_collectors_that_each_get_every_copy_have_their_books() -> None:
    """What each of them has, is owed and misses, by reason; a collector among several in turn tells none of it."""
    told = exposed(with_destinations(REPLICAS))
    alone = exposed(with_destinations(COLLECTORS))
    second = (("to", "tls://b:4795"),)
    away = (("reason", "collector_away"), *second)

    assert told["guestagent_destination_delivered_records_total", second] == 89
    assert told["guestagent_destination_in_flight_records", second] == 1
    assert told["guestagent_destination_lost_records_total", away] == 1
    assert not any("_records" in name for name, _ in alone if "destination" in name)


def test_where_copies_go_is_told() -> None:
    """Failover: which collector serves, and how often each took the run; tunnels: what left, what did not and why."""
    told = exposed(with_destinations(COLLECTORS))
    first, second = ((("to", one["to"]),) for one in COLLECTORS)
    assert (0, 1) == tuple(told["guestagent_destination_serves", to] for to in (first, second))
    assert (2, 1) == tuple(told["guestagent_destination_takeovers_total", to] for to in (first, second))
    assert "guestagent_destination_frames_total" not in {name for name, _ in told}
    for snapshot in (with_destinations([SENSOR]), busy_collector()):
        told, to = exposed(snapshot), ("to", SENSOR["to"])
        assert (1, 70) == tuple(told[f"guestagent_destination_{key}", (to,)] for key in ("well", "frames_total"))
        assert 3 == told["guestagent_destination_lost_frames_total", (("reason", "no_way"), to)]
        assert 4 == told["guestagent_destination_faults_total", (("reason", "connection_refused"), to)]


def test_what_a_collector_does_besides_is_told() -> None:
    """Relay, foreign tunnels, TAP devices and workers, each with its losses by reason."""
    told = exposed(busy_collector())
    assert 8 == told["guestagent_relay_records_total", ()]
    assert 2 == told["guestagent_relay_lost_records_total", (("reason", "loop"),)]
    assert 1 == told["guestagent_tunnel_kernel_dropped_datagrams_total", (("listen", "vxlan://0.0.0.0:4789"),)]
    assert 5 == told["guestagent_tunnel_malformed_datagrams_total", (("reason", "short"),)]
    assert 12 == told["guestagent_tap_lost_frames_total", (("reason", "down"),)]
    assert (1, 0) == tuple(told["guestagent_collector_worker_up", (("worker", one),)] for one in ("0", "1"))
    assert 1 == told["guestagent_collector_worker_restarts_total", (("worker", "0"),)]


def test_agents_of_a_collector_are_bounded() -> None:
    """However many names the peers invent, so many have lines of their own, and the rest is summed."""
    count = MOST_AGENT_LABELS + 10
    value = exposed(collector(count))
    lines = {
        dict(key[1])["agent"]: value[key] for key in value if key[0] == "guestagent_collector_received_records_total"
    }

    assert MOST_AGENT_LABELS + 1 == len(lines)
    assert sum(range(count)) == sum(lines.values())
    assert sum(range(MOST_AGENT_LABELS, count)) == lines[THE_REST]


@pytest.mark.parametrize("snapshot", EVERYTHING, ids=["agent", "tunnels", "failover", "replicate", "collector", "busy"])
def test_promtool_finds_no_fault(snapshot: dict[str, Any]) -> None:
    """Prometheus's own linter accepts names, units and help of everything that is told."""
    text = Exposition(lambda: snapshot).render()[1]
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, check=False)

    assert (0, b"", b"") == (done.returncode, done.stdout, done.stderr)


def promtool() -> str:
    """From `make setup`, which puts it beside the interpreter, or the system's."""
    found = shutil.which("promtool", path=f"{Path(sys.executable).parent}") or shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed")
    return found


def test_rules_are_sound() -> None:
    """Each alert fires on its fault and on nothing else, by Prometheus's own evaluation."""
    for verb, name in (("check", "alerts.yml"), ("test", "alerts_test.yml")):
        done = subprocess.run(
            [promtool(), verb, "rules", name], cwd=PACKAGING / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["prometheus/alerts.yml", "prometheus/alerts_test.yml", "grafana/guestagent.json"])
def test_packaging_names_what_is_exposed(name: str) -> None:
    """Every metric that rules and dashboard ask for exists."""
    asked = set(re.findall(r"\b(?:guestagent)_[a-z_]+\b", (PACKAGING / name).read_text()))

    assert asked
    assert not asked - NAMES


def test_every_name_is_explained() -> None:
    """The manual has a line for each metric that is told, and for none that is not."""
    manual = (PACKAGING.parent / "docs" / "operations.md").read_text()
    explained = set(re.findall(r"^\| `(guestagent_[a-z_]+)", manual, re.MULTILINE))
    assert NAMES == explained


def test_the_dashboard_shows_the_identity() -> None:
    """The dashboard is JSON with a panel for each term of the ledger's identity, and no two panels of one id."""
    board = json.loads((PACKAGING / "grafana/guestagent.json").read_text())
    text = json.dumps(board["panels"])

    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(f"guestagent_{part}_records_total" in text for part in ("captured", "delivered", "kernel_dropped"))


def test_without_prometheus_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint without its extra is a missing piece of this host, told in one sentence."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(HostError, match=r"^metrics need prometheus_client: install guestagent\[metrics\]$"):
        Exposition(agent)


# -- the address -----------------------------------------------------------------------------------------------------


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
