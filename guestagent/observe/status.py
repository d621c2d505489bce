"""The status socket: connect, read one JSON object, done. Read-only; a file in a directory that only we may enter."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from guestagent.errors import HostError, RunError
from guestagent.loop import OUT_OF_FILES

ASK_SECONDS = 2.0
PATIENCE_SECONDS = 0.1
"""Only a collector of many agents with long histories has more to tell than fits a socket (400 KB)."""
MOST_STATUS_BYTES = 256 * 1024 * 1024
"""4,096 agents with a hundred rows of either history have 58 KB each."""
MOST_PATH_BYTES = 107
"""struct sockaddr_un has 108 with the zero behind it (unix(7))."""
NAMELESS_SECONDS = 60.0
"""A socket has its name a millisecond after it was bound; whoever made one that is so old was killed in between."""
_DIRECTORY_MODE, _SOCKET_MODE = 0o750, 0o660

SERVICES = Path("/run/guestagent")
"""Of root and the packages' user; members of its group may ask."""


def directory() -> Path:
    """SERVICES for root and services, below XDG_RUNTIME_DIR for others."""
    if given := os.environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    if os.geteuid() == 0:
        return SERVICES
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/guestagent-{os.geteuid()}") / "guestagent"


class StatusSocket:
    """Answers each connection with a snapshot and closes it."""

    def __init__(self, role: str, snapshot: Callable[[], dict[str, Any]], suffix: str = "sock") -> None:
        self.path = directory() / f"{role}-{os.getpid()}.{suffix}"
        self._snapshot = snapshot
        # Under its name only once it answers: whoever is refused takes the file for one that was left behind.
        fresh = self.path.with_name(f"{self.path.name}.new")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self.path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            _sweep(self.path.parent)
            fresh.unlink(missing_ok=True)
            self._socket.bind(str(fresh))
            fresh.chmod(_SOCKET_MODE)
            self._socket.listen(8)
            fresh.rename(self.path)
        except OSError as error:
            self._socket.close()
            if error.errno is None and len(os.fsencode(fresh)) > MOST_PATH_BYTES:  # Python refuses it by itself
                raise HostError(
                    f"no status socket at {self.path}: that may have {MOST_PATH_BYTES} bytes, so set RUNTIME_DIRECTORY "
                    "to a shorter path"
                ) from error
            raise RunError(f"no status socket at {self.path}: {error.strerror or error}") from error

    def fileno(self) -> int:
        """The listening descriptor."""
        return self._socket.fileno()

    def answer(self, _events: int) -> None:
        """Serve one asker. What the socket takes at once costs nothing; for more the asker has PATIENCE_SECONDS.

        Raises OSError where no descriptor is left for it.
        """
        try:
            asker, _ = self._socket.accept()
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                raise
            return
        with contextlib.suppress(OSError), asker:
            data = json.dumps(self._snapshot()).encode()
            asker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(data) + 4096)
            asker.setblocking(False)
            rest = data[asker.send(data) :]
            asker.settimeout(PATIENCE_SECONDS)
            asker.sendall(rest)

    def close(self) -> None:
        """Remove the socket."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


def _sweep(where: Path) -> None:
    """Remove the sockets that killed processes left; one that does not answer is somebody's."""
    for path in where.glob("*.new"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > NAMELESS_SECONDS:
                path.unlink()
    for path in (*where.glob("*.sock"), *where.glob("*.worker")):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
            asker.setblocking(False)
            try:
                asker.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def ask(path: Path) -> dict[str, Any] | None:
    """The snapshot behind one socket, {} where somebody listens who has not told all of it in ASK_SECONDS.

    None, and the file is removed, where nobody listens any more.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
            asker.settimeout(ASK_SECONDS)
            asker.connect(str(path))
            data = bytearray()
            while len(data) < MOST_STATUS_BYTES and (part := asker.recv(1 << 16)):
                data += part
        value = json.loads(data)
    except ConnectionRefusedError:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    except (TimeoutError, BlockingIOError, ValueError):  # the second: as many askers wait already as may
        return {}
    except OSError:
        return None
    return value if isinstance(value, dict) else {}


class Found(NamedTuple):
    """All agents and collectors of this host, by socket name: `agent-PID`, `collector-PID`."""

    running: dict[str, dict[str, Any]]
    """What each tells of itself."""
    silent: list[str]
    """They are there, but stopped, or too busy to answer in ASK_SECONDS."""


def everything() -> Found:
    """Ask all that run here: our own, and the services', where we may."""
    places = {directory()} if "RUNTIME_DIRECTORY" in os.environ else {directory(), SERVICES}
    answers = {path.stem: ask(path) for place in sorted(places) for path in sorted(place.glob("*.sock"))}
    return Found(
        {name: snapshot for name, snapshot in answers.items() if snapshot},
        [name for name, snapshot in answers.items() if snapshot == {}],
    )
