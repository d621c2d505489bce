"""The governor's hands: what the tap, the link and the host show goes in, filter and caps come out."""

import logging
import time
from collections import deque
from dataclasses import replace
from math import inf
from typing import Any

from guestagent.backstops import warnings
from guestagent.capture.peek import Peek
from guestagent.config import RunConfig
from guestagent.desk import Desk
from guestagent.errors import ConfigError
from guestagent.governor.law import Governor
from guestagent.governor.limits import (
    FULL_PACKET_BYTES,
    OWN_CORES,
    RECORD_BYTES,
    Budgets,
    Counters,
    Limits,
    Rung,
    Traffic,
    budgets_for,
    shedding_order,
)
from guestagent.governor.meter import Meter
from guestagent.links.owner import Link

log = logging.getLogger("guestagent.agent")

RUNGS = {"heavy": Rung.HEAVY, "thin": Rung.THIN, "headers": Rung.HEADERS, "sample": Rung.SAMPLE, "pause": Rung.PAUSE}
"""Names of the config."""
MOST_PEEKS = 3
"""Into the blocks of one turn: a flow counts as heavy once two blocks show it, and in a flood there is little time."""
MOST_LAG_MARKS = 256
"""Ticks whose last frame is remembered, 25 s of them."""


def budgets_of(config: RunConfig, speed_mbit: int) -> Budgets:
    """What the operator allows of each copy; a rate by default only where copies cross the network.

    There a super-packet leaves in many packets, so a cap on packets is one on bytes, too.
    """
    is_sent = config.to[0].scheme != "dir"
    rate = config.rate if config.rate is not None or is_sent else inf
    budgets = budgets_for(
        speed_mbit,
        full=config.full,
        cpu_percent=config.cpu,
        bytes_per_second=rate,
        packets_per_second=config.packets,
        yields=config.yields,
    )
    most_bytes = budgets.packets_per_second * FULL_PACKET_BYTES if is_sent else inf
    return replace(
        budgets,
        bytes_per_second=min(budgets.bytes_per_second, most_bytes) / config.streams,
        packets_per_second=budgets.packets_per_second / config.streams,
    )


class Steering:
    """Looks at what was captured, asks the governor when it is due, and has the desk do what it says."""

    def __init__(self, config: RunConfig, desk: Desk, now: float) -> None:
        self._desk, self._tap = desk, desk.tap
        self._peek = Peek(desk.capture.wish.seed)
        self._streams = config.streams
        self._meter = Meter()
        self._taken = (0, 0)
        self._is_refused = False
        self._sent_marks: deque[tuple[float, int]] = deque(maxlen=MOST_LAG_MARKS)
        """(when, last frame sent by then), as far as not acknowledged."""
        self._follow(config, now)

    def _follow(self, config: RunConfig, now: float, start: Limits | None = None) -> None:
        speed_mbit = max(source.interface.speed_mbit for source in self._tap.sources)
        self.budgets = budgets_of(config, speed_mbit)
        wish = self._desk.capture.wish
        self.governor = Governor(
            self.budgets,
            self._meter.cores,
            now,
            base=Limits(slice=wish.slice, sample=wish.keep),
            order=shedding_order([RUNGS[name] for name in config.shed], config.floor),
            start=start,
        )
        self._set_caps(now)
        for warning in warnings(min(OWN_CORES, self.budgets.cpu_percent / 100 * self._meter.cores)):
            log.warning("%s", warning)

    def renew(self, config: RunConfig, now: float) -> None:
        """Other budgets or another wish; what was shed stays shed until the governor knows better."""
        self._follow(config, now, start=self.governor.steady)
        self._apply(now)

    @property
    def limits(self) -> Limits:
        """What is in force."""
        return self.governor.limits

    @property
    def due_at(self) -> float:
        """When `tick` is wanted."""
        return self.governor.due_at

    @property
    def early_at(self) -> float:
        """From when on it is welcome, if somebody is awake anyway."""
        return self.governor.early_at

    def look(self, now: float) -> None:
        """Tell the governor of blocks that were retired since the last look."""
        blocks = [block for _, block in self._tap.look()]
        if not blocks:
            return
        step = -(-len(blocks) // MOST_PEEKS)
        parts = [blocks[at : at + step] for at in range(0, len(blocks), step)]
        records, ring_bytes = sum(block.records for block in blocks), sum(block.ring_bytes for block in blocks)
        looks = self.governor.arrived(now, records, ring_bytes, len(parts))
        for part in parts:
            samples = self._peek(part[-1], looks) if looks else ()
            self.governor.seen(sum(block.records for block in part), samples)
        self.governor.ring_filled(self._tap.filled_fraction())

    def traffic(self) -> Traffic | None:
        """What the tapped interfaces counted; None where none of them is there."""
        return self._meter.traffic([source.index for source in self._tap.sources])

    def tick(self, now: float, link: Link) -> bool:
        """Ask the governor, obey; whether something is kept otherwise than before, but for a probe."""
        total, wire = self._tap.refresh(), link.on_the_wire
        taken = self._tap.taken_records, total.captured_ring_bytes
        self.governor.taken(taken[0] - self._taken[0], taken[1] - self._taken[1])
        self._taken = taken
        counters = Counters(
            captured=total.captured,
            traffic=self.traffic(),
            acked_bytes=total.delivered_bytes,
            ring_bytes=round(self._tap.ring_bytes * (1 - self._tap.kept_fraction())),
            ring_fill=self._tap.filled_fraction(),
            waiting_bytes=self._tap.waiting_bytes,
            ack_lag_seconds=self._ack_lag_seconds(now),
            record_bytes=wire.record_bytes or RECORD_BYTES,
            copies=wire.copies,
        )
        self.governor.tick(now, counters, self._meter.read(link.retransmitted()))
        return self._apply(now) and not self.limits.is_probe

    def _ack_lag_seconds(self, now: float) -> float:
        """How long ago the oldest frame was sent that is not acknowledged; a tick too little at most."""
        window, marks = self._desk.window, self._sent_marks
        marks.append((now, window.highest_sent))
        while marks and marks[0][1] < window.first_sequence:
            marks.popleft()
        return now - marks[0][0] if marks else 0.0

    def _apply(self, now: float) -> bool:
        self._set_caps(now)
        if self.limits.selection == self._desk.selection._replace(peers=()):
            return False
        try:
            self._desk.select(self.limits.selection)
        except ConfigError as error:  # its memory for filters was made smaller since the start
            if not self._is_refused:
                log.error("less can't be kept than now: %s", error)
            self._is_refused = True
            return False
        self._is_refused = False
        self.governor.applied(now, time.time_ns())
        return True

    def _set_caps(self, now: float) -> None:
        self._desk.gate.set_caps(now, self.limits.byte_cap, self.limits.packet_cap)

    def describe(self, now: float) -> dict[str, Any]:
        """The limits in force and why, as a REPORT and `status` carry them."""
        limits, wish, selection = self.limits, self._desk.capture.wish, self._desk.selection
        return {
            "slice": limits.slice,
            "filter": wish.filter_expression,
            "keep": wish.keep,
            "seed": wish.seed,
            "sample": limits.sample,
            "heavy_flows": len(limits.heavy),
            "heavy_fraction": limits.heavy_fraction,
            "paused": limits.paused,
            "byte_cap": _finite(limits.byte_cap * self._streams),
            "packet_cap": _finite(limits.packet_cap * self._streams),
            "dedupe_peers": len(selection.peers),
            "reduced": bool(limits.reason),
            "reason": limits.reason,
            "since_ns": time.time_ns() - int((now - limits.since) * 1e9) if limits.reason else 0,
            "applied_ns": self._desk.swaps_ns[-1] if self._desk.swaps_ns else 0,
            "probe": limits.is_probe,
        }

    def describe_budgets(self) -> dict[str, Any]:
        """What the operator allows; None where nothing is bounded."""
        return {
            "cpu_percent": _finite(self.budgets.cpu_percent),
            "bytes_per_second": _finite(self.budgets.bytes_per_second * self._streams),
            "packets_per_second": _finite(self.budgets.packets_per_second * self._streams),
            "yield": self.budgets.yields,
        }

    def close(self) -> None:
        """Give the meter's descriptors back."""
        self._meter.close()


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if value < inf else None
