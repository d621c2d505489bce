"""What Prometheus reads: every number of the books under a sound name, over an endpoint that nobody can stall."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from guestagent.collector.registry import Agent
from guestagent.errors import HostError
from guestagent.governor.limits import Budgets, Limits
from guestagent.governor.predict import Cost
from guestagent.governor.reason import sentence
from guestagent.model import InterfaceLedger
from guestagent.observe.metrics import MOST_AGENT_LABELS, THE_REST, UNKNOWN, Exposition, cause_of, families

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
    return {"role": "collector", "version": "1.2.3", "connections": 2, "refused": 1, "blocked_by": "", "agents": agents}


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
