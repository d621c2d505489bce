"""Gives up what only opening sockets needed, also where the operator started us as root by hand.

The user stays the same: root's files (reports, captures, keys that are re-read) stay readable and writable by their
owner, but without capabilities root may no longer pass over other users' permissions, load modules, change networks,
trace processes or gain anything by exec. A service has a user of its own besides (packaging/systemd).
"""

import ctypes
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from guestagent.errors import RunError

log = logging.getLogger("guestagent.privileges")

CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_NET_RAW = 1, 12, 13
"""include/uapi/linux/capability.h."""
_VERSION_3 = 0x20080522
_WORDS = 2
_MOST_CAPABILITIES = 64
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def keep_only(*wanted: int, writes: Iterable[Path] = ()) -> None:
    """Keep these capabilities at most, for this thread and those it starts; never to gain more by exec.

    `writes` are places written to later: where root can't without CAP_DAC_OVERRIDE, that is kept and said.
    Raises RunError where the kernel refuses.
    """
    kept = set(wanted)
    if foreign := [place for place in map(_existing, writes) if not _is_writable_by_us(place)]:
        if os.geteuid() == 0:
            log.info("keeping CAP_DAC_OVERRIDE: %s belongs to another user", foreign[0])
        kept.add(CAP_DAC_OVERRIDE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in set(range(_MOST_CAPABILITIES)) - kept:
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # refused to a plain user, whose bounding set serves nothing
    header, sets = _Header(_VERSION_3, 0), (_Sets * _WORDS)()
    if libc.capget(ctypes.byref(header), sets) == 0:
        before = bytes(sets)
        for word, one in enumerate(sets):
            mask = sum(1 << number % 32 for number in kept if number // 32 == word)
            one.permitted &= mask
            one.effective = one.permitted
            one.inheritable &= mask
        # A service has no more to give up, and its seccomp filter would refuse the call.
        if bytes(sets) == before or libc.capset(ctypes.byref(header), sets) == 0:
            return
    raise RunError(f"privileges could not be given up ({os.strerror(ctypes.get_errno())}): start without them")


def _existing(path: Path) -> Path:
    """The path itself, or the nearest directory above it that is there."""
    return next(one for one in (path, *path.absolute().parents) if one.exists())


def _is_writable_by_us(place: Path) -> bool:
    found = place.stat()
    if found.st_uid == os.geteuid():
        return bool(found.st_mode & 0o200)
    return bool(found.st_mode & 0o002) or (found.st_gid == os.getegid() and bool(found.st_mode & 0o020))
