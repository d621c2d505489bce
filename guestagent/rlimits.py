"""What this process may take by setrlimit(2): files, address space, size of a file. Too little is refused at the start.

Running out later is no traceback either (cli.py), but by then the capture has begun. RLIMIT_MEMLOCK is none of them:
the pages of a ring are the kernel's and count against no such limit.
"""

import os
import resource
from math import inf
from pathlib import Path

from guestagent.errors import HostError

LEAST_FILES = 32
"""Agent and collector alone hold 20 at the most; the rest is for askers of the status, interfaces, modules to load."""
ENOUGH_FILES = 65_536
LEAST_ADDRESS_BYTES = 72 << 20
"""The agent maps 28 MB beside its ring, 52 MB with the portable engine."""
SPARE_ADDRESS_BYTES = 40 << 20
"""Of it, what the agent still maps after its ring."""
LEAST_FILE_BYTES = 16 << 20
"""Files are changed at half the limit: a turn of the collector is 1 MB."""


def refuse_small(*, writes_captures: bool) -> None:
    """Take all the files that there may be. Raises HostError with the limit that is too small, and the need."""
    files = raise_file_limit()
    if files < LEAST_FILES:
        raise HostError(f"this process may open {files} files only: raise `ulimit -n` (LimitNOFILE) to {LEAST_FILES}")
    space = _limit(resource.RLIMIT_AS)
    if space < LEAST_ADDRESS_BYTES:
        raise HostError(
            f"this process may map {space / 1e6:.0f} MB only: "
            f"raise `ulimit -v` (LimitAS) to {LEAST_ADDRESS_BYTES >> 10} KiB and the ring"
        )
    size = largest_file_bytes()
    if writes_captures and size < LEAST_FILE_BYTES:
        raise HostError(
            f"this process may write files of {size / 1e3:.0f} kB only: "
            f"raise `ulimit -f` (LimitFSIZE) to {LEAST_FILE_BYTES / 1e6:.0f} MB"
        )


def raise_file_limit() -> int:
    """Take all the descriptors that this process may have; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = ENOUGH_FILES if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def address_room_bytes() -> float:
    """What a ring may map and leave the agent enough; infinite where nothing limits it."""
    limit = _limit(resource.RLIMIT_AS)
    if limit == inf:
        return inf
    mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
    return limit - mapped_pages * os.sysconf("SC_PAGE_SIZE") - SPARE_ADDRESS_BYTES


def largest_file_bytes() -> float:
    """How far a file of this process may grow; infinite where nothing limits it."""
    return _limit(resource.RLIMIT_FSIZE)


def _limit(kind: int) -> float:
    soft, _ = resource.getrlimit(kind)
    return inf if soft == resource.RLIM_INFINITY else soft
