"""What `guestagent mirror` shows on a terminal alone: progress, and the question before something is deleted."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from guestagent.errors import ConfigError, RunError
from guestagent.mirror.show import MOST_LINES

OVER = "\r\x1b[K"
"""What follows is written over the line."""


def confirm(count: int) -> None:
    """Ask before so many objects are deleted. Raises ConfigError where nobody can be asked, RunError for a no."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{count} objects would be deleted: give --yes, as there is no terminal to ask")
    sys.stderr.write(f"delete these {count} objects? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RunError("nothing was deleted")


def most_lines() -> int | None:
    """Of one table; None: all of it."""
    return MOST_LINES if sys.stdout.isatty() else None


@contextmanager
def reading() -> Iterator[None]:
    """A line on the terminal while the provider is asked for all that it has; silent elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    sys.stderr.write(f"{OVER}reading what is there ...")
    sys.stderr.flush()
    try:
        yield
    finally:
        sys.stderr.write(OVER)
        sys.stderr.flush()


def progress() -> Callable[[int, int, str], None]:
    """A line on the terminal that is written over; silent elsewhere, and where there is nothing to do."""
    if not sys.stderr.isatty():
        return lambda done, total, what: None

    def show_line(done: int, total: int, what: str) -> None:
        if not total:
            return
        end = "\n" if done == total else ""
        sys.stderr.write(f"{OVER}{done}/{total} {what:.60}{end}")
        sys.stderr.flush()

    return show_line
