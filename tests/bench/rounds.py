"""Rounds of cells: in each round every tap meets every load, in another order each time, and the base is one of them.

What is compared was measured within the same round, so a machine that is slower for a minute slows both sides.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guestagent.errors import GuestagentError
from guestagent.lab.hosts import Lab
from tests.bench.clocks import WorkClock, process_seconds
from tests.bench.scene import LOADS, Load, Scene, small
from tests.bench.taps import FOREIGN, TAPS, Running

SETTLE_SECONDS = 0.4
"""After a load: blocks retire within 0.1 s, pipes empty. Part of each CPU reading, of every tap's alike."""
WARM_UP_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Cell:
    """One tap under one load, once."""

    round: int
    offloads: bool
    tap: str
    load: str
    inbound: bool
    seconds: float
    packets: int
    """Of the application, as the peer's interface counted them; with offloads a super-packet is one."""
    app_bytes: int
    copied_bytes: int
    """What the collector's interface received."""
    busy_seconds: float
    tap_seconds: float
    lost: int | None
    """Records that the tap itself admits to have lost; None where it does not tell."""


def measure(
    rounds: int, seconds: float, taps: Sequence[str], offloads: Sequence[bool], say: Callable[[str], None]
) -> tuple[list[Cell], dict[str, str]]:
    """All cells, and why a tap could not be measured here."""
    cells: list[Cell] = []
    missing: dict[str, str] = {}
    with Lab() as lab:
        scenes = [(on, Scene(lab, offloads=on)) for on in offloads]
        for _, scene in scenes:
            for load in LOADS:
                load.make(scene, load.inbound, WARM_UP_SECONDS)
        for number in range(rounds):
            at = number % len(taps)
            for on, scene in scenes:
                for name in [*taps[at:], *taps[:at]]:
                    if name not in missing:
                        say(f"round {number + 1} of {rounds}, offloads {'on' if on else 'off'}: {name}")
                        try:
                            cells += _all_loads(scene, number, on, name, seconds)
                        except GuestagentError as error:
                            if name not in FOREIGN:
                                raise
                            missing[name] = str(error)
                            say(f"{name} can't be measured here: {error}")
    return [one for one in cells if one.tap not in missing], missing


def _all_loads(scene: Scene, number: int, offloads: bool, name: str, seconds: float) -> list[Cell]:
    with TAPS[name](scene) as running:
        small(scene, True, 0.1)  # the first packets of a tap meet cold caches and slow start
        time.sleep(SETTLE_SECONDS)
        return [_one(scene, running, load, number, offloads, name, seconds) for load in LOADS]


def _one(scene: Scene, running: Running, load: Load, number: int, offloads: bool, name: str, seconds: float) -> Cell:
    lost_before = running.lost()
    peer_before, collector_before = scene.counters()
    busy, own, start = WorkClock(), process_seconds(*running.pids), time.monotonic()
    load.make(scene, load.inbound, seconds)
    took = time.monotonic() - start
    time.sleep(SETTLE_SECONDS)
    worked, own = busy.seconds(), process_seconds(*running.pids) - own
    peer, collector = scene.counters()
    lost = running.lost()
    return Cell(
        round=number,
        offloads=offloads,
        tap=name,
        load=load.name,
        inbound=load.inbound,
        seconds=took,
        packets=peer.rx_packets + peer.tx_packets - peer_before.rx_packets - peer_before.tx_packets,
        app_bytes=peer.rx_bytes + peer.tx_bytes - peer_before.rx_bytes - peer_before.tx_bytes,
        copied_bytes=collector.rx_bytes - collector_before.rx_bytes,
        busy_seconds=worked,
        tap_seconds=own,
        lost=None if lost is None or lost_before is None else lost - lost_before,
    )
