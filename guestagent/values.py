"""The values of the config: text or TOML in, checked and in our units out, or ConfigError with the place."""

import ipaddress
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from guestagent.endpoint import Endpoint, parse_endpoint
from guestagent.errors import ConfigError

_BYTE_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-z]*)", re.IGNORECASE)
LEAST_SLICE_BYTES = 14
"""An Ethernet header; less would make frames that no tool can read."""
MOST_SLICE_BYTES = 262_144
_BIT_UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([kmg]bit)", re.IGNORECASE)
LEAST_CPU_PERCENT = 0.1
"""The agent's own idling is about that much of a small VM."""
LEAST_RATE = 64_000 / 8
"""Reports and acknowledgements alone take about 10 kbit/s."""
LEAST_PACKETS = 10
MOST_WORKERS = 64
SHEDDING = ("heavy", "thin", "headers", "sample", "pause")
"""From what tells least to what tells all; a list of fewer leaves the others out."""
FLOOR_NAMES = ("never below headers", "never sample", "never slice")
DIRECTIONS = ("in", "out")
MOST_TAGS, MOST_TAG_CHARACTERS = 16, 64
"""As tapstream.hello takes them."""
MOST_DEVICE_BYTES, LEAST_AGENT_BYTES = 15, 8
"""IFNAMSIZ less its NUL; and what an agent takes of it where its own name is longer: a hash."""
_DEVICE = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,15}")
MOST_UNIX_PATH_BYTES = 107
"""sockaddr_un has 108, the last one is NUL."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


# -- the table of config.py: (value, where) -> value; each raises ConfigError ------------------------------------------


def text(value: Any, where: str) -> str:
    """Text without NUL."""
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{where}: {value!r} must be text")
    return value


def switch(value: Any, where: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {value!r} must be true or false")
    return value


def seconds(value: Any, where: str) -> float:
    """0 for no limit."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ConfigError(f"{where}: {value!r} must be a number of seconds, 0 for no limit")
    return float(value)


def size(value: Any, where: str) -> int:
    """`64MB`, `1GiB`, 65536 -> bytes."""
    is_plain = isinstance(value, int | str) and not isinstance(value, bool)
    found = _SIZE.fullmatch(str(value).strip()) if is_plain else None
    unit = found and _BYTE_UNITS.get(found[2].lower())
    if not found or not unit:
        raise ConfigError(f"{where}: {value!r} is no size: write a number with kB, MB, GB, KiB, MiB or GiB")
    return int(float(found[1]) * unit)


def slice_(value: Any, where: str) -> str | int:
    """`full`, `headers` or a number of bytes."""
    if value in ("full", "headers"):
        return str(value)
    digits = str(value)
    is_number = not isinstance(value, bool) and digits.isdecimal() and len(digits) <= len(str(MOST_SLICE_BYTES))
    number = int(value) if is_number else 0
    if not LEAST_SLICE_BYTES <= number <= MOST_SLICE_BYTES:
        raise ConfigError(
            f"{where}: {value!r} is neither `full` nor `headers` nor {LEAST_SLICE_BYTES} to {MOST_SLICE_BYTES} bytes"
        )
    return number


def fraction(value: Any, where: str) -> float:
    """Above 0, at most 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"{where}: {value!r} must be a fraction above 0 and at most 1")
    return float(value)


def seed(value: Any, where: str) -> int:
    """32 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise ConfigError(f"{where}: {value!r} must be a whole number from 0 to 4294967295")
    return value


def name(value: Any, where: str) -> str:
    """An agent, a collector, a domain; it becomes part of file names."""
    if value and (not isinstance(value, str) or not _NAME.fullmatch(value) or not value.strip(".")):
        raise ConfigError(f"{where}: {value!r} must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return text(value, where)


def percent(value: Any, where: str) -> float:
    """Of the VM's CPU."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not LEAST_CPU_PERCENT <= value <= 100:
        raise ConfigError(f"{where}: {value!r} must be a percentage of the VM's CPU from {LEAST_CPU_PERCENT} to 100")
    return float(value)


def rate(value: Any, where: str) -> float:
    """`20mbit`, `1.5gbit` -> bytes/s."""
    found = _RATE.fullmatch(str(value).strip())
    bytes_per_second = float(found[1]) * _BIT_UNITS[found[2].lower()] / 8 if found else 0.0
    if not found:
        raise ConfigError(f"{where}: {value!r} is no rate: write a number with kbit, mbit or gbit")
    if bytes_per_second < LEAST_RATE:
        raise ConfigError(f"{where}: {value!r} is too little: {LEAST_RATE * 8 / 1000:.0f}kbit is the least")
    return bytes_per_second


def packets(value: Any, where: str) -> float:
    """Packets per second."""
    if isinstance(value, bool) or not isinstance(value, int) or not LEAST_PACKETS <= value < 1 << 40:
        raise ConfigError(f"{where}: {value!r} must be a whole number of packets per second, {LEAST_PACKETS} or more")
    return float(value)


def workers(value: Any, where: str) -> int:
    """Processes of one collector."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_WORKERS:
        raise ConfigError(f"{where}: {value!r} must be a whole number from 1 to {MOST_WORKERS}")
    return value


def on_or_off(value: Any, where: str) -> bool:
    """`on`, `off`, true or false."""
    if not isinstance(value, bool) and value not in ("on", "off"):
        raise ConfigError(f"{where}: {value!r} must be on or off")
    return value in (True, "on")


def keys(value: Any, where: str) -> dict[str, int]:
    """VNI, key or session by `INTERFACE`, `in`, `out`, `INTERFACE in` or `INTERFACE out`."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {value!r} must be a table of numbers by interface and direction")
    for name, number in value.items():
        interface, *direction = name.split() or [""]
        is_pair = len(direction) == 1 and direction[0] in DIRECTIONS and interface not in DIRECTIONS
        if not interface or (direction and not is_pair):
            raise ConfigError(f'{where}: {name!r} must be an interface, "in" or "out", or both as in "eth0 out"')
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 32:
            raise ConfigError(f"{where}.{name}: {number!r} must be a whole number from 0 to 4294967295")
    return {" ".join(name.split()): number for name, number in value.items()}


def tags(value: Any, where: str) -> dict[str, str]:
    """Short texts by name."""
    if not isinstance(value, dict) or len(value) > MOST_TAGS:
        raise ConfigError(f"{where}: {value!r} must be a table of at most {MOST_TAGS} texts by name")
    for key, content in value.items():
        name(key, f"{where}: the name of a tag")
        if not isinstance(content, str) or not content.isprintable() or len(content) > MOST_TAG_CHARACTERS:
            raise ConfigError(f"{where}.{key}: {content!r} must be text of at most {MOST_TAG_CHARACTERS} characters")
    return dict(value)


def tap(value: Any, where: str) -> str:
    """A device's name; `%a` in it stands for the agent."""
    room = MOST_DEVICE_BYTES - (LEAST_AGENT_BYTES - len("%a") if "%a" in str(value) else 0)
    if not isinstance(value, str) or not _DEVICE.fullmatch(value.replace("%a", "a", 1)) or len(value) > room:
        raise ConfigError(
            f"{where}: {value!r} is no device name: write 1 to {MOST_DEVICE_BYTES} of A-Z a-z 0-9 . _ -, "
            f"or 'tap-%a' for a device of each agent, with at most {MOST_DEVICE_BYTES - LEAST_AGENT_BYTES} beside %a"
        )
    return value


def one_of(*known: str) -> Callable[[Any, str], str]:
    """One of these words."""

    def parse(value: Any, where: str) -> str:
        if value not in known:
            raise ConfigError(f"{where}: {value!r} must be one of {', '.join(map(repr, known))}")
        return str(value)

    return parse


def list_of(leaf: Callable[[Any, str], Any]) -> Callable[[Any, str], tuple[Any, ...]]:
    """A list of what `leaf` parses; text alone is a list of one."""

    def parse(value: Any, where: str) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {value!r} must be a list")
        return tuple(leaf(one, where) for one in value)

    return parse


def destination(value: Any, where: str) -> Endpoint:
    """A `--to`."""
    return parse_endpoint(text(value, where), where)


def listener(value: Any, where: str) -> Endpoint:
    """A `--listen`."""
    return parse_endpoint(text(value, where), where, passive=True)


def metrics_address(value: Any, where: str) -> tuple[str, int] | str:
    """`127.0.0.1:9795` or `unix:PATH` -> (host, port) or the path. Copies are not told of to the network."""
    given = text(value, where)
    if given.startswith("unix:"):
        if not 0 < len(given.removeprefix("unix:").encode()) <= MOST_UNIX_PATH_BYTES:
            raise ConfigError(f"{where}: {given!r} must name a path of 1 to {MOST_UNIX_PATH_BYTES} bytes")
        return given.removeprefix("unix:")
    try:
        parts = urlsplit(f"//{given}")
        host, port = parts.hostname or "", parts.port
        loopback = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        port, loopback = None, ipaddress.ip_address("127.0.0.1")
    if not port or given.rpartition(":")[2] != str(port):
        raise ConfigError(f"{where}: {given!r} is no address: write 127.0.0.1:9795, [::1]:9795 or unix:PATH")
    if not loopback.is_loopback:
        raise ConfigError(
            f"{where}: {given!r} would show the metrics to the network without a password: write 127.0.0.1:{port} or "
            "unix:PATH and let a proxy with authentication stand before it"
        )
    return str(loopback), port
