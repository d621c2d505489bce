"""Files that decide where copies go: read only where nobody but root and ourselves may write them."""

import os
import stat
from pathlib import Path

from guestagent.errors import ConfigError

_GROUP_OR_OTHERS = 0o022


def read(path: str | Path, what: str) -> bytes:
    """The file's bytes. Raises ConfigError where it can't be read or others may write it; `what` names its kind."""
    try:
        with open(path, "rb") as file:
            _refuse_others(os.fstat(file.fileno()), path, what)
            return file.read()
    except OSError as error:
        raise ConfigError(f"the {what} {path} can't be read: {error.strerror}") from error


def refuse_if_others_write(path: str | Path, what: str) -> None:
    """The check alone, for files that a library reads. Raises ConfigError."""
    try:
        _refuse_others(os.stat(path), path, what)
    except OSError as error:
        raise ConfigError(f"the {what} {path} can't be read: {error.strerror}") from error


def _refuse_others(found: os.stat_result, path: str | Path, what: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        return  # a pipe from the shell is the caller's own
    if found.st_mode & _GROUP_OR_OTHERS:
        raise ConfigError(f"the {what} {path} can be written by others: take that away with `chmod go-w {path}`")
    owners = {0, os.geteuid(), int(os.environ.get("SUDO_UID") or 0)}
    if found.st_uid not in owners:
        raise ConfigError(f"the {what} {path} belongs to user {found.st_uid}, who can write it: `chown root {path}`")
