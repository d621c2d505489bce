"""What crosses the interfaces, per flow, worked out from what the filter in force lets us see of it. Pure.

    blocks ──► their totals ──────────┐
    peeks  ──► who is in them ────────┴─► composition (who, in which proportion; memory of half a second)
    kernel ──► records captured ──────────► volume (packets/s, exact and at once)        ──► Demand
    kernel ──► packets on the interface ──► volume of what sampling and pause hide

*Composition* is in units of demand: a record of a heavy flow of which one in ten passed counts ten times. Records carry
their original length, so sliced ones tell it, too. Sampling keeps or drops whole flows, so a flow seen under it counts
once, and the unseen ones are added to the rest. A record is weighed by the filter in force when it was captured: the
agent says when it swapped, on the clock of the records. In a surge only what was seen since the last tick counts: a
flood mustn't be shared out among those who were there before. A flow is told apart from the rest once four records of
it were looked at, as fewer are chance, in two blocks: a train of packets fills a look, and its flow may be gone before
any filter could name it. A flow that the filter names stays told apart.

*Volume* is what the kernel captured since the last tick, divided by the part of the composition that the filter keeps.
Both halves scale together, so an error in the sampled part cancels at the operating point. It is at least what the
composition remembers, so demand fades as its parts do, and never more than the interface counted. From sampling and
pause it is at least what the interface counted times the part that was selected when we last saw everything, as in the
last probe.
"""

from collections.abc import Iterable
from heapq import nlargest
from itertools import pairwise
from math import exp, inf

from guestagent.governor.limits import Limits, Traffic
from guestagent.governor.rates import Demand, Rates

COMPOSITION_SECONDS = 0.5
INTERFACE_SECONDS = 1.0
OWN_SEGMENT_BYTES = 1448.0
"""Of our stream, on Ethernet; where counters count super-packets this leaves out too much, which is harmless."""
MOST_FLOWS = 48
"""Remembered one by one from tick to tick; all others are the rest. Three times what a filter can name."""
LEAST_LOOKS, LEAST_PEEKS = 4.0, 1.5
"""Decaying counts of a flow's records in peeks, and of these peeks, below which it is one of the rest."""
SURGE, SURGE_SECONDS = 2.0, 0.1
"""So many times what was expected is a surge, and the memory is short for so long after it."""
LEAST_SURGE_LOOKS = 16
MOST_REGIMES = 16
REGIME_SECONDS = 10.0
"""Blocks of a filter swapped so long ago are no longer expected."""
SEGMENTATION_SLACK = 1.1
"""An interface counts each segment's headers, a super-packet's record only one of them."""
INTERFACE_SLACK = 1.05
UNKNOWN_FRAME_BYTES = 500.0
LEAST_PART = 1e-3
"""Below any fraction that a filter is given."""

NO_FLOW = -1
"""Of what has no flow hash, as ARP; never heavy, as the filter could not name it."""

Sample = tuple[int, int, int, int, bool]
"""Time of the record in ns, flow hash, captured bytes, original bytes, whether it went out."""


class _Regime:
    """A filter, since when it is in force on the records' clock, and what was seen under it since the last tick."""

    __slots__ = ("applied_at", "limits", "seen", "since_ns")

    def __init__(self, since_ns: int, limits: Limits, applied_at: float) -> None:
        self.since_ns, self.limits, self.applied_at = since_ns, limits, applied_at
        self.seen: dict[int, list[float]] = {}


class DemandEstimator:
    """Told of blocks, peeks, filter swaps; asked at each tick."""

    def __init__(self, base: Limits, limits: Limits | None = None) -> None:
        """`base` is what is selected at most; `limits` are in force, where they are others."""
        self._base = base
        self._regimes = [_Regime(0, limits or base, 0.0)]
        self._flows: dict[int, list[float]] = {}
        """Decaying sums of demand: the fields of Rates, how many records were looked at, and in how many peeks."""
        self._total = [0.0] * 4
        self._pending_records = 0
        self._elapsed = 0.0
        """Seconds of which they are the sum, decaying like them."""
        self._surge_seconds = 0.0
        self._unseen_seconds = 0.0
        """Seconds of capture since the last look."""
        self._known_volume = 0.0
        """Packets/s, when everything was last seen."""
        self._interface = Rates()
        self._sent_bytes = 0.0
        self._most = inf
        """Packets/s that the interface has room for: no record without a packet."""
        self._selected = 1.0
        """Records per packet on the interface, when everything was seen."""

    def block(self, records: int, samples: Iterable[Sample] = ()) -> None:
        """A block was retired; `samples` stand for it and for those since the last one with samples."""
        self._pending_records += records
        samples = list(samples)
        if not samples:
            return
        weight = self._pending_records / len(samples)
        self._pending_records = 0
        regimes = iter(self._regimes)
        regime = next(regimes)
        upcoming = next(regimes, None)
        met = set()
        for time_ns, flow, captured, original, outgoing in samples:
            while upcoming is not None and time_ns >= upcoming.since_ns:
                regime, upcoming = upcoming, next(regimes, None)
            entry = regime.seen.get(flow)
            if entry is None:
                entry = regime.seen[flow] = [0.0] * 6
            entry[outgoing] += weight
            entry[2] += weight * original
            entry[3] += weight * captured
            entry[4] += 1
            if flow not in met:
                met.add(flow)
                entry[5] += 1

    def applied(self, now: float, wall_ns: int, limits: Limits) -> None:
        """This filter is in force, since `wall_ns` on the clock of the records."""
        for one in self._regimes:  # the clock was set back: no filter began after the one that follows it
            one.since_ns = min(one.since_ns, wall_ns)
        recent = [old for old, new in pairwise(self._regimes) if new.applied_at > now - REGIME_SECONDS]
        self._regimes = [*recent, self._regimes[-1], _Regime(wall_ns, limits, now)][-MOST_REGIMES:]

    @property
    def is_surging(self) -> bool:
        """Whether what came is so much more than expected that its composition is not trusted yet."""
        return self._surge_seconds > 0

    # -- a tick ---------------------------------------------------------------------------------------------------

    def close(self, seconds: float, captured: int, traffic: Traffic | None, sent_bytes: float = 0.0) -> Demand:
        """The demand of the last `seconds`, in which the last applied filter accepted `captured` records.

        `traffic` is what the interfaces counted meanwhile, and `sent_bytes` our own part of it.
        """
        limits = self._regimes[-1].limits
        interface = self._follow_interface(seconds, traffic, sent_bytes)
        arrived = None if limits.paused else captured / seconds
        expected = self._lately() * self._kept_part(limits)
        self._unseen_seconds += 0.0 if limits.paused else seconds
        self._compose(is_surge=(arrived or 0.0) > SURGE * expected)
        seen = None if arrived is None else arrived / self._kept_part(limits)
        volume = self._volume(seen, interface, limits)
        composed = self._packets()
        if composed <= 0:
            return Demand(rest=self._unknown(volume))
        known = [
            (flow, entry)
            for flow, entry in self._flows.items()
            if flow != NO_FLOW and (flow in limits.heavy or (entry[4] >= LEAST_LOOKS and entry[5] >= LEAST_PEEKS))
        ]
        whole = Rates(*self._total[:4])
        rest = Rates(*(max(0.0, part - sum(entry[i] for _, entry in known)) for i, part in enumerate(whole)))
        scale, rest_scale = self._scales(volume, seen, composed, rest.packets, limits)
        flows = tuple((flow, Rates(*entry[:4]).scaled(scale)) for flow, entry in known)
        # What sampling and pause hide is inferred from the interface; what was remembered would leave its growth over.
        lately = volume if limits.paused or limits.sample < self._base.sample else self._lately()
        return Demand(flows, rest.scaled(rest_scale), self._unselected(whole.scaled(lately / composed)))

    def _scales(
        self, volume: float, seen: float | None, composed: float, rest: float, limits: Limits
    ) -> tuple[float, float]:
        """From the composition to packets/s, for the flows known one by one and for the rest."""
        scale = volume / composed
        if seen is None or seen <= volume or limits.sample >= self._base.sample or composed <= rest:
            return scale, scale
        # More than the interface has room for: the flows were seen, and the unseen beside them were only inferred.
        known_scale = min(seen / composed, volume / (composed - rest))
        return known_scale, max(0.0, volume - known_scale * (composed - rest)) / max(rest, 1e-9)

    def _compose(self, *, is_surge: bool) -> None:
        """Let the old fade and add what was seen; only the largest flows are kept one by one."""
        looks = sum(entry[4] for one in self._regimes for entry in one.seen.values())
        if not looks:
            return
        self._surge_seconds = SURGE_SECONDS if is_surge else max(0.0, self._surge_seconds - self._unseen_seconds)
        is_new = self._surge_seconds > 0 and looks >= LEAST_SURGE_LOOKS
        fade = 0.0 if is_new else exp(-self._unseen_seconds / COMPOSITION_SECONDS)
        self._total = [part * fade for part in self._total]
        self._elapsed = self._elapsed * fade + self._unseen_seconds
        self._unseen_seconds = 0.0
        flows = {flow: [part * fade for part in entry] for flow, entry in self._flows.items()} if fade else {}
        for regime in self._regimes:
            limits, heavy = regime.limits, frozenset(regime.limits.heavy)
            for flow, entry in regime.seen.items():
                # A heavy flow's packets are thinned, so each stands for many. Of others whole flows are left out.
                of_flow = 1 / max(limits.heavy_fraction, LEAST_PART) if flow in heavy else 1.0
                of_total = of_flow if flow in heavy else 1 / max(limits.sample / self._base.sample, LEAST_PART)
                mine = flows.setdefault(flow, [0.0] * 6)
                for i, part in enumerate(entry[:4]):
                    mine[i] += part * of_flow
                    self._total[i] += part * of_total
                mine[4] += entry[4]
                mine[5] += entry[5]
            regime.seen = {}
        self._flows = dict(nlargest(MOST_FLOWS, flows.items(), key=_weight))

    def _packets(self) -> float:
        return self._total[0] + self._total[1]

    def _lately(self) -> float:
        """Packets/s of demand in the memory of the composition."""
        return self._packets() / self._elapsed if self._elapsed else 0.0

    def _kept_part(self, limits: Limits) -> float:
        """The part of the composition that a filter accepts, of its packets."""
        sampled, composed = limits.sample / self._base.sample, self._packets()
        heavy = sum(sum(self._flows[flow][:2]) for flow in limits.heavy if flow in self._flows)
        heavy_part = min(1.0, heavy / composed) if composed > 0 else 0.0
        return max(LEAST_PART, heavy_part * limits.heavy_fraction + (1 - heavy_part) * sampled)

    def _follow_interface(self, seconds: float, traffic: Traffic | None, sent_bytes: float) -> float:
        """Smooth what the interface counted; its packets/s in these seconds."""
        if traffic is None:
            return 0.0
        rates = Rates(traffic.packets_in, traffic.packets_out, traffic.bytes).scaled(1 / seconds)
        fade = exp(-seconds / INTERFACE_SECONDS)
        self._interface = self._interface.scaled(fade).plus(rates.scaled(1 - fade))
        self._most = max(rates.packets, self._interface.packets) * INTERFACE_SLACK
        self._sent_bytes = self._sent_bytes * fade + sent_bytes / seconds * (1 - fade)
        return rates.packets

    def _volume(self, seen: float | None, interface: float, limits: Limits) -> float:
        """Packets/s of demand: the larger of now and lately, or a surge would be shared out too late."""
        hidden = self._selected * self._interface.packets
        if seen is None:
            return hidden or self._known_volume
        if not limits.is_probe:
            seen = max(seen, self._lately())
        seen = min(seen, self._most)
        if limits.sample < self._base.sample and not limits.is_probe:
            return max(seen, hidden)
        self._known_volume = seen
        counted, packets = (interface, seen) if limits.is_probe else (self._interface.packets, self._lately())
        if counted:
            self._selected = min(INTERFACE_SLACK, packets / counted)
        return seen

    def _unknown(self, volume: float) -> Rates:
        """Before the first peek: packets of the interface's mean size, going out, as these cost more."""
        packets = self._interface.packets
        size = self._interface.original_bytes / packets if packets else UNKNOWN_FRAME_BYTES
        return Rates(0.0, volume, volume * size, volume * size)

    def _unselected(self, selected: Rates) -> Rates:
        """What the interface counted beyond demand and our own stream: the less of what packets and bytes say.

        Packets are counted before they are merged, so they say too much beside bulk; bytes do beside small packets.
        """
        counted = self._interface
        if counted.original_bytes <= 0 or counted.packets <= 0:
            return Rates()
        by_bytes = (selected.original_bytes + self._sent_bytes) / counted.original_bytes
        by_packets = (selected.packets + self._sent_bytes / OWN_SEGMENT_BYTES) / counted.packets
        return counted.scaled(max(0.0, 1 - SEGMENTATION_SLACK * max(by_bytes, by_packets)))


def _weight(item: tuple[int, list[float]]) -> float:
    """Both many packets and many bytes make a flow heavy: a packet costs about what 2,500 bytes cost."""
    into, out, original = item[1][:3]
    return (into + out) * 2500 + original
