"""TOML and flags become frozen dataclasses; strict: an unknown key or a value out of range is an error with its path.

One table per verb says which parser reads a key (values.py); the dataclasses say what it means and its default. Flags
have the names of the keys and win over the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestagent import values
from guestagent.errors import ConfigError
from guestagent.values import FLOOR_NAMES, SHEDDING, Endpoint


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
    cpu: float | None = None
    """Percent of the VM. None here and below: the default budget, or with `full` no bound."""
    rate: float | None = None
    """Bytes/s that may leave, headers of the packets that carry them included."""
    packets: float | None = None
    """Records/s that may leave."""
    yields: bool | None = None
    """Step back while the VM is under pressure."""
    full: bool = False
    """Copy everything, also what the collector can't take; budgets hold only where they are given."""
    shed: tuple[str, ...] = SHEDDING
    """What gives way first when a budget binds."""
    floor: tuple[str, ...] = ()
    """What never gives way."""
    dedupe: str = ""
    """The address domain (VPC) within which each packet is left to its sender's agent; empty: every end copies."""
    duration: float = 0.0
    """Seconds from the first capture; 0: until a signal."""
    report: str = ""
    agent_id: str = ""
    """Empty: the cloud's instance id, else the machine id."""
    metadata: bool = True
    """Ask the cloud's metadata service at the start, for the hello."""
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


_FILES: dict[str, Callable[[Any, str], Any]] = {
    "rotate_bytes": values.size,
    "rotate_seconds": values.seconds,
    "retain_bytes": values.size,
    "duration": values.seconds,
    "report": values.text,
}
_RUN_KEYS: dict[str, Callable[[Any, str], Any]] = {
    **_FILES,
    "interface": values.list_of(values.text),
    "to": values.list_of(values.destination),
    "filter": values.text,
    "slice": values.slice_,
    "keep": values.fraction,
    "seed": values.seed,
    "ring": values.size,
    "promiscuous": values.switch,
    "engine": values.one_of("auto", "ring", "portable"),
    "cpu": values.percent,
    "rate": values.rate,
    "packets": values.packets,
    "yield": values.on_or_off,
    "full": values.switch,
    "shed": values.list_of(values.one_of(*SHEDDING)),
    "floor": values.list_of(values.one_of(*FLOOR_NAMES)),
    "dedupe": values.name,
    "agent_id": values.name,
    "metadata": values.switch,
}
_COLLECT_KEYS: dict[str, Callable[[Any, str], Any]] = {
    **_FILES,
    "listen": values.list_of(values.listener),
    "write": values.text,
    "fsync": values.switch,
    "collector_id": values.name,
}


_FIELDS = {"yield": "yields"}
"""Keys that Python does not allow as names."""


def _read_toml(path: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the config {path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of 5,000 digits, deep nesting
        raise ConfigError(f"the config {path} is no TOML: {error}") from error


def merge(path: str | None, flags: dict[str, Any], keys: dict[str, Callable[[Any, str], Any]]) -> dict[str, Any]:
    """Fields of a config: the file's values, checked, then the flags that were given. Raises ConfigError."""
    merged = {}
    for key, value in (_read_toml(path) if path else {}).items():
        if key not in keys:
            raise ConfigError(f"{path}: {key} is no key of the config: choose among {', '.join(sorted(keys))}")
        merged[_FIELDS.get(key, key)] = keys[key](value, f"{path}: {key}")
    for key, value in flags.items():
        if value is not None:
            merged[_FIELDS.get(key, key)] = keys[key](value, f"--{key.replace('_', '-')}")
    return merged


def load_run(path: str | None, flags: dict[str, Any]) -> RunConfig:
    """The config of `run` and `check`. Raises ConfigError."""
    return _checked(RunConfig(**merge(path, flags, _RUN_KEYS)))


def _checked(config: RunConfig) -> RunConfig:
    if not config.to:
        raise ConfigError("to: the list is empty: name a destination or leave the key out")
    if len(config.to) > 1:
        raise ConfigError("to: this version sends to one destination: name one")
    return config


def load_collect(path: str | None, flags: dict[str, Any]) -> CollectConfig:
    """The config of `collect`. Raises ConfigError."""
    config = CollectConfig(**merge(path, flags, _COLLECT_KEYS))
    if not config.listen:
        raise ConfigError("no --listen: write for example --listen tcp://0.0.0.0:4795")
    return config
