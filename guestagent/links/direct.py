"""The link of `--to vxlan://...` and the other tunnels: straight to a sensor, with no collector beside it.

It walks the records of each block, which the other links leave to the collector, and costs accordingly. A record counts
as delivered once the kernel has its frames and nothing says that the sensor is gone: a tunnel has no acknowledgements.
"""

from collections.abc import Mapping, Sequence

from guestagent.capture.block import (
    LAYOUT_VIRTIO,
    PACKET_OUTGOING,
    STATUS_VLAN_TPID_VALID,
    STATUS_VLAN_VALID,
    VIRTIO,
    walk,
)
from guestagent.encap.segment import NO_OFFLOAD
from guestagent.endpoint import Endpoint
from guestagent.links.owner import LinkOwner, LinkState, OnTheWire
from guestagent.links.spread import Spread
from guestagent.loop import Loop
from guestagent.tapstream.frames import BLOCK_PREFIX, BLOCK_PREFIX_BYTES, HEADER, HEADER_BYTES, Kind
from guestagent.tapstream.hello import CollectorHello
from guestagent.tapstream.session import Pending

NAME = "direct"
"""Of the collector that is not there, where the desk asks for one."""
MOST_FRAMES_PER_TURN = 4
"""1 MB of ring, a few milliseconds of work per packet; ticks must keep their time."""
RETRY_SECONDS = 0.001
"""How soon a full socket is tried again."""
_TPID_8021Q = 0x8100


class DirectLink:
    """See `links.owner.Link` for the contract."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        owner: LinkOwner,
        loop: Loop,
        *,
        mode: str = "balance",
        oversize: str = "split",
        keys: Mapping[str, int] | None = None,
        allow_cleartext: bool = False,
    ) -> None:
        self.state = LinkState(False, "not yet open")
        self.is_blocked = False
        self._owner = owner
        self._spread = Spread(endpoints, mode, oversize, loop, owner, allow_cleartext=allow_cleartext)
        self._keys = keys or {}
        self._about_keys: dict[int, tuple[int | None, int | None]] = {}
        self._retry_at = 0.0
        self._sequence = 0
        self._interface: int | None = None
        """Of the block whose records are on their way."""
        self._stale: dict[str, int] = {}
        self._lost: dict[str, int] = {}
        """Counts by interface id, as an ACK carries them."""
        self._has_virtio = owner.hello().layout == LAYOUT_VIRTIO
        owner.resumed(CollectorHello(NAME, "", None, {}))

    @property
    def on_the_wire(self) -> OnTheWire:
        """Frames in tunnels."""
        return self._spread.on_the_wire

    # -- time -----------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """When the sensors are asked after, or a full socket is tried again."""
        return min(self._spread.due_at, self._retry_at) if self.is_blocked else self._spread.due_at

    def tick(self, now: float) -> None:
        """See how the sensors are. `pump` tries a full socket again: it alone stands behind the governor's look."""
        self._spread.tick(now)
        self._tell()

    def _tell(self) -> None:
        trouble = self._spread.trouble()
        connected = any(one.is_well for one in self._spread.destinations)
        text = trouble or f"sending to {', '.join(one.name for one in self._spread.destinations)}"
        self.state.destinations = self._spread.describe()
        if (connected, text) != (self.state.connected, self.state.text):
            self.state.reconnects += self.state.connected and not connected
            self.state.connected, self.state.text = connected, text
            self._owner.link_changed(connected and not trouble, text)

    # -- out ------------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> bool:
        """Send the next few frames, and tell the desk what became of their records."""
        self.is_blocked = False
        if not self._spread.is_open:
            return False
        taken = held = 0
        while self._drain(now):
            held = self._sequence
            if taken == MOST_FRAMES_PER_TURN:
                break
            pending = self._owner.next_frame(now)
            if pending is None:
                break
            self._load(pending)
            taken += 1
        if held:
            self._owner.acknowledged(held, NAME, {"unsupported_gso": self._stale, "lost_on_link": self._lost})
        return taken == MOST_FRAMES_PER_TURN

    def _drain(self, now: float) -> bool:
        """Send what waits; False where the socket or a cap ends it."""
        while not self._spread.is_empty:
            allowance = self._owner.allowance(now)
            if allowance <= 0:
                return False
            before = self._spread.further_frames
            sent_bytes = self._spread.flush(allowance)
            self._owner.spent(sent_bytes, self._spread.further_frames - before)
            self.state.sent_bytes = self._spread.frame_bytes
            if self._spread.is_blocked:
                self.is_blocked = True
                self._retry_at = now + RETRY_SECONDS
                return False
        if self._interface is not None:
            if lost := self._spread.settle(now):
                self._count(self._lost, self._interface, lost)
                self._tell()
            self._interface = None
        return True

    def _load(self, pending: Pending) -> None:
        """Queue the records of a BLOCK. To a sensor nothing else means anything; an INFO may tell of another name."""
        self._sequence = pending.sequence
        if pending.kind == Kind.INFO:
            self._about_keys.clear()
        if pending.kind != Kind.BLOCK:
            return
        whole = memoryview(pending.frame)
        _, _, interface, _, _ = HEADER.unpack_from(whole)
        (count,) = BLOCK_PREFIX.unpack_from(whole, HEADER_BYTES)
        self._interface = interface
        records = whole[HEADER_BYTES + BLOCK_PREFIX_BYTES :] if pending.body is None else pending.body
        self._add(records, count, interface)

    def _add(self, records: memoryview, count: int, interface: int) -> None:
        add, unpack, has_virtio = self._spread.add, VIRTIO.unpack_from, self._has_virtio
        key_in, key_out = self._keys_of(interface)
        stale = 0
        for record in walk(records, count):
            if record is None:
                stale += 1
                continue
            _, _, original, status, start, stop, tci, tpid, kind = record
            virtio, tag = NO_OFFLOAD, None
            if has_virtio and (records[start - VIRTIO.size] | records[start - VIRTIO.size + 1]):
                virtio = unpack(records, start - VIRTIO.size)
            if status & STATUS_VLAN_VALID:
                tag = (tci, tpid if status & STATUS_VLAN_TPID_VALID else _TPID_8021Q)
            add((records[start:stop], virtio, original, tag), key_out if kind == PACKET_OUTGOING else key_in)
        if stale:
            self._count(self._stale, interface, stale)

    def _keys_of(self, interface: int) -> tuple[int | None, int | None]:
        """Keys of what comes in and what goes out; None: the URL's."""
        found = self._about_keys.get(interface)
        if found is None:
            names = {one.id: one.name for one in self._owner.hello().interfaces}
            name = names.get(interface, "")
            found = self._about_keys[interface] = (self._key(name, "in"), self._key(name, "out"))
        return found

    def _key(self, name: str, direction: str) -> int | None:
        places = (f"{name} {direction}", name, direction)
        return next((self._keys[place] for place in places if place in self._keys), None)

    @staticmethod
    def _count(counts: dict[str, int], interface: int, more: int) -> None:
        counts[str(interface)] = counts.get(str(interface), 0) + more

    # -- the end --------------------------------------------------------------------------------------------------

    def retransmitted(self) -> int | None:
        """Nothing is sent twice."""
        return None

    def finish(self, reason: str) -> None:
        """A sensor hears no goodbye; the counters are brought up to date."""
        self.state.destinations = self._spread.describe()

    def close(self) -> None:
        """Give back all descriptors."""
        self._spread.close()
