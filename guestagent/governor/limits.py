"""The governor's words: what may be spent, what was read, and the fidelity that follows. Frozen data, no decisions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from math import inf
from typing import NamedTuple

from guestagent.model import Selection

RECORD_BYTES = 96
"""What a record takes in the ring, and so in a stream, beside its frame: 92 bytes of headers, and padding to 8."""
DEFAULT_CPU_PERCENT = 5.0
"""Of the whole VM: the share that operators accept for an agent; vendors report 2 to 30."""
DEFAULT_BYTES_PER_SECOND = 200e6 / 8
"""Where the link speed is unknown, as on virtio."""
DEFAULT_LINK_SHARE = 0.1
FULL_PACKET_BYTES = 1400.0
"""Of a stream, or of what a tunnel makes of a super-packet, on Ethernet: less than 1,514, since a write ends in a part
of one; 1,063 packets were seen in place of 1,000 full ones. With a larger MTU they are fewer."""
OWN_CORES = 0.7
"""The agent is one thread; beyond this its ring overflows in the pauses that the scheduler gives it."""


class Limits(NamedTuple):
    """What the capture filter lets through and how fast it may leave: the governor's only output.

    A tuple, as every tick makes some dozen of them, and a dataclass takes four times as long to be replaced.
    """

    slice: str | int = "full"
    """`full`, `headers`, or a number of bytes of each frame."""
    heavy: tuple[int, ...] = ()
    """Hashes of the flows of which only headers are kept."""
    heavy_fraction: float = 1.0
    """Of the packets of heavy flows; SYN, FIN and RST are always kept."""
    sample: float = 1.0
    """The part of all other flows that is kept, whole flows by their hash."""
    paused: bool = False
    byte_cap: float = inf
    """Bytes/s that may leave, for the token bucket."""
    packet_cap: float = inf
    """Records/s that may leave."""
    reason: str = ""
    """One sentence on why fidelity is reduced; empty where it is not."""
    since: float = 0.0
    """Monotonic seconds when fidelity was first reduced; meaningful with a reason."""
    is_probe: bool = False
    """In force for a moment, to see what sampling or a pause hides."""

    @property
    def selection(self) -> Selection:
        """What these limits ask of the filter."""
        fraction = self.heavy_fraction if self.heavy else 1.0
        return Selection(self.slice, self.sample, self.heavy, fraction, self.paused)


class Rung(Enum):
    """One way to shed, from the one that tells least to the one that tells all."""

    HEAVY = "heavy flows cut to headers"
    THIN = "a fraction of the heavy flows' packets"
    HEADERS = "headers of every packet"
    SAMPLE = "whole flows sampled"
    PAUSE = "capture paused"


DEFAULT_ORDER = (Rung.HEAVY, Rung.THIN, Rung.HEADERS, Rung.SAMPLE, Rung.PAUSE)

FLOORS: dict[str, frozenset[Rung]] = {
    "never below headers": frozenset({Rung.THIN, Rung.SAMPLE, Rung.PAUSE}),
    "never sample": frozenset({Rung.SAMPLE}),
    "never slice": frozenset({Rung.HEAVY, Rung.THIN, Rung.HEADERS}),
}
"""What each floor rules out, though a budget may break by it. `never slice` rules thinning out, too, as the kernel cuts
what it thins."""


def shedding_order(order: Sequence[Rung] = DEFAULT_ORDER, floors: Sequence[str] = ()) -> tuple[Rung, ...]:
    """The rungs that may be used, in their order."""
    forbidden = frozenset().union(*(FLOORS[floor] for floor in floors))
    return tuple(rung for rung in order if rung not in forbidden)


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a run may take from its VM; infinite where the operator gave no bound."""

    cpu_percent: float = DEFAULT_CPU_PERCENT
    """Of the VM, all cores together: own time and the kernel's time that is charged to others."""
    bytes_per_second: float = DEFAULT_BYTES_PER_SECOND
    packets_per_second: float = inf
    """Records, and on the wire what carries them."""
    yields: bool = True
    """Step back while the VM is under pressure."""
    follows_collector: bool = True
    """Capture no more than the collector takes. Without it the full ring drops what comes, of any flow."""


def budgets_for(
    speed_mbit: int,
    *,
    full: bool = False,
    cpu_percent: float | None = None,
    bytes_per_second: float | None = None,
    packets_per_second: float | None = None,
    yields: bool | None = None,
) -> Budgets:
    """The defaults for a link of this speed (0 unknown), or none with `full`; what is given explicitly holds."""
    rate = speed_mbit * 1e6 / 8 * DEFAULT_LINK_SHARE if speed_mbit > 0 else DEFAULT_BYTES_PER_SECOND
    whole = Budgets(inf, inf, inf, yields=False, follows_collector=False)
    budgets = whole if full else Budgets(bytes_per_second=rate)
    explicit: dict[str, float | bool | None] = {
        "cpu_percent": cpu_percent,
        "bytes_per_second": bytes_per_second,
        "packets_per_second": packets_per_second,
        "yields": yields,
    }
    return replace(budgets, **{key: value for key, value in explicit.items() if value is not None})  # type: ignore[arg-type]


class Traffic(NamedTuple):
    """Running totals of the tapped interfaces."""

    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def packets(self) -> int:
        """Both directions."""
        return self.packets_in + self.packets_out

    @property
    def bytes(self) -> int:
        """Both directions."""
        return self.bytes_in + self.bytes_out

    def since(self, before: "Traffic") -> "Traffic":
        """What was counted in between; a device made anew begins at nought."""
        return Traffic(
            max(0, self.packets_in - before.packets_in),
            max(0, self.packets_out - before.packets_out),
            max(0, self.bytes_in - before.bytes_in),
            max(0, self.bytes_out - before.bytes_out),
        )


class Counters(NamedTuple):
    """Running totals and levels of the capture and the link, as of one tick."""

    captured: int = 0
    """Records that the kernel's filter accepted (tp_packets), all interfaces."""
    traffic: Traffic | None = None
    """None where it can't be read; rejected packets are then unknown and cost nothing."""
    acked_bytes: int = 0
    """Bytes that the collector acknowledged."""
    ring_bytes: int = 0
    ring_fill: float = 0.0
    """Fraction of the fullest ring that holds records: on loan *and* retired but not yet taken."""
    ack_lag_seconds: float = 0.0
    """Age of the oldest unacknowledged frame."""
    record_bytes: int = RECORD_BYTES
    """What a record takes where it leaves, beside its frame."""
    copies: int = 1
    """That leave under the same caps."""
    waiting_bytes: int = 0
    """Ring bytes that were retired and not yet taken, as while a cap delays them."""


class Usage(NamedTuple):
    """What the meter read. Running totals, but for `running`; None where this host does not say."""

    cores: int = 1
    own_seconds: float | None = None
    """CPU time of this process."""
    stalled_seconds: float | None = None
    """/proc/pressure/cpu: time in which some task waited for a CPU."""
    stolen_seconds: float | None = None
    """CPU seconds that the hypervisor gave to others, all cores."""
    running: int | None = None
    """Tasks that run or wait for a CPU at this moment, without ours."""
    retransmitted: int | None = None
    """Segments that our own link sent again."""
