"""Numbers as people read them, and the live line on a terminal."""

import shutil
import sys
import time
from typing import Any

from guestagent.model import InterfaceLedger

_PREFIXES = ("", "k", "M", "G", "T")


def scaled(value: float, unit: str) -> str:
    """1234567, "bit/s" -> "1.23 Mbit/s"."""
    size = 0
    while abs(value) >= 999.5 and size < len(_PREFIXES) - 1:
        value /= 1000
        size += 1
    # As it will read: 9.996 is 10.0.
    digits = 0 if size == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {_PREFIXES[size]}{unit}"


def ledger_sentence(ledger: dict[str, Any]) -> str:
    """The ledger in one line; losses only where there are some."""
    losses = ("capped", "dropped_by_ring", "unsupported_gso", "lost_on_link", "in_flight")
    keys = ["captured", "delivered", *(key for key in losses if ledger.get(key))]
    return ", ".join(f"{key.replace('_', ' ')} {ledger[key]:,}" for key in keys)


def limits_sentence(limits: dict[str, Any]) -> str:
    """What is kept of what crosses the interface, and where fidelity is reduced, why and since when."""
    chosen = f", filter {limits['filter']!r}" if limits["filter"] else ""
    kept = f", {limits['keep']:.0%} of the flows" if limits["keep"] < 1 else ""
    if not limits["reduced"]:
        return f"slice {limits['slice']}{chosen}{kept}, as asked for: nothing is reduced"
    return f"reduced since {clock_time(limits['since_ns'])}: {limits['reason']}{chosen}{kept}"


def limits_word(limits: dict[str, Any]) -> str:
    """The limits in force for a live line; empty for a copy as asked for."""
    if not limits["reduced"]:
        return ""
    if limits["paused"]:
        return "paused"
    pieces = [f"{limits['heavy_flows']} heavy cut"] if limits["heavy_flows"] else []
    pieces += ["headers"] if limits["slice"] == "headers" else []
    pieces += [f"{limits['sample']:.1%} of flows"] if limits["sample"] < 1 else []
    return ", ".join(pieces) or "reduced"


def clock_time(time_ns: int) -> str:
    """A wall-clock time in ISO 8601, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_ns // 1_000_000_000))


class LiveLine:
    """One line that is written over and over on standard error, where that is a terminal."""

    def __init__(self) -> None:
        self.is_on = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replace the line."""
        if self.is_on:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\033[K{text[:width]}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if self.is_on:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


class RateLine:
    """What happened since the last look, in one line."""

    def __init__(self) -> None:
        self._last: tuple[float, int, int, float] | None = None

    def line(self, now: float, ledger: InterfaceLedger, held_fraction: float, link: str) -> str:
        """Rates since the last call; zero at the first."""
        cpu = time.process_time()
        then, captured, delivered_bytes, cpu_then = self._last or (now - 1.0, 0, 0, cpu)
        seconds = max(now - then, 1e-3)
        self._last = (now, ledger.captured, ledger.delivered_bytes, cpu)
        return (
            f"{scaled((ledger.captured - captured) / seconds, 'packets/s')}  "
            f"{scaled(8 * (ledger.delivered_bytes - delivered_bytes) / seconds, 'bit/s')}  "
            f"lost {ledger.dropped_by_ring + ledger.unsupported_gso:,}  ring {held_fraction:.0%}  "
            f"cpu {100 * (cpu - cpu_then) / seconds:.1f} %  {link}"
        )
