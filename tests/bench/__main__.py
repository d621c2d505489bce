"""Run the comparison: `python -m tests.bench`; as root, about ten minutes, nothing left behind.

make bench                                 3 rounds of 3 s a cell, into docs/bench
make bench ARGS='--rounds 15 --seconds 5'  the full run, 75 minutes
make bench ARGS=--quick                    a look in a minute, printed only
make bench ARGS=--gate                     for CI: short, fails only far from the design's targets
"""

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from guestagent.errors import GuestagentError, HostError
from tests.bench import collector, report, rounds, start, writers
from tests.bench.clocks import busy_share
from tests.bench.group import own_group
from tests.bench.taps import TAPS

PARTS = ("taps", "start", "collector", "writers")
OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "bench"
GATED_TAPS = [name for name in TAPS if name != "stream, real collector"]
QUICK, GATE, DEFAULT = (1, 1.0, 3), (4, 1.0, 3), (3, 3.0, 10)
"""Rounds, seconds of a cell, starts."""


def main() -> int:
    """Measure, print, write; 1 where the gate is missed."""
    flags = _flags()
    if os.geteuid() != 0:
        raise HostError("it counts the CPU of processes in other network namespaces: run it with sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that every `with` cleans up
    number, seconds, starts = QUICK if flags.quick else GATE if flags.gate else DEFAULT
    number, seconds = flags.rounds or number, flags.seconds or seconds
    is_short = flags.quick or flags.gate
    command = shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])
    results = report.Results(command, number, seconds, busy_share())
    if "taps" in flags.only:
        taps, offloads = (GATED_TAPS if flags.gate else list(TAPS)), ([True] if is_short else [True, False])
        with own_group():
            results.cells, results.missing = rounds.measure(number, seconds, taps, offloads, _say)
    if "start" in flags.only:
        results.starts = start.measure(starts, _say)
    if "collector" in flags.only and not flags.gate:
        results.feeds = collector.measure(min(seconds, 3.0), _say)
    if "writers" in flags.only and not flags.gate:
        results.writers = writers.measure(_say)
    print(report.markdown(results))
    if flags.out or not is_short:
        report.write(results, flags.out or OUTPUT)
    return _verdict(results) if flags.gate else 0


def _verdict(results: report.Results) -> int:
    far = [one for one in results.targets() if one.gated and one.is_far_off]
    for one in far:
        print(f"far from its target of {one.limit:g}: {one.name}: {one.figure}", file=sys.stderr)
    return 1 if far else 0


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--seconds", type=float, help="of one cell; default: 3")
    parser.add_argument("--quick", action="store_true", help="a look in a minute; printed, not written")
    parser.add_argument("--gate", action="store_true", help="short; exit code 1 only far from the targets")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, help="directory for RESULTS.md, cells.csv, taps.png; default: docs/bench")
    return parser.parse_args()


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GuestagentError as error:
        sys.exit(f"bench: {error}")
