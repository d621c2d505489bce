"""What systemd is told of a service, by the protocol of sd_notify(3): datagrams of VAR=value lines, no library."""

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Speaks to NOTIFY_SOCKET; every call does nothing where that is not set, or where nobody listens any more."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = ("WATCHDOG=1",) if is_ours and environment.get("WATCHDOG_USEC") else ()
        self._status = ""

    def _send(self, *lines: str) -> None:
        if self._address and lines:
            try:
                self._socket.sendto("\n".join(lines).encode(), self._address)
            except OSError:
                pass  # the service manager restarts or is busy; the next beat says the same

    def ready(self) -> None:
        """The start is over, or a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins; systemd compares the time with that of its own signal."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def beat(self, status: str) -> None:
        """The loop turns; once a second. `status` is one line for `systemctl status`."""
        news = (f"STATUS={status}",) if status != self._status else ()
        self._status = status
        self._send(*news, *self._watchdog)

    def stopping(self) -> None:
        """The drain begins."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Give the descriptor back; idempotent."""
        self._socket.close()
