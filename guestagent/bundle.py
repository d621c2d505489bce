"""`guestagent support-bundle`: what somebody needs who shall help, in one file; no secret and no payload.

What goes in is the table COMMANDS, the status sockets and the configs, nothing is found by searching: captures, keys,
tokens and user-data are never opened. Of a config only keys that we know keep their values.
"""

import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from guestagent import __version__
from guestagent.config import KNOWN_KEYS
from guestagent.errors import RunError
from guestagent.identity import host_name
from guestagent.observe.status import everything
from guestagent.settings import flat

CONFIGS = Path("/etc/guestagent")
SCHEMA = "guestagent.support/1"
COMMAND_SECONDS = 20.0
MOST_MEMBER_BYTES = 4 << 20
"""Of each member; of more the end is kept, where the newest lines of a log stand."""
FILE_MODE = 0o600
LEFT_OUT = "(left out)"
_UNITS = "guestagent*"
COMMANDS: dict[str, tuple[str, ...]] = {
    "logs/journal.txt": ("journalctl", "--no-pager", "-o", "short-iso", "-n", "20000", "-u", _UNITS),
    "systemd/status.txt": ("systemctl", "status", "--no-pager", "-l", "-n", "0", _UNITS),
    "systemd/unit.txt": ("systemctl", "cat", "--no-pager", "guestagent.service"),
    "versions/packages.txt": ("dpkg-query", "-W", "guestagent*", "python3", "libpcap*", "systemd", "cloud-init"),
    "versions/rpms.txt": ("rpm", "-q", "guestagent", "python3", "libpcap", "systemd", "cloud-init"),
    "host/links.txt": ("ip", "-details", "-statistics", "link", "show"),
    "host/addresses.txt": ("ip", "address", "show"),
    "host/routes.txt": ("ip", "route", "show", "table", "all"),
}
"""Member: the command whose output it is. None of them prints a packet or a key."""
FILES = {
    "host/os-release.txt": "/etc/os-release",
    "host/memory.txt": "/proc/meminfo",
    "host/packet-sockets.txt": "/proc/net/packet",
    "host/pressure-cpu.txt": "/proc/pressure/cpu",
    "host/filter-memory.txt": "/proc/sys/net/core/optmem_max",
}
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def write_bundle(path: str, configs: Iterable[Path]) -> str:
    """Gather and write; the file's name. Raises RunError. The file is its owner's alone."""
    target = Path(path or f"guestagent-support-{host_name()}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz")
    members = gather(configs)
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except FileExistsError:
        raise RunError(f"{target} is there already: name another file with --output") from None
    except OSError as error:
        raise RunError(f"the bundle {target} can't be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in sorted(members.items()):
            facts = tarfile.TarInfo(f"guestagent-support/{name}")
            facts.size, facts.mtime, facts.mode = len(data), int(time.time()), FILE_MODE
            archive.addfile(facts, BytesIO(data))
    return str(target)


def gather(configs: Iterable[Path]) -> dict[str, bytes]:
    """Bytes by member; what could not be had is named in manifest.json with its reason."""
    members: dict[str, bytes] = {"status.json": _json(everything()._asdict())}
    missing: dict[str, str] = {}
    for path in configs:
        members[f"config/{path.name}"] = known_part(path)
        check = (sys.executable, "-P", "-m", "guestagent", "check", "--config", str(path))
        if path.name == "guestagent.toml":
            _take(members, missing, "check.txt", check)
    for name, command in COMMANDS.items():
        _take(members, missing, name, command)
    for name, source in FILES.items():
        try:
            members[name] = Path(source).read_bytes()
        except OSError as error:
            missing[name] = f"{source}: {error.strerror}"
    members["manifest.json"] = _json({"schema": SCHEMA, **_versions(), "missing": missing})
    return {name: _PRIVATE_KEY.sub(LEFT_OUT.encode(), data[-MOST_MEMBER_BYTES:]) for name, data in members.items()}


def known_part(path: Path) -> bytes:
    """A config with the values of keys that we know, as JSON lines `key = value`; others may be anybody's secret."""
    import tomllib

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return f"can't be read: {error.strerror}\n".encode()
    except ValueError as error:
        return f"is no TOML: {error}\n".encode()
    return "".join(
        f"{name} = {json.dumps(value, default=str) if name in KNOWN_KEYS else LEFT_OUT}\n"
        for name, value in flat(content)
    ).encode()


def _take(members: dict[str, bytes], missing: dict[str, str], name: str, command: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_SECONDS, check=False
        )
    except OSError as error:
        missing[name] = f"`{command[0]}`: {error.strerror}"
    except subprocess.TimeoutExpired:
        missing[name] = f"`{command[0]}` did not end within {COMMAND_SECONDS:.0f} s"
    else:
        members[name] = done.stdout + done.stderr


def _versions() -> dict[str, str]:
    import psutil

    return {
        "made": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "guestagent": __version__,
        "python": platform.python_version(),
        "psutil": psutil.__version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
