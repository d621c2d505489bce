"""A TOML file and flags become checked values by key; an unknown key or a wrong value is an error with its path.

A table says which parser reads a key (values.py). Flags have the names of the keys and win over the file.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from guestagent.errors import ConfigError
from guestagent.trust import refuse_writable

_FIELDS = {"yield": "yields"}
"""Keys that Python does not allow as names."""


def _field(key: str) -> str:
    return _FIELDS.get(key, key.replace(".", "_"))


def _read_toml(path: str) -> dict[str, Any]:
    import tomllib

    try:
        refuse_writable(path)
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config {path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of 5,000 digits, deep nesting
        raise ConfigError(f"the config {path} is no TOML: {error}") from error


def merge(path: str | None, flags: dict[str, Any], keys: dict[str, Callable[[Any, str], Any]]) -> dict[str, Any]:
    """Fields of a config: the file's values, checked, then the flags that were given. Raises ConfigError."""
    merged = {}
    for key, value in flat(_read_toml(path) if path else {}):
        if key not in keys:
            raise ConfigError(f"{path}: {key} is no key of the config: choose among {', '.join(sorted(keys))}")
        merged[_field(key)] = keys[key](value, f"{path}: {key}")
    for key, value in flags.items():
        if value is not None:
            dotted = key.replace("tls_", "tls.", 1)
            if dotted not in keys:
                raise ConfigError(f"--{key.replace('_', '-')} has no meaning here: leave it out")
            merged[_field(key)] = keys[dotted](value, f"--{key.replace('_', '-')}")
    return merged


def names_key(path: str | None, flags: dict[str, Any], key: str) -> bool:
    """Is this key given, in the file or as a flag? Raises ConfigError."""
    return flags.get(key) is not None or (path is not None and key in _read_toml(path))


def flat(tables: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The table [tls] as keys of its own."""
    for key, value in tables.items():
        if key == "tls" and isinstance(value, dict):
            yield from ((f"tls.{name}", inner) for name, inner in value.items())
        else:
            yield key, value
