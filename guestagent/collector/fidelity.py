"""When an agent kept less than it was asked to, as its reports tell: intervals, how far, and why. Pure.

What a report says is the peer's word: a value of the wrong type counts as full, text is made printable and short.
"""

import time
from collections.abc import Mapping
from typing import Any

from guestagent.tapstream.frames import printable

MOST_INTERVALS = 100
"""The latest are kept of each run; `dropped` counts the others."""
MOST_REASON_LENGTH = 300
_FULL = "whole again, as asked for"


class Fidelity:
    """Told of each REPORT of a run; `intervals` are rows of the report, until_ns 0 while open."""

    def __init__(self, *, is_known: bool = True) -> None:
        self.intervals: list[dict[str, Any]] = []
        self.dropped = 0
        self._remarked = _FULL if is_known else ""
        """After a restart nobody knows what the file said last, so it is said again."""

    @property
    def is_reduced(self) -> bool:
        """Is less kept now than was asked for?"""
        return bool(self.intervals) and not self.intervals[-1]["until_ns"]

    def reported(self, report: Mapping[str, Any], wall_ns: int) -> str:
        """One more REPORT, which came at `wall_ns`; its own clock is preferred. Looks of a probe change nothing.

        A remark for the capture where other limits came into force, else an empty text.
        """
        limits, clock = report.get("limits"), report.get("clock")
        if not isinstance(limits, dict) or limits.get("probe") is True:
            return ""
        now_ns = _time_ns(clock.get("realtime_ns") if isinstance(clock, dict) else None) or wall_ns
        if limits.get("reduced") is not True:
            self.ended(now_ns)
            return self._remark(_FULL, limits, now_ns)
        row = _row(limits, now_ns)
        if self.is_reduced:
            self.intervals[-1].update(_worse(self.intervals[-1], row))
        else:
            self.intervals.append(row)
            self.dropped += max(0, len(self.intervals) - MOST_INTERVALS)
            del self.intervals[:-MOST_INTERVALS]
        return self._remark(_kept(row), limits, now_ns)

    def _remark(self, kept: str, limits: Mapping[str, Any], now_ns: int) -> str:
        if kept == self._remarked:
            return ""
        self._remarked = kept
        reason = limits.get("reason")
        because = f"; {printable(reason[:MOST_REASON_LENGTH])}" if isinstance(reason, str) and kept != _FULL else ""
        return f"guestagent: since {utc(_time_ns(limits.get('applied_ns')) or now_ns)} {kept}{because}"

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
        "reason": printable(reason[:MOST_REASON_LENGTH]) if isinstance(reason, str) else "",
    }


def _kept(row: Mapping[str, Any]) -> str:
    """What a row's limits keep, every one of them named."""
    if row["paused"]:
        return "paused but for a look each second"
    return (
        f"slice {row['slice']}, {row['sample']:.1%} of the flows, {row['heavy_flows']} heavy flows cut to headers "
        f"and to {row['heavy_fraction']:.1%} of their packets"
    )


def _worse(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The least that was kept in one interval; the reason is that of its beginning."""
    return {
        "slice": other["slice"] if one["slice"] == "full" else one["slice"],
        "heavy_flows": max(one["heavy_flows"], other["heavy_flows"]),
        "heavy_fraction": min(one["heavy_fraction"], other["heavy_fraction"]),
        "sample": min(one["sample"], other["sample"]),
        "paused": one["paused"] or other["paused"],
    }


def utc(time_ns: int) -> str:
    """A wall-clock time in ISO 8601, to the millisecond."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1_000_000:03d}Z"


def _time_ns(value: Any) -> int:
    return value if type(value) is int and 0 < value < 1 << 63 else 0


def _fraction(value: Any) -> float:
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else 1.0
