"""What every capture engine offers to the desk: blocks of records that it lends until they are released."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from guestagent.capture.bpf import Instruction
from guestagent.model import Interface

PRIVATE_BYTES = 24
"""Room that every block keeps in front of its records for a tapstream header: frame and records go out in one call."""


class RetiredBlock(NamedTuple):
    """A block on loan from an engine. `memory[start - PRIVATE_BYTES:end]` is the lender's to write and send."""

    number: int
    memory: memoryview
    start: int
    end: int
    records: int
    first_ns: int
    ring_bytes: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Records that the filter accepted, and those of them that were dropped, since the capture began."""

    captured: int
    dropped: int


class Source(Protocol):
    """One tapped interface. Blocks come in order and are released in order; nothing else is buffered."""

    interface: Interface
    index: int
    """The kernel's index of the device the socket is bound to."""
    layout: str
    capacity_bytes: int
    block_count: int

    def fileno(self) -> int:
        """The descriptor to watch, edge-triggered: an unreleased block keeps it readable."""

    def peek(self, ahead: int = 0) -> RetiredBlock | None:
        """The oldest block not yet taken, or the one so many after it; None while the kernel fills it."""

    def take(self) -> RetiredBlock | None:
        """Like peek, and the next call answers the block after it."""

    def filling(self, blocks: int) -> Callable[[], object]:
        """Whether at least so many retired blocks wait to be taken: a question to ask until the next take or release.

        Always true where the engine can't wait for that.
        """

    def release(self, block: RetiredBlock) -> None:
        """Hand a taken block back; its memory changes from now on."""

    def statistics(self) -> Statistics:
        """Totals so far."""

    def attach(self, program: Sequence[Instruction]) -> None:
        """Swap the filter, on the live socket."""

    def held_blocks(self) -> int:
        """Blocks taken and not yet released."""

    def pending_error(self) -> str:
        """What the kernel reports of the socket, empty where all is well; clears it."""

    def bind(self, index: int) -> None:
        """Bind again, to a device that was made anew. Raises OSError where that is gone, too."""

    def is_bound(self) -> bool:
        """Is it bound to a device that is there?"""

    def pause(self, paused: bool) -> None:
        """See no packets, or see them again; the kernel is then spared their clones, too."""

    def close(self) -> None:
        """Give everything back to the kernel; idempotent."""
