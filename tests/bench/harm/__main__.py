"""Does the tap hurt the application? `python -m tests.bench.harm`; as root, nothing left behind.

make bench-harm                                    into docs/bench; half an hour
make bench-harm ARGS=--promises                    into docs/bench; what the design promises, 15 pairs; 48 minutes
make bench-harm ARGS=--quick                       a look in three minutes, printed only
make bench-harm ARGS=--gate                        for CI: short, fails only far from the design's promises
make bench-harm ARGS=--windows                     the CPU of every five seconds, by perf; into docs/bench; 10 minutes
make bench-harm ARGS=--turns                       requests beside the agent's turns, and away; into docs/bench; 24 min
make bench-harm ARGS='--only bulk_in --rounds 3'   some loads, printed only; `--taps` picks taps
"""

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from guestagent.errors import ConfigError, GuestagentError, HostError
from tests.bench.clocks import busy_share
from tests.bench.harm import report, rounds, tidy, turns, windows
from tests.bench.harm.loads import LOADS, Load
from tests.bench.harm.taps import OFF, TAPS

OUTPUT = Path(__file__).resolve().parents[3] / "docs" / "bench"
LOAD_WORDS = {one.name.removesuffix(" %").replace(" ", "_"): one for one in LOADS}
TAP_WORDS = dict(zip(("off", "again", "full", "cpu", "roomy", "stopped", "tcpdump", "mirred"), TAPS, strict=True))


@dataclass(frozen=True, slots=True)
class Kind:
    """What one kind of run measures."""

    rounds: int
    """Six is the least for an interval of 95 %."""
    seconds: float
    """Of a cell."""
    has: Callable[[Load], bool]
    taps: tuple[str, ...]
    name: str = ""
    """Of the files in docs/bench that it replaces, where it is run as it is."""


KINDS = {
    "quick": Kind(1, 1.0, lambda load: load.is_quick, ("again", "full", "cpu", "roomy", "tcpdump", "mirred")),
    "gate": Kind(6, 1.0, lambda load: load.is_quick, ("cpu",)),
    "promises": Kind(15, 4.0, lambda load: load.is_promised, ("again", "cpu", "roomy"), "promises"),
    "whole": Kind(6, 1.0, lambda load: True, ("full", "cpu", "tcpdump", "mirred"), "harm"),
}


@dataclass(frozen=True, slots=True)
class Look:
    """A kind of run in cells without pairs, which perf looks on at."""

    module: ModuleType
    """Has `ROUNDS`, `measure` and `markdown`."""
    has: Callable[[Load], bool]
    file: str
    """In docs/bench."""


LOOKS = {
    "windows": Look(windows, lambda load: load.is_window, "WINDOWS.md"),
    "turns": Look(turns, lambda load: load.is_moderate, "TURNS.md"),
}


def main() -> int:
    """Measure, print, write; 1 where the gate is missed."""
    flags = _flags()
    if os.geteuid() != 0:
        raise HostError("it counts the CPU of processes in other network namespaces: run it with sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that every `with` cleans up
    if flags.kind in LOOKS:
        if flags.taps or flags.seconds:
            raise ConfigError(f"--{flags.kind} has its own taps and times: leave --taps and --seconds out")
        return _look(flags, LOOKS[flags.kind])
    kind = KINDS[flags.kind]
    seconds, loads = flags.seconds or kind.seconds, _loads(flags, kind)
    taps = list(dict.fromkeys([OFF, *(TAP_WORDS[word] for word in flags.taps or kind.taps)]))
    plan = rounds.plan(flags.rounds or kind.rounds, taps, loads)
    with tidy.own_directory():
        before = busy_share()
        run = rounds.measure(plan, seconds, _say)
    results = report.Results(kind.name or "harm", _command(), seconds, before, run)
    print(report.markdown(results))
    is_whole = kind.name and not (flags.only or flags.taps)
    if flags.out or is_whole:  # a look at a part shall not replace the published figures
        report.write(results, flags.out or OUTPUT)
    return _verdict(results) if flags.kind == "gate" else 0


def _look(flags: argparse.Namespace, kind: Look) -> int:
    with tidy.own_directory() as directory:
        found = kind.module.measure(_loads(flags, kind), flags.rounds or kind.module.ROUNDS, directory, _say)
    text = kind.module.markdown(found, _command())
    print(text)
    if flags.out or not flags.only:
        directory = flags.out or OUTPUT
        directory.mkdir(parents=True, exist_ok=True)
        (directory / kind.file).write_text(text)
    return 0


def _loads(flags: argparse.Namespace, kind: Kind | Look) -> list[Load]:
    return [LOAD_WORDS[word] for word in flags.only or ()] or list(filter(kind.has, LOADS))


def _command() -> str:
    return shlex.join(["python", "-m", "tests.bench.harm", *sys.argv[1:]])


def _verdict(results: report.Results) -> int:
    broken = [one for one in results.promises() if one.is_broken]
    for one in broken:
        print(f"far from its promise of {one.limit:g}: {one.name}: {one.figure}", file=sys.stderr)
    return 1 if broken else 0


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.harm", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="default: 6; 15 with --promises, 3 with --windows")
    parser.add_argument("--seconds", type=float, help="of one cell; default: 1; 4 with --promises")
    kinds = parser.add_mutually_exclusive_group()
    for word, told in (
        ("quick", "a look in three minutes; printed, not written"),
        ("gate", "short; exit code 1 only far from the promises"),
        ("windows", "the CPU of every five seconds under paced loads; 10 minutes"),
        ("turns", "requests beside the agent's turns and away from them, by perf; 49 minutes"),
        ("promises", "what the design promises, 15 pairs in cells of 4 s; 64 minutes"),
    ):
        kinds.add_argument(f"--{word}", dest="kind", action="store_const", const=word, help=told)
    parser.set_defaults(kind="whole")
    parser.add_argument("--only", nargs="+", choices=LOAD_WORDS, metavar="LOAD", help=", ".join(LOAD_WORDS))
    parser.add_argument("--taps", nargs="+", choices=TAP_WORDS, metavar="TAP", help=", ".join(TAP_WORDS))
    parser.add_argument("--out", type=Path, help="directory of report, cells, picture; a whole run: docs/bench")
    return parser.parse_args()


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GuestagentError as error:
        sys.exit(f"bench-harm: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
