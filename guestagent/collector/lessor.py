"""Tells connected agents whose packets they may leave out, as leases.py decides, here or where all workers are seen."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from guestagent.collector.connection import Connection
from guestagent.collector.leases import CHECK_SECONDS, Leases, Standing
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.lease import Lease, encode_lease

Sent = list[tuple[Connection, bytes]]
"""LEASE frames, and to whom."""


class Lessor(Protocol):
    """Asked at each turn of the loop."""

    def due(self, connections: Iterable[Connection], now: float) -> Sent:
        """The LEASE frames to send now."""


class LocalLessor:
    """Of a collector that sees all its agents itself."""

    def __init__(self) -> None:
        self._leases = Leases()

    def due(self, connections: Iterable[Connection], now: float) -> Sent:
        """Decided on the spot."""
        takers = _takers(connections)
        leases = self._leases.due({key: one.run.member for key, one in takers.items() if one.run}, now)
        return [(takers[key], _frame(lease)) for key, lease in leases.items()]


class DistantLessor:
    """Of a worker: it tells how its agents stand and hears what was decided, both through `tell` and `decided`."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._told: dict[str, Standing] = {}
        self._decided: dict[str, bytes] = {}
        self._due_at = 0.0

    def decided(self, leases: Mapping[str, Any]) -> None:
        """Leases by run: (peers, seconds)."""
        self._decided |= {key: _frame(Lease(tuple(peers), seconds)) for key, (peers, seconds) in leases.items()}

    def due(self, connections: Iterable[Connection], now: float) -> Sent:
        """What was decided meanwhile; each CHECK_SECONDS what has changed is told."""
        if now < self._due_at and not self._decided:
            return []
        takers = _takers(connections)
        if now >= self._due_at:
            self._due_at = now + CHECK_SECONDS
            self._tell_changes({key: one.run.member.standing() for key, one in takers.items() if one.run})
        decided, self._decided = self._decided, {}
        return [(takers[key], lease) for key, lease in decided.items() if key in takers]

    def _tell_changes(self, standings: dict[str, Standing]) -> None:
        changed = {key: list(one) for key, one in standings.items() if self._told.get(key) != one}
        gone = list(self._told.keys() - standings.keys())
        self._told = standings
        if changed or gone:
            self._tell({"standings": changed, "gone": gone})


def _takers(connections: Iterable[Connection]) -> dict[str, Connection]:
    """By run: who takes part in a domain."""
    return {one.run.hello.run_id: one for one in connections if one.run and one.run.member.domain}


def _frame(lease: Lease) -> bytes:
    return frames.encode_json(Kind.LEASE, encode_lease(lease))
