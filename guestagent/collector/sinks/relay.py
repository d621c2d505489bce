"""The outlet behind `--relay URL...`: wire-size frames through tunnels to one or more sensors.

The sensors, their health and the balance among them are those of `run --to vxlan://...` (links.spread). What the
kernel can't take at once waits, MOST_WAITING_BYTES for each sensor at most; beyond that it is lost and counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from guestagent.collector.sinks.outlet import unpack
from guestagent.endpoint import Endpoint
from guestagent.links.spread import Spread
from guestagent.loop import Loop
from guestagent.model import Exclusion, Interface
from guestagent.tapstream.hello import AgentHello

MOST_WAITING_BYTES = 4 * 1024 * 1024
RETRY_SECONDS = 0.001
"""How soon a full socket is tried again."""
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"


class Relay:
    """Sends the records of all runs to the sensors."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        loop: Loop,
        *,
        mode: str,
        oversize: str,
        keys: Mapping[str, int],
        allow_cleartext: bool = False,
    ) -> None:
        self._mode, self._keys = mode, keys
        self._loop = loop
        self._own = OwnPackets()
        self._spread = Spread(endpoints, mode, oversize, loop, self._own, allow_cleartext=allow_cleartext)
        self._is_dirty = False
        self.records = 0
        """That were given to a sensor's way."""
        self.lost: Counter[str] = Counter()
        """Records that no sensor got, by reason; the sensors' own counts say more."""
        self._spread.tick(loop.now())

    def open_run(self, hello: AgentHello) -> "RelaySpout":
        """The end for one run."""
        return RelaySpout(self, hello)

    def key_of(self, agent_id: str, interface: str, direction: str) -> int | None:
        """By the most telling name in the config; None: the URL's."""
        places = (
            f"{agent_id}/{interface} {direction}",
            f"{agent_id}/{interface}",
            f"{agent_id} {direction}",
            agent_id,
            direction,
        )
        return next((self._keys[place] for place in places if place in self._keys), None)

    def send(self, records: memoryview, count: int, layout: str, keys: tuple[int | None, int | None]) -> None:
        """Records of one interface under its keys of what came in and what went out."""
        spread, own = self._spread, self._own
        if not spread.is_open:
            self.lost["no_way"] += count
            return
        added = 0
        for record, is_outgoing in unpack(records, count, layout):
            if own.has(record[0]):
                self.lost["loop"] += 1
                continue
            spread.add(record, keys[is_outgoing])
            added += 1
        self.records += added
        self._push()
        if self._is_dirty:
            spread.keep(MOST_WAITING_BYTES)

    def _push(self) -> None:
        self._spread.flush()
        self._is_dirty = not self._spread.is_empty

    def tick(self, now: float) -> None:
        """Send what waits, see how the sensors are."""
        self._spread.tick(now)
        if self._is_dirty:
            self._push()
        if not self._is_dirty and (lost := self._spread.settle(now)):
            self.lost["sensor_gone_or_full"] += lost

    def deadline(self, now: float) -> float:
        """When `tick` is due."""
        return now + RETRY_SECONDS if self._is_dirty else self._spread.due_at

    def describe(self) -> dict[str, Any]:
        """For status and report."""
        return {
            "relay": {
                "mode": self._mode,
                "records": self.records,
                "lost": dict(self.lost),
                "trouble": self._spread.trouble(),
                "destinations": self._spread.describe(),
            }
        }

    def close(self) -> None:
        """Send what can be sent, count the rest, give back all descriptors."""
        self._push()
        self._spread.keep(0)
        self._is_dirty = False
        self.tick(self._loop.now())
        self._spread.close()


class RelaySpout:
    """Where the records of one run go."""

    def __init__(self, relay: Relay, hello: AgentHello) -> None:
        self._relay, self._hello = relay, hello
        self._names = {one.id: one.name for one in hello.interfaces}
        self._known: dict[int, tuple[int | None, int | None]] = {}

    def records(self, interface_id: int, records: memoryview, count: int) -> None:
        """Send a run of records."""
        keys = self._known.get(interface_id)
        if keys is None:
            agent, name = self._hello.agent_id, self._names.get(interface_id, "")
            keys = (self._relay.key_of(agent, name, "in"), self._relay.key_of(agent, name, "out"))
            self._known[interface_id] = keys
        self._relay.send(records, count, self._hello.layout, keys)

    def interface(self, facts: Interface) -> None:
        """Its name may have a key."""
        self._names[facts.id] = facts.name
        self._known.pop(facts.id, None)

    def close(self) -> None:
        """The run is over."""


class OwnPackets:
    """Tells the relay's own tunnel packets, should a tap on their way bring them back: sent again, they would multiply.

    Known as narrowly as a capture leaves its own out: protocol, address and port of the sensor, range of local ports.
    """

    def __init__(self) -> None:
        self._ports: dict[tuple[int, bytes], list[tuple[int, int, int]]] = {}
        """(remote port, first and last local port) by protocol and address; port 0 where there is none."""
        self._addresses: set[bytes] = set()

    def exclude(self, exclusion: Exclusion) -> None:
        """Packets of ours that it names."""
        key, place = self._place(exclusion)
        self._ports.setdefault(key, []).append(place)
        self._addresses.add(key[1])

    def readmit(self, exclusion: Exclusion) -> None:
        """They are ours no more."""
        key, place = self._place(exclusion)
        self._ports[key].remove(place)
        if not self._ports[key]:
            del self._ports[key]
        self._addresses = {address for _, address in self._ports}

    @staticmethod
    def _place(exclusion: Exclusion) -> tuple[tuple[int, bytes], tuple[int, int, int]]:
        last = exclusion.last_local_port or exclusion.local_port
        key = (exclusion.protocol, ip_address(exclusion.remote_address).packed)
        return key, (exclusion.remote_port, exclusion.local_port, last)

    def has(self, frame: memoryview) -> bool:
        """Is this frame one of ours?"""
        kind = bytes(frame[12:14])
        if kind == _IPV4 and bytes(frame[30:34]) in self._addresses:
            return self._is(frame, 23, 30, 34)
        if kind == _IPV6 and bytes(frame[38:54]) in self._addresses:
            return self._is(frame, 20, 38, 54)
        return False

    def _is(self, frame: memoryview, protocol_at: int, at: int, end: int) -> bool:
        places = self._ports.get((frame[protocol_at], bytes(frame[at:end])), ())
        local, remote = int.from_bytes(frame[end : end + 2], "big"), int.from_bytes(frame[end + 2 : end + 4], "big")
        return any(not port or (port == remote and first <= local <= last) for port, first, last in places)
