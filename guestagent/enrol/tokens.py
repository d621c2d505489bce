"""Tokens by which a VM may ask for one certificate: random, short-lived, counted. Kept as their hashes alone.

One file for each below the authority's directory. `pki token` makes files and `pki serve` alone spends them, so the two
need no lock between them.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from guestagent.errors import ConfigError

TOKEN_BYTES = 32
MOST_MINUTES, MOST_USES = 7 * 24 * 60, 10_000
FOLDER = "tokens"
_DIRECTORY_MODE = 0o700


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is good for."""

    names: str
    """Of agents, `*` for any part."""
    until: float
    """Seconds since 1970."""
    left: int
    """Certificates that may still be had."""


def grant(folder: Path, names: str, minutes: int, uses: int, now: float) -> str:
    """A new token, told this once. Raises ConfigError."""
    if not 1 <= minutes <= MOST_MINUTES:
        raise ConfigError(f"--minutes: {minutes} must be from 1 to {MOST_MINUTES}")
    if not 1 <= uses <= MOST_USES:
        raise ConfigError(f"--uses: {uses} must be from 1 to {MOST_USES}")
    if not (folder / "ca.key").exists():
        raise ConfigError(f"{folder} holds no authority: begin with `guestagent pki init`")
    token = os.urandom(TOKEN_BYTES).hex()
    try:
        (folder / FOLDER).mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        for path in (folder / FOLDER).glob("*.json"):
            if _read(path, now) is None:
                path.unlink(missing_ok=True)
        _write(_path(folder, token), Grant(names, now + 60 * minutes, uses))
    except OSError as error:
        raise ConfigError(f"{folder / FOLDER} can't be written: {error.strerror}") from error
    return token


def find(folder: Path, token: str, name: str, now: float) -> Grant | None:
    """What the token grants to this agent now, None for nothing."""
    found = _read(_path(folder, token), now)
    return found if found and fnmatchcase(name, found.names) else None


def spend(folder: Path, token: str, held: Grant) -> None:
    """One use less, on disk before the certificate leaves."""
    path = _path(folder, token)
    if held.left <= 1:
        path.unlink()
    else:
        _write(path, Grant(held.names, held.until, held.left - 1))


def _path(folder: Path, token: str) -> Path:
    """Looked up by hash: the time it takes tells nothing of the token, and a copy of the directory is no token."""
    return folder / FOLDER / f"{hashlib.sha256(token.encode()).hexdigest()}.json"


def _read(path: Path, now: float) -> Grant | None:
    try:
        found = Grant(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.left > 0 and now < found.until else None


def _write(path: Path, value: Grant) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(asdict(value)), encoding="utf-8")
    beside.replace(path)
