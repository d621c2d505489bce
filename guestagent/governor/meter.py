"""What psutil and /proc know of the host, in the governor's words; the only file of this room that reads anything."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from guestagent.governor.limits import Traffic, Usage

MOST_BYTES = 512
"""Of /proc/loadavg and /proc/pressure/cpu: they have one and two lines."""


def interface_bytes(names: Iterable[str]) -> int:
    """Bytes that these interfaces received and sent since they were made."""
    return sum(one.bytes_recv + one.bytes_sent for one in _counters(names))


def interface_packets(names: Iterable[str]) -> int:
    """Packets that these interfaces received and sent since they were made."""
    return sum(one.packets_recv + one.packets_sent for one in _counters(names))


def interface_traffic(names: Iterable[str]) -> Traffic | None:
    """Packets and bytes of these interfaces, by direction; None where none of them is counted."""
    found = _counters(names)
    if not found:
        return None
    return Traffic(
        sum(one.packets_recv for one in found),
        sum(one.packets_sent for one in found),
        sum(one.bytes_recv for one in found),
        sum(one.bytes_sent for one in found),
    )


def _counters(names: Iterable[str]) -> list[Any]:
    counters = psutil.net_io_counters(pernic=True)
    return [counters[name] for name in names if name in counters]


class Meter:
    """Reads the host's CPU. Files that this kernel lacks are remembered as missing and not asked for again."""

    def __init__(self, proc: str = "/proc") -> None:
        self.cores = psutil.cpu_count() or 1
        self._loadavg = _open(Path(proc, "loadavg"))
        self._pressure = _open(Path(proc, "pressure/cpu"))

    def read(self, retransmitted: int | None = None) -> Usage:
        """One reading; `retransmitted` is the link's own count, passed on."""
        return Usage(
            cores=self.cores,
            # The process's clock as psutil reads it has ticks of 10 ms, a tenth of our tick; this one counts ns.
            own_seconds=time.process_time(),
            stalled_seconds=_stalled_seconds(_text(self._pressure)),
            stolen_seconds=getattr(psutil.cpu_times(), "steal", None),
            running=_running(_text(self._loadavg)),
            retransmitted=retransmitted,
        )

    def close(self) -> None:
        """Give the descriptors back; idempotent."""
        for descriptor in (self._loadavg, self._pressure):
            if descriptor is not None:
                os.close(descriptor)
        self._loadavg = self._pressure = None


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _text(descriptor: int | None) -> str:
    """A file of /proc from its start; kernels with pressure stall information switched off fail to read it."""
    try:
        return "" if descriptor is None else os.pread(descriptor, MOST_BYTES, 0).decode("ascii", "replace")
    except OSError:
        return ""


def _stalled_seconds(text: str) -> float | None:
    """Of `some avg10=8.21 avg60=30.81 avg300=22.13 total=396986905`."""
    first = text.partition("\n")[0]
    total = first.rpartition("total=")[2] if first.startswith("some ") else ""
    return int(total) / 1e6 if total.isdecimal() else None


def _running(text: str) -> int | None:
    """Of `0.20 0.18 0.12 3/345 11206`: three, and one of them is this process reading."""
    fields = text.split()
    number = fields[3].partition("/")[0] if len(fields) > 3 else ""
    return max(0, int(number) - 1) if number.isdecimal() else None
