"""Soak agent and collector under mixed faults, a fleet and strangers; writes docs/bench/SOAK.md.

python -m tests.bench.soak [--seconds 600] [--out FILE]
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from guestagent.lab.hosts import Lab
from tests.bench.soak.report import markdown
from tests.bench.soak.run import soak


def main() -> int:
    """Soak, write the report; 1 where a bound was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--out", type=Path, default=Path("docs/bench/SOAK.md"))
    chosen = parser.parse_args()

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    with TemporaryDirectory(prefix="guestagent-soak-") as directory, Lab() as lab:
        result = soak(lab, Path(directory), chosen.seconds, say)
    for complaint in result.complaints:
        say(f"BROKEN {complaint}")
    chosen.out.write_text(markdown(result))
    say(f"{chosen.out} is written")
    return bool(result.complaints)


if __name__ == "__main__":
    sys.exit(main())
