"""The books as Prometheus metrics: tables of names over the snapshots that `status` shows.

Names and units follow https://prometheus.io/docs/practices/naming/. Labels are bounded: interfaces are the host's own,
of agents the first MOST_AGENT_LABELS have a name and the rest are summed. prometheus_client is loaded by Exposition.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from guestagent.errors import HostError

Snapshot = dict[str, Any]

MOST_AGENT_LABELS = 256
"""Names are the agents' to choose; a server that scrapes us keeps each series for weeks."""
THE_REST = "(other)"
"""The label of what is summed; no agent can have it as a name."""
UNKNOWN = "other"
"""The label of a reason that CAUSES lacks."""


class Row(NamedTuple):
    """One metric; a name ending in `_total` is a counter, every other one a gauge. None: not known here."""

    name: str
    help: str
    value: Callable[[Snapshot], float | None]


def _key(*path: str) -> Callable[[Snapshot], float | None]:
    def read(snapshot: Snapshot) -> float | None:
        value: Any = snapshot
        for key in path:
            value = value[key]
        return None if value is None else float(value)

    return read


def _sum(*keys: str) -> Callable[[Snapshot], float]:
    return lambda snapshot: float(sum(snapshot[key] for key in keys))


INTERFACE_ROWS = (
    Row("guestagent_captured_records_total", "Records that the filter accepted.", _key("captured")),
    Row("guestagent_delivered_records_total", "Records that a collector acknowledged.", _key("delivered")),
    Row("guestagent_capped_records_total", "Records given up to keep a cap.", _key("capped")),
    Row(
        "guestagent_kernel_dropped_records_total",
        "Records that the kernel dropped: no room in the ring, or unsupported GSO.",
        # Only the sum never falls: what the kernel counts first is known as unsupported GSO when a collector says so.
        _sum("dropped_by_ring", "unsupported_gso"),
    ),
    Row(
        "guestagent_unsupported_gso_records_total",
        "Those of the kernel's drops that were super-packets of a kind that it cannot describe.",
        _key("unsupported_gso"),
    ),
    Row("guestagent_lost_on_link_records_total", "Records that no collector acknowledged.", _key("lost_on_link")),
    Row("guestagent_in_flight_records", "Records in the ring or on the way.", _key("in_flight")),
    Row("guestagent_captured_ring_bytes_total", "Ring bytes retired, headers included.", _key("captured_ring_bytes")),
    Row("guestagent_delivered_bytes_total", "Ring bytes that a collector acknowledged.", _key("delivered_bytes")),
)
"""Of one interface's ledger: captured = delivered + capped + kernel_dropped + lost_on_link + in_flight."""

AGENT_ROWS = (
    Row("guestagent_cpu_seconds_total", "CPU time of the agent itself.", _key("cpu_seconds")),
    Row("guestagent_ring_bytes", "Memory of all rings.", _key("ring_bytes")),
    Row("guestagent_ring_held_ratio", "Fullness of the fullest ring.", _key("ring_held_fraction")),
    Row(
        "guestagent_not_selected_packets",
        "Packets that the interfaces counted and the filter did not accept, an estimate.",
        _key("not_selected_estimate"),
    ),
    Row("guestagent_link_connected", "1 while a collector takes the copies.", _key("link", "connected")),
    Row("guestagent_link_reconnects_total", "Connections that broke.", _key("link", "reconnects")),
    Row("guestagent_link_sent_bytes_total", "Bytes that left for collectors.", _key("link", "sent_bytes")),
    Row(
        "guestagent_collector_complains",
        "1 while the collector remarks something.",
        lambda s: bool(s["collector_note"]),
    ),
    Row(
        "guestagent_budget_cpu_ratio", "Allowed part of the VM's CPU.", lambda s: _percent(s["budgets"]["cpu_percent"])
    ),
    Row("guestagent_budget_bytes_per_second", "Allowed rate of copies.", _key("budgets", "bytes_per_second")),
    Row("guestagent_budget_records_per_second", "Allowed rate of records.", _key("budgets", "packets_per_second")),
    Row("guestagent_wanted_flows_ratio", "Part of the flows that the operator wants.", _key("limits", "keep")),
    Row("guestagent_limit_flows_ratio", "Part of the flows that is kept now.", _key("limits", "sample")),
    Row("guestagent_limit_heavy_flows", "Flows of which headers alone are kept now.", _key("limits", "heavy_flows")),
    Row("guestagent_limit_heavy_ratio", "Part of heavy flows' packets kept now.", _key("limits", "heavy_fraction")),
    Row("guestagent_limit_bytes_per_second", "Cap in force on bytes out.", _key("limits", "byte_cap")),
    Row("guestagent_limit_records_per_second", "Cap in force on records out.", _key("limits", "packet_cap")),
    Row("guestagent_limit_paused", "1 while the capture is paused.", _key("limits", "paused")),
    Row(
        "guestagent_limit_headers_only", "1 while headers alone are kept.", lambda s: s["limits"]["slice"] == "headers"
    ),
    Row("guestagent_dedupe_peers", "Agents whose packets are left to them.", _key("limits", "dedupe_peers")),
)
"""Of the agent's snapshot."""

CAUSES = {
    "a full copy would take": "cpu",
    "a full copy would be": "cap",
    "the collector takes less": "collector",
    "the VM is under pressure": "pressure",
}
"""How the governor's sentences begin (governor.reason), and the label of each; its numbers would be a series each."""
REDUCED = "guestagent_fidelity_reduced"
INTERFACE_UP = "guestagent_interface_up"
BUILD = "guestagent_build_info"

COLLECTOR_ROWS = (
    Row("guestagent_collector_connections", "Agents connected, greeting ones included.", _key("connections")),
    Row("guestagent_collector_refused_total", "Connections closed for what they sent.", _key("refused")),
    Row("guestagent_collector_agents", "Agents seen since the start.", lambda s: len(s["agents"])),
)
PER_AGENT_ROWS = (
    Row("guestagent_collector_received_records_total", "Records received once.", _key("received")),
    Row(
        "guestagent_collector_received_bytes_total", "Bytes of these records, headers included.", _key("received_bytes")
    ),
    Row("guestagent_collector_written_packets_total", "Packets written.", _key("written")),
    Row("guestagent_collector_gap_frames_total", "Frames missing in the sequence.", _key("gaps")),
    Row("guestagent_collector_duplicate_frames_total", "Frames that came again, not written.", _key("duplicates")),
    Row("guestagent_collector_malformed_blocks_total", "Blocks that were refused.", _key("malformed")),
    Row(
        "guestagent_collector_unsupported_gso_records_total",
        "Records without a packet: super-packets that the agent's kernel cannot describe.",
        _key("unsupported_gso"),
    ),
    Row("guestagent_collector_checksums_completed_total", "Left to the card, completed.", _key("checksums_completed")),
    Row("guestagent_collector_checksums_left_total", "Left to the card, not completed.", _key("checksums_left")),
    Row(
        "guestagent_collector_agent_refused_total",
        "Connections in its name closed for what they sent.",
        _key("refused"),
    ),
    Row("guestagent_collector_unclean_ends_total", "Runs that ended without goodbye.", _key("unclean_end_count")),
    Row("guestagent_collector_agent_runs", "Runs that stream now.", _key("streaming")),
)


def _percent(value: float | None) -> float | None:
    return None if value is None else value / 100


class Sample(NamedTuple):
    """One line of the exposition."""

    labels: dict[str, str]
    value: float


class Family(NamedTuple):
    """One metric with its lines."""

    name: str
    help: str
    samples: list[Sample]


def families(snapshot: Snapshot) -> Iterator[Family]:
    """Everything that an agent's or a collector's snapshot tells, as metrics."""
    role = snapshot["role"]
    yield Family(BUILD, "The version that runs.", [Sample({"role": role, "version": snapshot["version"]}, 1.0)])
    yield from (_of_agent if role == "agent" else _of_collector)(snapshot)


def _of_agent(snapshot: Snapshot) -> Iterator[Family]:
    yield from _table(AGENT_ROWS, [({}, snapshot)])
    yield from _table(INTERFACE_ROWS, [({"interface": name}, one) for name, one in snapshot["interfaces"].items()])
    up = [Sample({"interface": name}, float(is_up)) for name, is_up in snapshot["interfaces_up"].items()]
    yield Family(INTERFACE_UP, "1 while the capture is bound to the interface and it is up.", up)
    cause = cause_of(snapshot["limits"]["reason"])
    causes = [Sample({"cause": one}, float(one == cause)) for one in (*CAUSES.values(), UNKNOWN)]
    yield Family(REDUCED, "1 for what makes the copy less than the operator wants, 0 for all else.", causes)


def cause_of(reason: str) -> str:
    """The label of a sentence; empty where nothing is reduced."""
    found = (cause for start, cause in CAUSES.items() if reason.startswith(start))
    return next(found, UNKNOWN) if reason else ""


def _of_collector(snapshot: Snapshot) -> Iterator[Family]:
    yield from _table(COLLECTOR_ROWS, [({}, snapshot)])
    agents = list(snapshot["agents"].items())
    named = [({"agent": name}, one) for name, one in agents[:MOST_AGENT_LABELS]]
    if rest := [one for _, one in agents[MOST_AGENT_LABELS:]]:
        keys = [key for key, value in rest[0].items() if isinstance(value, int)]
        named.append(({"agent": THE_REST}, {key: sum(one[key] for one in rest) for key in keys}))
    yield from _table(PER_AGENT_ROWS, named)


def _table(rows: tuple[Row, ...], sources: list[tuple[dict[str, str], Snapshot]]) -> Iterator[Family]:
    for row in rows:
        samples = [Sample(labels, float(value)) for labels, one in sources if (value := row.value(one)) is not None]
        yield Family(row.name, row.help, samples)


class Exposition:
    """The text that a scraper reads, from prometheus_client. Raises HostError where that is missing."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        try:
            from prometheus_client import CollectorRegistry, ProcessCollector
        except ImportError:
            raise HostError("metrics need prometheus_client: install guestagent[metrics]") from None
        self._snapshot = snapshot
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # memory, CPU and descriptors under their usual names (process_...)

    def collect(self) -> Iterator[Any]:
        """What prometheus_client asks of a collector: the families as of now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, text, samples in families(self._snapshot()):
            make = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = make(name, text)
            for labels, value in samples:
                family.add_sample(name, labels, value)
            yield family

    def render(self) -> tuple[str, bytes]:
        """Content type and text."""
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        return CONTENT_TYPE_LATEST, generate_latest(self._registry)
