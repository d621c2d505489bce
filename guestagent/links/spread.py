"""Copies over several sensors: each flow to one of them, or every copy to all. Agent and relay share it.

Balanced, a flow goes to the sensor that wins its rendezvous among those that are well: losing one moves its flows
alone, and they return with it. Where none is well, copies go where they would go if all were: they are the test that
tells when one is back, and count as lost meanwhile.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

from guestagent.encap.flow import flow_hash, pick, source_port
from guestagent.endpoint import Endpoint
from guestagent.links.destination import CHECK_SECONDS, Captures, Destination
from guestagent.links.owner import OnTheWire
from guestagent.links.way import Lane, Record, Way
from guestagent.loop import Loop

MOST_ROUTES = 4096
"""Flows whose way is remembered, some 200 bytes each."""


class Spread:
    """The sensors of one run."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        mode: str,
        policy: str,
        loop: Loop,
        captures: Captures,
        *,
        allow_cleartext: bool = False,
    ) -> None:
        self.destinations = [
            Destination(one, policy, loop, captures, allow_cleartext=allow_cleartext) for one in endpoints
        ]
        self.due_at = 0.0
        self._is_replicate = mode == "replicate"
        self._by_name: dict[str, Way] = {}
        self._names: tuple[str, ...] = ()
        self._keys = {one.name: one.endpoint.key for one in self.destinations}
        self._routes: dict[int, list[tuple[Way, Lane, int]]] = {}
        """Way, lane and key by flow hash, as long as the same sensors are well."""
        self._settled: dict[str, tuple[int, int]] = {}
        """Records that each way had taken, and lost, by the last `settle`."""

    @property
    def is_open(self) -> bool:
        """Is there any way out?"""
        return bool(self._names)

    @property
    def is_empty(self) -> bool:
        """Has all left that was added?"""
        return all(way.is_empty for way in self._by_name.values())

    @property
    def is_blocked(self) -> bool:
        """Does the kernel take no more at the moment?"""
        return any(way.is_blocked for way in self._by_name.values())

    @property
    def on_the_wire(self) -> OnTheWire:
        """By the dearest way."""
        copies = max(1, len(self._by_name)) if self._is_replicate else 1
        return OnTheWire(max((way.record_bytes for way in self._by_name.values()), default=None), copies)

    @property
    def frame_bytes(self) -> int:
        """Of the frames sent so far, without what is around them; of copies to all, one."""
        sizes = [way.frame_bytes for way in self._by_name.values()]
        return max(sizes, default=0) if self._is_replicate else sum(sizes)

    @property
    def further_frames(self) -> int:
        """Frames sent so far beyond one for each record: of super-packets, and of copies to all."""
        records = [way.records for way in self._by_name.values()]
        counted = max(records, default=0) if self._is_replicate else sum(records)
        return sum(way.frames for way in self._by_name.values()) - counted

    def tick(self, now: float) -> None:
        """Open and judge the sensors, once a second."""
        if now >= self.due_at:
            self.due_at = now + CHECK_SECONDS
            for one in self.destinations:
                one.tick(now)
            self.choose()

    def choose(self) -> None:
        """Send to those that are well from now on."""
        self._by_name = {one.name: one.way for one in self.destinations if one.way}
        well = tuple(one.name for one in self.destinations if one.is_well)
        self._names = tuple(self._by_name) if self._is_replicate or not well else well
        self._routes.clear()

    def add(self, record: Record, key: int | None = None) -> None:
        """Queue one record; without a `key` under that of the URL. Its frame must not change before it has left."""
        value = flow_hash(record[0])
        routes = self._routes.get(value)
        if routes is None:
            routes = self._route(value)
        for way, lane, usual_key in routes:
            way.add(record, lane, usual_key if key is None else key)

    def _route(self, value: int) -> list[tuple[Way, Lane, int]]:
        if len(self._routes) >= MOST_ROUTES:
            self._routes.clear()
        names = self._names if self._is_replicate else (pick(value, self._names),)
        routes = self._routes[value] = []
        for name in names:
            way = self._by_name[name]
            routes.append((way, way.lanes[source_port(value) % len(way.lanes)], self._keys[name]))
        return routes

    def flush(self, allowed_bytes: float = inf) -> int:
        """Send what waits, or as much as may leave; the bytes that it takes on the wire."""
        sent_bytes = 0
        for way in self._by_name.values():
            if not way.is_empty and allowed_bytes > sent_bytes:
                sent_bytes += way.flush(allowed_bytes - sent_bytes)
        return sent_bytes

    def keep(self, most_bytes: int) -> None:
        """The records are about to go: each way copies what waits, so many bytes at most, and loses the rest."""
        for way in self._by_name.values():
            way.keep(most_bytes)

    def settle(self, now: float) -> int:
        """All that was added has left: how many of its records were lost, because of no room or no way.

        Of copies to all a record counts as lost where no sensor can have it.
        """
        changed, lost = False, []
        for one in self.destinations:
            if one.way is None:
                continue
            was_gone = one.is_gone
            one.judge(now)
            changed |= was_gone != one.is_gone
            taken, dropped = self._settled.get(one.name, (0, 0))
            self._settled[one.name] = one.way.records, one.way.lost_records
            taken, dropped = one.way.records - taken, one.way.lost_records - dropped
            lost.append(taken + dropped if one.is_unreachable else dropped)
        if changed:
            self.choose()
        return min(lost, default=0) if self._is_replicate else sum(lost)

    def trouble(self) -> str:
        """What is wrong with which sensor; empty where all are well."""
        return "; ".join(f"{one.name}: {one.trouble}" for one in self.destinations if not one.is_well)

    def describe(self) -> list[dict[str, Any]]:
        """For status and reports."""
        return [one.describe() for one in self.destinations]

    def close(self) -> None:
        """Give back all descriptors."""
        for one in self.destinations:
            one.close()
