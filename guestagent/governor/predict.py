"""What a flow's traffic costs under given limits: a few constants, and an own part that learns. Pure.

A packet costs three parties:

| who | what | how we know |
|---|---|---|
| this process | read a block's header, send the block | measured by the kernel for us, so learned |
| others, per captured packet | the clone, the filter, the copy into the ring, its sending | lab figures |
| others, per rejected packet | the clone on egress, the filter | lab figures |

Nothing inside a VM can tell the second and third from the application's own time. So they are charged at the lab's
figures with a margin on top; a machine on which packets cost 40 % more than in the lab then still keeps its budget.

The own part is `a + b x packets + c x bytes` per second. Its three weights follow the measured time by normalised least
mean squares: each half second, the error moves a weight in proportion to what that term contributed, by a third of the
way. A reading can claim an error of half of what was expected at most, and a weight never leaves [0.3, 4] of the lab's:
a suspended VM, a missing reading or a busy neighbour moves little, and what they moved is unlearned in two seconds.
"""

from typing import NamedTuple

from guestagent.governor.limits import RECORD_BYTES
from guestagent.governor.rates import Rates

OWN_SECONDS_PER_PACKET = 0.4e-6
OWN_SECONDS_PER_BYTE = 0.17e-9
"""0.5 µs for a 512-byte packet, 0.17 s for a GB of bulk TCP."""
OWN_IDLE_CORES = 0.006
"""Waking up, two ticks a second, and looks, whatever the packets."""
CAPTURED_IN_SECONDS, CAPTURED_OUT_SECONDS = 0.5e-6, 2.05e-6
"""The ring alone, less the 0.10 µs that are this process's."""
REJECTED_IN_SECONDS, REJECTED_OUT_SECONDS = 0.1e-6, 0.3e-6
"""On egress the kernel clones a packet before it asks the filter."""
REJECTED_SECONDS_PER_BYTE = 6e-12
"""What the application's data pushed out of the caches: 0.2 µs more for each 32 KB, on a VM of one core."""
COPY_SECONDS_PER_BYTE = 0.08e-9
SHARE_MARGIN = 1.3

HEADERS_BYTES = 68
"""Ethernet, IPv4, TCP with timestamps; with IPv6 it is 20 more, with UDP 24 less."""
MOST_HEADERS_BYTES, CUT = 128, 0.8
"""Frames of which less than that was captured were cut to their headers."""

LEARNING_SECONDS, LEARNING_RATE = 0.5, 0.3
"""Readings are summed up for so long: a block is taken in one tick and sent in the next."""
MOST_ERROR = 0.5
WEIGHT_BOUNDS = (0.3, 4.0)


class Cost(NamedTuple):
    """Per second: cores, own and altogether; bytes and records that must leave. Also a bound on each of these."""

    cpu: float = 0.0
    own: float = 0.0
    bytes: float = 0.0
    packets: float = 0.0

    def plus(self, other: "Cost", times: float = 1.0) -> "Cost":
        """The sum; `times` may be negative."""
        return Cost(
            self.cpu + other.cpu * times,
            self.own + other.own * times,
            self.bytes + other.bytes * times,
            self.packets + other.packets * times,
        )

    def times(self, factor: float) -> "Cost":
        """More or less of everything."""
        return Cost(self.cpu * factor, self.own * factor, self.bytes * factor, self.packets * factor)

    def fits(self, bound: "Cost") -> bool:
        """Whether no part is beyond its bound."""
        return (
            self.cpu <= bound.cpu
            and self.own <= bound.own
            and self.bytes <= bound.bytes
            and self.packets <= bound.packets
        )

    def worst(self, bound: "Cost") -> tuple[float, str]:
        """The largest part in units of its bound, and its name."""
        return max((part / max(limit, 1e-9), name) for part, limit, name in zip(self, bound, self._fields, strict=True))


def frame_bytes(slice_: str | int, offered: Rates) -> float:
    """The mean bytes of a frame that a slice keeps; of frames that were seen cut, what was seen of them."""
    original = offered.original_bytes / offered.packets
    if slice_ == "full":
        return original
    if isinstance(slice_, int):
        return min(slice_, original)
    captured = offered.captured_bytes / offered.packets
    return captured if captured < min(MOST_HEADERS_BYTES, CUT * original) else min(HEADERS_BYTES, original)


class CostModel:
    """Predicts; learns what this machine's own part costs."""

    def __init__(self, share_margin: float = SHARE_MARGIN) -> None:
        self._margin = share_margin
        self.weights = (1.0, 1.0, 1.0)
        """Of idling, packets and bytes; learned."""
        self.record_bytes = RECORD_BYTES
        """What a record takes where it leaves, beside its frame."""
        self._readings = [0.0] * 4

    @property
    def idle(self) -> Cost:
        """What running costs without a packet."""
        cores = self.weights[0] * OWN_IDLE_CORES
        return Cost(cores, cores)

    def own_cores(self, packets: float, ring_bytes: float) -> float:
        """This process's time for what it sends."""
        _, packet_weight, byte_weight = self.weights
        return packet_weight * OWN_SECONDS_PER_PACKET * packets + byte_weight * OWN_SECONDS_PER_BYTE * ring_bytes

    def share(self, offered: Rates, keep: float, ring_bytes: float) -> float:
        """The time that others pay for these packets, of which the filter accepts a fraction."""
        rejected = 1 - keep
        return self._margin * (
            offered.packets_in * (keep * CAPTURED_IN_SECONDS + rejected * REJECTED_IN_SECONDS)
            + offered.packets_out * (keep * CAPTURED_OUT_SECONDS + rejected * REJECTED_OUT_SECONDS)
            + offered.original_bytes * rejected * REJECTED_SECONDS_PER_BYTE
            + ring_bytes * COPY_SECONDS_PER_BYTE
        )

    def whole_bytes(self, slice_: str | int, offered: Rates) -> float:
        """What traffic takes under a slice where it leaves, were all of it kept."""
        return offered.packets * (self.record_bytes + frame_bytes(slice_, offered)) if offered.packets > 0 else 0.0

    def price(self, packets: float, ring_bytes: float) -> float:
        """At most what records cost that were taken, in CPU seconds: as if all had gone out."""
        share = self.share(Rates(packets_out=packets), 1.0, ring_bytes)
        return self.own_cores(packets, ring_bytes) + share

    def cost(self, offered: Rates, keep: float, slice_: str | int) -> Cost:
        """Of traffic of which a fraction is kept, sliced."""
        # The mean stands for all sizes: it overrates a slice that cuts some packets and not others, which is safe.
        return self.cost_of(offered, keep, self.whole_bytes(slice_, offered))

    def cost_of(self, offered: Rates, keep: float, whole_bytes: float) -> Cost:
        """The same where it is known how many bytes the whole would take. Linear in all three."""
        kept, ring_bytes = offered.packets * keep, whole_bytes * keep
        own = self.own_cores(kept, ring_bytes)
        share = self.share(offered, keep, ring_bytes)
        return Cost(own + share, own, ring_bytes, kept)

    def learn(self, seconds: float, packets: float, ring_bytes: float, measured_seconds: float) -> None:
        """What this process used while it handled so much."""
        news = seconds, packets, ring_bytes, measured_seconds
        self._readings = [a + b for a, b in zip(self._readings, news, strict=True)]
        seconds, packets, ring_bytes, measured_seconds = self._readings
        if seconds < LEARNING_SECONDS:
            return
        self._readings = [0.0] * 4
        terms = (OWN_IDLE_CORES * seconds, OWN_SECONDS_PER_PACKET * packets, OWN_SECONDS_PER_BYTE * ring_bytes)
        expected = sum(weight * term for weight, term in zip(self.weights, terms, strict=True))
        error = max(-MOST_ERROR * expected, min(MOST_ERROR * expected, measured_seconds - expected))
        step = LEARNING_RATE * error / sum(term * term for term in terms)
        least, most = WEIGHT_BOUNDS
        idle, by_packet, by_byte = (
            max(least, min(most, weight + step * term)) for weight, term in zip(self.weights, terms, strict=True)
        )
        self.weights = idle, by_packet, by_byte
