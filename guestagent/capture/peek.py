"""A look at the first records of a block: which flows they are of, and how large."""

from collections.abc import Iterator
from math import inf
from struct import Struct

from guestagent.capture.block import PACKET_OUTGOING, walk
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
_HEADERS_BYTES = 256
"""As much of a frame as its hash may need."""
_FLOWS_REMEMBERED = 4096


class Peek:
    """Looks with one seed; remembers the flows of usual frames by their fields, before any hash is worked out."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[tuple[int, ...], int] = {}

    def __call__(self, block: RetiredBlock, most: int) -> Iterator[Glance]:
        """The first records of a block, at most so many; of stale ones none."""
        memory = block.memory[block.start : block.end]
        for record in walk(memory, min(most, block.records)):
            if record is None:
                continue
            time_ns, captured, original, _, start, stop, _, _, kind = record
            yield time_ns, self._flow(memory[start:stop]), captured, original, kind == PACKET_OUTGOING

    def _flow(self, frame: memoryview) -> int:
        if len(frame) < _IPV4.size:
            return self._hash(frame)
        fields = _IPV4.unpack_from(frame)
        if fields[:2] != _PLAIN or len(frame) < _WITH_PORTS.get(fields[3], inf):
            return self._hash(frame)
        flow = self._known.get(fields)
        if flow is None:
            if len(self._known) == _FLOWS_REMEMBERED:
                self._known.clear()
            flow = self._known[fields] = self._hash(frame)
        return flow

    def _hash(self, frame: memoryview) -> int:
        flow = flow_hash(frame[:_HEADERS_BYTES], self._seed)
        return NO_FLOW if flow is None else flow
