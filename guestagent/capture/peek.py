"""A look at the first records of a block: which flows they are of, and how large."""

from math import inf
from struct import Struct

from guestagent.capture.block import GLANCE, NANOSECONDS, PACKET_OUTGOING, STATUS_USER
from guestagent.capture.flowhash import flow_hash
from guestagent.capture.source import RetiredBlock

NO_FLOW = -1

Glance = tuple[int, int, int, int, bool]
"""Time of the record in ns, flow hash or NO_FLOW, captured bytes, original bytes, whether it went out."""

_IPV4 = Struct(">12xHBx2x2xHxB2xIII")
"""EtherType, version and length, fragment field, protocol, both addresses, both ports of IPv4 without options."""
_PLAIN = (0x0800, 0x45)
_WITH_PORTS = {6: 54, 17: 42}
"""TCP and UDP, and the bytes of a frame that has their whole header: less might have no flow."""
_NO_FIELDS = (0, 0, 0, 0)
"""Of a frame too short for them, or for its ports."""
_HEADERS_BYTES = 256
"""As much of a frame as its hash may need."""
_FLOWS_REMEMBERED = 4096


class Peek:
    """Looks with one seed; remembers the flows of usual frames by their fields, before any hash is worked out."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[tuple[int, ...], int] = {}

    def __call__(self, block: RetiredBlock, most: int) -> list[Glance]:
        """The first records of a block, at most so many; of stale ones none. The kernel's lengths are believed.

        In one loop without a slice: some hundred records a second, each beside an application that has just pushed all
        of this out of the caches.
        """
        memory, at, found = block.memory, block.start, []
        unpack, fields_of, known = GLANCE.unpack_from, _IPV4.unpack_from, self._known
        for _ in range(min(most, block.records)):
            step, sec, nsec, captured, original, status, mac, kind = unpack(memory, at)
            if status & STATUS_USER:
                start = at + mac
                fields = fields_of(memory, start) if captured >= _IPV4.size else _NO_FIELDS
                if captured < _WITH_PORTS.get(fields[3], inf):
                    fields = _NO_FIELDS
                flow = known.get(fields)
                if flow is None:
                    flow = self._meet(memory[start : start + captured], fields)
                found.append((sec * NANOSECONDS + nsec, flow, captured, original, kind == PACKET_OUTGOING))
            at += step
        return found

    def _meet(self, frame: memoryview, fields: tuple[int, ...]) -> int:
        """The flow of a frame whose fields are not known; those of a plain one are known from now on."""
        flow = self._hash(frame)
        if fields[:2] == _PLAIN:
            if len(self._known) == _FLOWS_REMEMBERED:
                self._known.clear()
            self._known[fields] = flow
        return flow

    def _hash(self, frame: memoryview) -> int:
        flow = flow_hash(frame[:_HEADERS_BYTES], self._seed)
        return NO_FLOW if flow is None else flow
