"""Rounds of cells: in each round every load meets every tap, one tap right after the other, and "off" is one of them.

A pair is a tap and "off" beside one load that runs on meanwhile: a TCP flow has a faster and a slower gait, a third
apart, and keeps it, so a second flow with a tap says nothing about a first without. The order of the taps moves on by
one from load to load and from round to round, and turns round.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from guestagent.errors import GuestagentError
from guestagent.lab.hosts import Lab
from tests.bench.cores import one_for_the_vm
from tests.bench.harm.book import Answers, percentile
from tests.bench.harm.echo import ECHO_PORT, serve_echo
from tests.bench.harm.loads import Capacity, Load, Outlasted, Work, calibrate
from tests.bench.harm.meters import Counted, Meters, Worked
from tests.bench.harm.taps import TAPS
from tests.bench.scene import Scene
from tests.bench.taps import FOREIGN

_CALIBRATION_SECONDS = 2.0
WARM_SECONDS = 2.0
"""A governor has to see a load before it can know it: what is promised is promised after this."""
_CHANGE_SECONDS, _FLOOD_CHANGE_SECONDS = 2.0, 5.0
"""For a tap to start and to end, three times what that takes beside a TCP flow; a flood of datagrams leaves it less."""
_PATIENCES = 1, 2, 4
"""Times that, for a row that took longer: a host may stand still meanwhile."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One tap under one load, once."""

    round: int
    load: str
    tap: str
    seconds: float
    vm_seconds: float
    """CPU seconds that the VM had: time by its processors."""
    rate: float
    """What the application got: bits, datagrams or answers a second."""
    asked: int
    answered: int
    p50_us: float
    p99_us: float
    p999_us: float
    usual_p99_us: float
    """The median over tenths of a second of the 99th percentile in each."""
    worked: Worked
    counted: Counted

    @property
    def tail(self) -> float:
        """The 99th percentile as a multiple of the median, whatever the machine's speed in this cell."""
        return self.p99_us / self.p50_us


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that was measured."""

    cells: list[Cell]
    missing: dict[str, str]
    """Taps that this machine cannot run, and why."""


Row = tuple[int, Load, list[str]]
"""A round, a load, and the taps that meet it, in their order."""


def plan(rounds: int, taps: Sequence[str], loads: Sequence[Load]) -> list[Row]:
    """Every tap under every load in each round. After a whole turn the order is reversed: who comes after a tap meets
    what it left behind, and that shall not always be the same one."""
    rows = []
    for number in range(rounds):
        for row, load in enumerate(loads):
            at = (number + row) % len(taps)
            turned = [*taps[at:], *taps[:at]]
            rows.append((number, load, turned[::-1] if number // len(taps) % 2 else turned))
    return rows


@contextmanager
def stage(seconds: float, say: Callable[[str], None]) -> Iterator[tuple[Scene, Capacity]]:
    """A VM with a core and servers of its own, and what it reaches in so many seconds."""
    with Lab() as lab, one_for_the_vm() as cores:
        scene = Scene(lab, offloads=True, cores=cores)
        scene.vm.start(serve_echo)
        scene.vm.wait_for_port(ECHO_PORT)
        say("what the machine gives")
        yield scene, calibrate(scene, min(seconds, _CALIBRATION_SECONDS))


def measure(rows: Sequence[Row], seconds: float, say: Callable[[str], None]) -> Run:
    """All cells. Raises Outlasted where the taps outlast a load that is ever longer."""
    cells: list[Cell] = []
    missing: dict[str, str] = {}
    with stage(seconds, say) as (scene, capacity):
        for row in rows:
            say(f"round {row[0] + 1}: {row[1].name}")
            for patience in _PATIENCES:
                try:
                    cells += _measure_row(scene, capacity, row, seconds, patience, missing, say)
                    break
                except Outlasted:
                    say("the taps outlasted the load")
                    if patience == _PATIENCES[-1]:
                        raise
    return Run([one for one in cells if one.tap not in missing], missing)


def _measure_row(
    scene: Scene,
    capacity: Capacity,
    row: Row,
    seconds: float,
    patience: int,
    missing: dict[str, str],
    say: Callable[[str], None],
) -> list[Cell]:
    """Raises Outlasted."""
    number, load, names = row
    present = [name for name in names if name not in missing]
    change_seconds = patience * (_FLOOD_CHANGE_SECONDS if load.is_flood else _CHANGE_SECONDS)
    work = Work(scene, load, len(present) * (WARM_SECONDS + seconds + change_seconds), capacity)
    looks = []
    for name in present:
        try:
            looks.append(_look(scene, work, name, seconds))
        except GuestagentError as error:
            if name not in FOREIGN:
                raise
            missing[name] = str(error)
            say(f"{name} can't be measured here: {error}")
    answers = work.finish()
    return [_cell(scene, number, load, look, answers.between(look.start, look.end)) for look in looks]


@dataclass(frozen=True, slots=True)
class _Look:
    """What was counted while a tap ran."""

    tap: str
    start: float
    end: float
    rate: float | None
    """None where answers are what the application gets."""
    cores: int
    worked: Worked
    counted: Counted


def _look(scene: Scene, work: Work, name: str, seconds: float) -> _Look:
    with TAPS[name](scene) as running:
        time.sleep(WARM_SECONDS)
        before, then = work.progress(), time.monotonic()
        meters, start = Meters(scene, running), time.monotonic()
        time.sleep(seconds)
        end, worked = time.monotonic(), meters.worked()
        after, now = work.progress(), time.monotonic()
        rate = None if before is None or after is None else (after - before) / (now - then)
        return _Look(name, start, end, rate, running.cores, worked, meters.counted())


def _cell(scene: Scene, number: int, load: Load, look: _Look, answers: Answers) -> Cell:
    took = look.end - look.start
    ordered = answers.ordered_seconds
    p50, p99, p999 = (1e6 * percentile(ordered, at) for at in (0.5, 0.99, 0.999))
    return Cell(
        round=number,
        load=load.name,
        tap=look.tap,
        seconds=took,
        vm_seconds=took * look.cores,
        rate=answers.answered / took if look.rate is None else look.rate,
        asked=len(ordered),
        answered=answers.answered,
        p50_us=p50,
        p99_us=p99,
        p999_us=p999,
        usual_p99_us=1e6 * answers.usual(0.99),
        worked=look.worked,
        counted=look.counted,
    )
