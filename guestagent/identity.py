"""Who this VM is: the cloud's instance id where cloud-init wrote it down, else the machine id; made safe as a name."""

import re
import socket
from pathlib import Path

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_PLACEHOLDERS = {"", "nocloud", "iid-datasource-none", "iid-local01", "uninitialized"}
"""What cloud-init and images without an identity of their own put there."""
_SOURCES = (Path("/var/lib/cloud/data/instance-id"), Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
MOST_CHARACTERS = 64


def safe_name(text: str) -> str:
    """`text` as a name that may become a file; empty where nothing of it can."""
    return _UNSAFE.sub("-", text.strip()).strip(".")[:MOST_CHARACTERS]


def agent_id(sources: tuple[Path, ...] = _SOURCES) -> str:
    """The first identity that is there, else the host's name."""
    for path in sources:
        try:
            text = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue
        if text not in _PLACEHOLDERS and safe_name(text):
            return safe_name(text)
    return host_name()


def host_name() -> str:
    """This host's name, as a safe name."""
    return safe_name(socket.gethostname()) or "localhost"
