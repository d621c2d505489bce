"""Report files: JSON, complete or absent."""

import json
import os
from pathlib import Path
from typing import Any

from guestagent.errors import ConfigError, RunError


def check_writable(path: str) -> None:
    """Raises ConfigError at start rather than losing the report at the end."""
    parent = Path(path).resolve().parent
    if path and Path(path).is_dir():
        raise ConfigError(f"--report: {path} is a directory; name a file")
    if path and not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ConfigError(f"--report: {parent} is no directory that can be written to; choose another path")


def write(path: str, value: dict[str, Any]) -> None:
    """Write beside, then rename: nobody reads half a report."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        beside.rename(target)
    except OSError as error:
        raise RunError(f"the report {path} could not be written: {error.strerror}") from error
