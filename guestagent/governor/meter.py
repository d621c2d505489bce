"""What psutil knows of the host, in the governor's words; the only file of this room that reads anything."""

from collections.abc import Iterable
from typing import Any

import psutil


def interface_bytes(names: Iterable[str]) -> int:
    """Bytes that these interfaces received and sent since they were made."""
    return sum(one.bytes_recv + one.bytes_sent for one in _counters(names))


def interface_packets(names: Iterable[str]) -> int:
    """Packets that these interfaces received and sent since they were made."""
    return sum(one.packets_recv + one.packets_sent for one in _counters(names))


def _counters(names: Iterable[str]) -> list[Any]:
    counters = psutil.net_io_counters(pernic=True)
    return [counters[name] for name in names if name in counters]
