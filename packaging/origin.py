"""What a build is made from: the checkout, its version, and the one time that everything in it bears."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGING = ROOT / "packaging"
BUILD = ROOT / "build"
DIST = ROOT / "dist"


def version() -> str:
    """As guestagent/__init__.py says, its only place."""
    text = (ROOT / "guestagent" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if not found:
        raise SystemExit('guestagent/__init__.py: no line __version__ = "..."')
    return found[1]


@cache
def epoch() -> int:
    """Seconds since 1970 of all that is built: SOURCE_DATE_EPOCH where that is set, else the last commit's.

    See https://reproducible-builds.org/specs/source-date-epoch/.
    """
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit("the time of the last commit is not known: set SOURCE_DATE_EPOCH to seconds since 1970")
    return int(done.stdout)
