"""The tables of metrics: name, help, and where the value stands in a snapshot.

Names and units follow https://prometheus.io/docs/practices/naming/; docs/operations.md says what each means.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Snapshot = dict[str, Any]


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


def _bool(value: Any) -> float | None:
    return None if value is None else float(value)


def _percent(value: float | None) -> float | None:
    return None if value is None else value / 100


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
    Row("guestagent_link_retransmitted_segments_total", "Segments sent again.", _key("link", "retransmitted")),
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

COLLECTOR_ROWS = (
    Row("guestagent_collector_connections", "Agents connected, greeting ones included.", _key("connections")),
    Row("guestagent_collector_refused_total", "Connections closed for what they sent.", _key("refused")),
    Row("guestagent_collector_blocked", "1 while nothing can be written.", lambda s: bool(s.get("blocked_by"))),
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

DESTINATION_ROWS = (
    Row("guestagent_destination_well", "1 while copies may go there.", lambda one: _bool(one.get("well"))),
    Row("guestagent_destination_serves", "1 while the run is there.", lambda one: _bool(one.get("serves"))),
    Row("guestagent_destination_takeovers_total", "Times that the run went there.", lambda one: one.get("takeovers")),
    Row("guestagent_destination_frames_total", "Frames that the kernel took.", lambda one: one.get("frames")),
    Row("guestagent_destination_room_bytes", "Longest frame that fits the path.", lambda one: one.get("room_bytes")),
    Row(
        "guestagent_destination_path_mtu_changes_total", "Changes of the path.", lambda one: one.get("path_mtu_changes")
    ),
    Row("guestagent_destination_truncated_frames_total", "Cut to the path's room.", lambda one: one.get("truncated")),
    Row("guestagent_destination_delivered_records_total", "Records that it has.", lambda one: one.get("delivered")),
    Row("guestagent_destination_in_flight_records", "Records that it is owed.", lambda one: one.get("in_flight")),
)
"""Of each collector or sensor in `to`, and each sensor in `relay`; a stream and a tunnel have different ones."""
DESTINATION_REASONS = (
    ("guestagent_destination_lost_frames_total", "Frames that did not leave.", "lost_frames"),
    ("guestagent_destination_faults_total", "What the network said of frames that left.", "faults"),
    ("guestagent_destination_lost_records_total", "Records that another one has and it will not get.", "lost_records"),
)
"""Counters by reason: name, help, key."""
RELAY_ROWS = (Row("guestagent_relay_records_total", "Records given to sensors.", _key("records")),)
RELAY_REASONS = (("guestagent_relay_lost_records_total", "Records that no sensor got.", "lost"),)
LISTENER_ROWS = (
    Row("guestagent_tunnel_datagrams_total", "Datagrams received.", _key("datagrams")),
    Row("guestagent_tunnel_received_bytes_total", "Their bytes.", _key("bytes")),
    Row(
        "guestagent_tunnel_kernel_dropped_datagrams_total",
        "No room in the socket.",
        lambda one: one["dropped_by_kernel"],
    ),
)
"""Of each tunnel in `listen`."""
TUNNEL_REASONS = (
    ("guestagent_tunnel_malformed_datagrams_total", "Datagrams that hold no copy.", "malformed"),
    ("guestagent_tunnel_lost_frames_total", "Frames that came by tunnel and went nowhere.", "lost"),
)
TAP_ROWS = (Row("guestagent_tap_frames_total", "Frames shown on TAP devices.", _key("frames")),)
TAP_REASONS = (("guestagent_tap_lost_frames_total", "Frames that no device took.", "lost"),)
WORKER_ROWS = (
    Row("guestagent_collector_worker_up", "1 while it is there.", lambda one: bool(one["pid"])),
    Row("guestagent_collector_worker_restarts_total", "Times that it was started again.", _key("restarts")),
    Row("guestagent_collector_worker_connections", "Agents connected to it.", _key("connections")),
    Row("guestagent_collector_worker_cpu_seconds_total", "CPU time since its start.", _key("cpu_seconds")),
    Row(
        "guestagent_collector_worker_handed_over_total",
        "Connections that it passed to the worker of their agent.",
        _key("handed_over"),
    ),
)
"""Of each of `--workers N`."""
