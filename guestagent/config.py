"""TOML and flags become frozen dataclasses; strict: an unknown key or a value out of range is an error with its path.

One table per verb says everything about a key: its type, its bounds, its default. Flags have the names of the keys and
win over the file.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from guestagent.errors import ConfigError

DEFAULT_PORT = 4795


_BYTE_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-z]*)", re.IGNORECASE)
LEAST_SLICE_BYTES = 14
"""An Ethernet header; less would make frames that no tool can read."""
MOST_SLICE_BYTES = 262_144
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed `--to` or `--listen`."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.scheme == "dir":
            return f"dir:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What `guestagent run` needs."""

    interface: tuple[str, ...] = ()
    """Names and globs; none: the interface of the default route."""
    to: tuple[Endpoint, ...] = (Endpoint("dir", path="captures"),)
    filter: str = ""
    """A pcap-filter expression."""
    slice: str | int = "full"
    """`full`, `headers`, or bytes of each frame."""
    keep: float = 1.0
    """Fraction of the flows to copy, each whole in both directions or not at all."""
    seed: int | None = None
    """32 bits that choose the flows; the same in a fleet, or the ends of a flow disagree. None: random each time."""
    ring: int = 0
    """Bytes of each interface's ring; 0: 64 MB, or less on a small VM."""
    promiscuous: bool = False
    engine: str = "auto"
    full: bool = False
    duration: float = 0.0
    """Seconds from the first capture; 0: until a signal."""
    report: str = ""
    agent_id: str = ""
    """Empty: the cloud's instance id, else the machine id."""
    rotate_bytes: int = 256 << 20
    rotate_seconds: float = 0.0
    retain_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """What `guestagent collect` needs."""

    listen: tuple[Endpoint, ...] = ()
    write: str = "captures"
    rotate_bytes: int = 256 << 20
    rotate_seconds: float = 0.0
    retain_bytes: int = 0
    fsync: bool = False
    """Acknowledge after fdatasync, so that a power loss takes nothing that was acknowledged."""
    duration: float = 0.0
    report: str = ""
    collector_id: str = ""


def parse_size(text: str | int, where: str) -> int:
    """`64MB`, `1GiB`, 65536 -> bytes. Raises ConfigError."""
    found = _SIZE.fullmatch(str(text).strip())
    unit = found and _BYTE_UNITS.get(found[2].lower())
    if not found or not unit:
        raise ConfigError(f"{where}: {text!r} is no size: write a number with kB, MB, GB, KiB, MiB or GiB")
    return int(float(found[1]) * unit)


def parse_slice(text: str | int, where: str) -> str | int:
    """`full`, `headers` or a number of bytes. Raises ConfigError."""
    if text in ("full", "headers"):
        return text
    number = int(text) if str(text).isdecimal() and len(str(text)) <= len(str(MOST_SLICE_BYTES)) else 0
    if not LEAST_SLICE_BYTES <= number <= MOST_SLICE_BYTES:
        raise ConfigError(
            f"{where}: {text!r} is neither `full` nor `headers` nor {LEAST_SLICE_BYTES} to {MOST_SLICE_BYTES} bytes"
        )
    return number


def parse_endpoint(text: str, where: str, *, passive: bool = False) -> Endpoint:
    """`tcp://HOST[:PORT]` or `dir:PATH`. Raises ConfigError with what the URL may be."""
    usable = "tcp://HOST:PORT" if passive else "tcp://HOST[:PORT] or dir:PATH"
    scheme, _, rest = text.partition(":")
    if scheme == "dir" and not passive:
        if not rest:
            raise ConfigError(f"{where}: {text!r} names no directory: write dir:PATH")
        return Endpoint("dir", path=rest)
    if scheme != "tcp" or not rest.startswith("//"):
        raise ConfigError(f"{where}: {text!r} is no address that this version knows: write {usable}")
    try:
        parts = urlsplit(text)
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError as error:
        raise ConfigError(f"{where}: {text!r} is no valid address ({error}): write {usable}") from error
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"{where}: {text!r} has parts that mean nothing here: write {usable}")
    if not parts.hostname and not passive:
        raise ConfigError(f"{where}: {text!r} names no host: write {usable}")
    if not passive and port == 0:
        raise ConfigError(f"{where}: {text!r} names port 0: write {usable}")
    return Endpoint("tcp", parts.hostname or "", port)


# -- leaf parsers: (value, where) -> value --------------------------------------------------------------------------


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{where}: {value!r} must be text")
    return value


def _switch(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {value!r} must be true or false")
    return value


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ConfigError(f"{where}: {value!r} must be a number of seconds, 0 for no limit")
    return float(value)


def _size(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f"{where}: {value!r} must be a size such as 64MB")
    return parse_size(value, where)


def _slice(value: Any, where: str) -> str | int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigError(f"{where}: {value!r} must be `full`, `headers` or bytes")
    return parse_slice(value, where)


def _fraction(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"{where}: {value!r} must be a fraction above 0 and at most 1")
    return float(value)


def _seed(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise ConfigError(f"{where}: {value!r} must be a whole number from 0 to 4294967295")
    return value


def _name(value: Any, where: str) -> str:
    if value and (not isinstance(value, str) or not _NAME.fullmatch(value) or not value.strip(".")):
        raise ConfigError(f"{where}: {value!r} must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return _text(value, where)


def _engine(value: Any, where: str) -> str:
    if value not in ("auto", "ring", "portable"):
        raise ConfigError(f"{where}: {value!r} must be ring, portable or auto")
    return str(value)


def _list_of(leaf: Callable[[Any, str], Any]) -> Callable[[Any, str], tuple[Any, ...]]:
    def parse(value: Any, where: str) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {value!r} must be a list")
        return tuple(leaf(one, where) for one in value)

    return parse


def _destination(value: Any, where: str) -> Endpoint:
    return parse_endpoint(_text(value, where), where)


def _listener(value: Any, where: str) -> Endpoint:
    return parse_endpoint(_text(value, where), where, passive=True)


_FILES: dict[str, Callable[[Any, str], Any]] = {
    "rotate_bytes": _size,
    "rotate_seconds": _seconds,
    "retain_bytes": _size,
    "duration": _seconds,
    "report": _text,
}
_RUN_KEYS: dict[str, Callable[[Any, str], Any]] = {
    **_FILES,
    "interface": _list_of(_text),
    "to": _list_of(_destination),
    "filter": _text,
    "slice": _slice,
    "keep": _fraction,
    "seed": _seed,
    "ring": _size,
    "promiscuous": _switch,
    "engine": _engine,
    "full": _switch,
    "agent_id": _name,
}
_COLLECT_KEYS: dict[str, Callable[[Any, str], Any]] = {
    **_FILES,
    "listen": _list_of(_listener),
    "write": _text,
    "fsync": _switch,
    "collector_id": _name,
}


def _read_toml(path: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config {path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of 5,000 digits, deep nesting
        raise ConfigError(f"the config {path} is no TOML: {error}") from error


def _merge(
    path: str | None, flags: dict[str, Any], keys: dict[str, Callable[[Any, str], Any]], kind: type
) -> dict[str, Any]:
    values = {}
    for key, value in (_read_toml(path) if path else {}).items():
        if key not in keys:
            known = ", ".join(one.name for one in fields(kind))
            raise ConfigError(f"{path}: {key} is no key of the config: choose among {known}")
        values[key] = keys[key](value, f"{path}: {key}")
    for key, value in flags.items():
        if value is not None:
            values[key] = keys[key](value, f"--{key.replace('_', '-')}")
    return values


def load_run(path: str | None, flags: dict[str, Any]) -> RunConfig:
    """The config of `run` and `check`. Raises ConfigError."""
    return _checked(RunConfig(**_merge(path, flags, _RUN_KEYS, RunConfig)))


def _checked(config: RunConfig) -> RunConfig:
    if not config.to:
        raise ConfigError("to: the list is empty: name a destination or leave the key out")
    if len(config.to) > 1:
        raise ConfigError("to: this version sends to one destination: name one")
    return config


def load_collect(path: str | None, flags: dict[str, Any]) -> CollectConfig:
    """The config of `collect`. Raises ConfigError."""
    config = CollectConfig(**_merge(path, flags, _COLLECT_KEYS, CollectConfig))
    if not config.listen:
        raise ConfigError("no --listen: write for example --listen tcp://0.0.0.0:4795")
    return config
