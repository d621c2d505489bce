"""Where records go at once and at most once, beside the file or without one: a TAP device, a relay.

An outlet never holds a run up. What it can't pass on at once it counts.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from guestagent.capture.block import (
    LAYOUT_VIRTIO,
    PACKET_OUTGOING,
    STATUS_VLAN_TPID_VALID,
    STATUS_VLAN_VALID,
    VIRTIO,
    walk,
)
from guestagent.encap.segment import NO_OFFLOAD
from guestagent.model import Interface
from guestagent.tapstream.hello import AgentHello

if TYPE_CHECKING:
    from guestagent.links.way import Record

_TPID_8021Q = 0x8100


class Spout(Protocol):
    """The end of an outlet that belongs to one run."""

    def records(self, interface_id: int, records: memoryview, count: int) -> None:
        """Pass on a run of sound records, which lives until this returns."""

    def interface(self, facts: Interface) -> None:
        """An interface that came up during the run, or changed."""

    def close(self) -> None:
        """The run is over."""


class Outlet(Protocol):
    """A way out that all runs of a collector share."""

    def open_run(self, hello: AgentHello) -> Spout:
        """The end for one run."""

    def tick(self, now: float) -> None:
        """See how the other end is."""

    def deadline(self, now: float) -> float:
        """When `tick` is due."""

    def describe(self) -> dict[str, Any]:
        """For status and report."""

    def close(self) -> None:
        """Give back what is held."""


def unpack(records: memoryview, count: int, layout: str) -> Iterator[tuple["Record", bool]]:
    """Each record of a run that is not stale as encap wants it, and whether it was outgoing."""
    has_virtio = layout == LAYOUT_VIRTIO
    for record in walk(records, count):
        if record is None:
            continue
        _, _, original, status, start, stop, tci, tpid, kind = record
        virtio, tag = NO_OFFLOAD, None
        if has_virtio and (records[start - VIRTIO.size] | records[start - VIRTIO.size + 1]):
            virtio = VIRTIO.unpack_from(records, start - VIRTIO.size)
        if status & STATUS_VLAN_VALID:
            tag = (tci & 0xFFFF, tpid if status & STATUS_VLAN_TPID_VALID else _TPID_8021Q)
        yield (records[start:stop], virtio, original, tag), kind == PACKET_OUTGOING
