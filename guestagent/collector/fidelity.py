"""When an agent kept less than it was asked to, as its reports tell: intervals, how far, and why. Pure.

What a report says is the peer's word: a value of the wrong type counts as full, text is made printable and short.
"""

from collections.abc import Mapping
from typing import Any

MOST_INTERVALS = 100
"""The latest are kept of each run; `dropped` counts the others."""
MOST_REASON_LENGTH = 300


class Fidelity:
    """Told of each REPORT of a run; `intervals` are rows of the report, until_ns 0 while open."""

    def __init__(self) -> None:
        self.intervals: list[dict[str, Any]] = []
        self.dropped = 0

    def reported(self, report: Mapping[str, Any], wall_ns: int) -> None:
        """One more REPORT, which came at `wall_ns`; its own clock is preferred. Looks of a probe change nothing."""
        limits, clock = report.get("limits"), report.get("clock")
        if not isinstance(limits, dict) or limits.get("probe") is True:
            return
        now_ns = _time_ns(clock.get("realtime_ns") if isinstance(clock, dict) else None) or wall_ns
        is_open = bool(self.intervals) and not self.intervals[-1]["until_ns"]
        if limits.get("reduced") is not True:
            self.ended(now_ns)
            return
        row = _row(limits, now_ns)
        if is_open:
            self.intervals[-1].update(_worse(self.intervals[-1], row))
            return
        self.intervals.append(row)
        self.dropped += max(0, len(self.intervals) - MOST_INTERVALS)
        del self.intervals[:-MOST_INTERVALS]

    def ended(self, now_ns: int) -> None:
        """Full again, or the run is over."""
        if self.intervals and not self.intervals[-1]["until_ns"]:
            self.intervals[-1]["until_ns"] = max(now_ns, self.intervals[-1]["from_ns"])


def _row(limits: Mapping[str, Any], now_ns: int) -> dict[str, Any]:
    kept = limits.get("slice")
    reason = limits.get("reason")
    return {
        "from_ns": _time_ns(limits.get("since_ns")) or now_ns,
        "until_ns": 0,
        "slice": kept if kept in ("full", "headers") or type(kept) is int else "full",
        "heavy_flows": flows if type(flows := limits.get("heavy_flows")) is int else 0,
        "heavy_fraction": _fraction(limits.get("heavy_fraction")),
        "sample": _fraction(limits.get("sample")),
        "paused": limits.get("paused") is True,
        "reason": printable(reason) if isinstance(reason, str) else "",
    }


def _worse(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The least that was kept in one interval; the reason is that of its beginning."""
    return {
        "slice": other["slice"] if one["slice"] == "full" else one["slice"],
        "heavy_flows": max(one["heavy_flows"], other["heavy_flows"]),
        "heavy_fraction": min(one["heavy_fraction"], other["heavy_fraction"]),
        "sample": min(one["sample"], other["sample"]),
        "paused": one["paused"] or other["paused"],
    }


def printable(text: str) -> str:
    """Short, and without control characters."""
    short = text[:MOST_REASON_LENGTH]
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in short)


def _time_ns(value: Any) -> int:
    return value if type(value) is int and 0 < value < 1 << 63 else 0


def _fraction(value: Any) -> float:
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else 1.0
