"""Fuzz for longer than CI does: `python -m tests.fuzz [--seconds 60] [--grow] [TARGET]...`.

With --grow inputs that reach new lines go into tests/corpus, to be committed.
"""

import argparse
import random
import sys
import zlib

from tests.fuzz.engine import CORPUS, FoundError, fuzz, grow
from tests.fuzz.targets import TARGETS


def main() -> int:
    """1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition(":")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--grow", action="store_true", help="keep what reaches new lines; 50 times slower")
    flags = parser.parse_args()
    code = 0
    for name in flags.targets or TARGETS:
        try:
            if flags.grow:
                found = grow(name, flags.seconds, flags.seed)
                (CORPUS / name).mkdir(parents=True, exist_ok=True)
                for data in found:
                    (CORPUS / name / f"{zlib.crc32(data):08x}").write_bytes(data)
                print(f"{name}: {len(found)} kept")
            else:
                print(f"{name}: {fuzz(name, flags.seconds, flags.seed):,} inputs, seed {flags.seed}")
        except FoundError as error:
            print(f"{name}: {error}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
