"""What a link asks of its owner, the agent's desk; every kind of link speaks to it in these words alone."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from guestagent.model import Exclusion
from guestagent.tapstream.hello import AgentHello, CollectorHello
from guestagent.tapstream.lease import Lease
from guestagent.tapstream.session import Pending


@dataclass(slots=True)
class LinkState:
    """How the link is, in a sentence for status and logs."""

    connected: bool
    text: str
    reconnects: int = 0
    sent_bytes: int = 0
    """Of frames, without the headers of the packets that carry them."""
    retransmitted: int = 0
    """Segments that the kernel sent again, of all connections."""
    trouble: str = ""
    """What is wrong with the path while it carries."""
    destinations: list[dict[str, Any]] = field(default_factory=list)
    """Each collector or sensor, by preference: which one serves, or its counters."""

    @property
    def copies(self) -> int:
        """How many streams carry each frame at this moment: `sent_bytes` are of all of them."""
        return max(1, sum(bool(one.get("serves")) for one in self.destinations))


class OnTheWire(NamedTuple):
    """What the governor has to reckon with, beside what is in the ring."""

    record_bytes: int | None = None
    """What a record takes beside its frame; None where it leaves as it is in the ring."""
    copies: int = 1
    """That leave under the same caps."""


class LinkOwner(Protocol):
    """The desk behind a link: it holds ring, window and ledger."""

    def hello(self) -> AgentHello:
        """This run, as of now."""

    def exclude(self, exclusion: Exclusion) -> None:
        """Called before a connection is made: the capture must not see it from its first packet on."""

    def readmit(self, exclusion: Exclusion) -> None:
        """Called when nothing of ours goes there any more."""

    def resumed(self, answer: CollectorHello) -> None:
        """A collector took the run: settle what it holds, send the rest from the start."""

    def next_frame(self, now: float) -> Pending | None:
        """The next frame to send, or None while there is none, or a cap doesn't let it go."""

    def allowance(self, now: float) -> float:
        """How many bytes may leave at this moment."""

    @property
    def cap_bytes_per_second(self) -> float:
        """What may leave through each connection in the long run; infinite without a cap."""

    def spent(self, wire_bytes: float, further_packets: int = 0) -> None:
        """So many left, with the headers of the packets that carry them; and packets beyond one for each record."""

    def leased(self, lease: Lease, now: float) -> None:
        """The collector says whose packets their own agents copy."""

    def acknowledged(self, sequence: int, collector_id: str, notes: dict[str, Any]) -> None:
        """Everything up to `sequence` is safe; `notes` are the ACK's counts and remarks."""

    def link_changed(self, connected: bool, text: str) -> None:
        """The link came, went or waits; `text` is a sentence."""


class Link(Protocol):
    """A way to a collector, or to several."""

    @property
    def state(self) -> LinkState:
        """How it is."""

    @property
    def on_the_wire(self) -> OnTheWire:
        """What becomes of records there."""

    @property
    def is_blocked(self) -> bool:
        """Was the way full at the last pump? Waiting would cost throughput."""

    def tick(self, now: float) -> None:
        """Do what time asks for, but take no new frame: only `pump` comes behind the governor's look at new blocks."""

    def deadline(self) -> float:
        """When `tick` has to be called next, monotonic seconds."""

    def retransmitted(self) -> int | None:
        """Segments that were sent again since the connection was made; None without one."""

    def pump(self, now: float) -> bool:
        """Send what can be sent; True where more could go at once."""

    def finish(self, reason: str) -> None:
        """Say goodbye; the rest of the drain is the desk's."""

    def close(self) -> None:
        """Give back descriptors; idempotent."""
