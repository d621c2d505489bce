"""What a killed run leaves behind, and its removal at the next start.

Networks and nearly all children die with us by the kernel's hand (guestagent.lab.hosts). Two things don't: temporary
files, and a tcpdump that gave up root, by which the kernel forgets that it should die with its parent; its network
lives as long as it does. So each run has a directory, locked while the run lives, whose name stands in the environment
of all that it starts.
"""

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "GUESTAGENT_HARM_RUN"
PREFIX = "guestagent-harm-"


@contextmanager
def own_directory() -> Iterator[Path]:
    """Temporary files of this run go here, and end with it; those of dead runs, and their processes, end now."""
    base = Path(tempfile.gettempdir())
    for leftover in base.glob(f"{PREFIX}*"):
        remove_if_dead(leftover)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    lock = os.open(directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.environ[MARK], tempfile.tempdir = str(directory), str(directory)
    try:
        yield directory
    finally:
        tempfile.tempdir = str(base)
        del os.environ[MARK]
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def remove_if_dead(directory: Path) -> bool:
    """Remove a run's directory and end its processes, unless it is locked, for then the run lives."""
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # it has just ended by itself
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    for pid in _marked(f"{MARK}={directory}"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)
    return True


def _marked(mark: str) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it ended meanwhile, or is not ours to look at
            if mark.encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parts[2]))
    return found
