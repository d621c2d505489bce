"""Files that decide where copies go: believed only where nobody but root and ourselves may write them."""

import os
import stat

from guestagent.errors import ConfigError

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


def refuse_writable(path: str) -> None:
    """Raises ConfigError where others could write what we obey; OSError where the file is not there."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        return  # a pipe from the shell is the caller's own
    if found.st_mode & _WRITABLE:
        raise ConfigError(f"{path} can be written by others than its owner: chmod go-w {path}")
    if found.st_uid not in {0, os.geteuid(), int(os.environ.get("SUDO_UID") or 0)}:
        raise ConfigError(f"{path} belongs to user {found.st_uid}, who can write it: chown root {path}")
