"""Does the tap hurt the application? `python -m tests.bench.harm`; as root, nothing left behind.

make bench-harm                                    into docs/bench; about an hour
make bench-harm ARGS=--quick                       a look in three minutes, printed only
make bench-harm ARGS=--gate                        for CI: short, fails only far from the design's promises
make bench-harm ARGS=--windows                     the CPU of windows of 5 s, beside off alone; printed only; 6 minutes
make bench-harm ARGS='--only bulk_in --rounds 3'   some loads, printed only; `--taps` picks taps
"""

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from guestagent.errors import GuestagentError, HostError
from tests.bench.clocks import busy_share
from tests.bench.group import own_group
from tests.bench.harm import report, rounds, tidy
from tests.bench.harm.figures import WINDOW_SECONDS
from tests.bench.harm.loads import LOADS, Load
from tests.bench.harm.taps import OFF, TAPS

OUTPUT = Path(__file__).resolve().parents[3] / "docs" / "bench"
QUICK, GATE, WINDOWS, DEFAULT = (1, 1, 1.0), (6, 6, 1.0), (3, 3, float(WINDOW_SECONDS)), (6, 15, 2.0)
"""Rounds, pairs of what is judged flat out, seconds of a cell. Six is the least for an interval of 95 %."""
GATED_TAPS = ("cpu",)
LOAD_WORDS = {one.name.removesuffix(" %").replace(" ", "_"): one for one in LOADS}
TAP_WORDS = dict(zip(("off", "again", "full", "cpu", "tcpdump", "mirred"), TAPS, strict=True))


def main() -> int:
    """Measure, print, write; 1 where the gate is missed."""
    flags = _flags()
    if os.geteuid() != 0:
        raise HostError("it counts the CPU of processes in other network namespaces: run it with sudo")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that every `with` cleans up
    kinds = {QUICK: flags.quick, GATE: flags.gate, WINDOWS: flags.windows, DEFAULT: True}
    number, pairs, seconds = next(kind for kind, is_asked in kinds.items() if is_asked)
    number, pairs, seconds = flags.rounds or number, flags.rounds or pairs, flags.seconds or seconds
    is_short = flags.quick or flags.gate
    chosen = [LOAD_WORDS[word] for word in flags.only or LOAD_WORDS]
    loads = chosen if flags.only else [one for one in chosen if _belongs(one, flags)]
    words = flags.taps or (GATED_TAPS if flags.gate or flags.windows else TAP_WORDS)
    taps = list(dict.fromkeys([OFF, *(TAP_WORDS[word] for word in words)]))
    command = shlex.join(["python", "-m", "tests.bench.harm", *sys.argv[1:]])
    with tidy.own_directory(), own_group():
        before = busy_share()
        results = report.Results(
            command, seconds, before, rounds.measure(rounds.plan(number, pairs, taps, loads), seconds, _say)
        )
    print(report.markdown(results))
    is_whole = not (is_short or flags.windows or flags.only or flags.taps)
    if flags.out or is_whole:  # a look at a part shall not replace the published figures
        report.write(results, flags.out or OUTPUT)
    return _verdict(results) if flags.gate else 0


def _belongs(load: Load, flags: argparse.Namespace) -> bool:
    return load.is_window if flags.windows else load.is_quick or not (flags.quick or flags.gate)


def _verdict(results: report.Results) -> int:
    broken = [one for one in results.promises() if one.is_broken]
    for one in broken:
        print(f"far from its promise of {one.limit:g}: {one.name}: {one.figure}", file=sys.stderr)
    return 1 if broken else 0


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.harm", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="default: 6, and 15 of what is judged flat out")
    parser.add_argument("--seconds", type=float, help="of one cell; iperf3 takes whole ones; default: 2")
    parser.add_argument("--quick", action="store_true", help="a look in three minutes; printed, not written")
    parser.add_argument("--gate", action="store_true", help="short; exit code 1 only far from the promises")
    parser.add_argument("--windows", action="store_true", help="paced loads in cells of 5 s; printed, not written")
    parser.add_argument("--only", nargs="+", choices=LOAD_WORDS, metavar="LOAD", help=", ".join(LOAD_WORDS))
    parser.add_argument("--taps", nargs="+", choices=TAP_WORDS, metavar="TAP", help=", ".join(TAP_WORDS))
    parser.add_argument("--out", type=Path, help="directory for HARM.md, harm.csv, harm.png; a whole run: docs/bench")
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
