"""Collector names to addresses without stopping the loop: a short-lived thread, the one exception to "no threads"."""

import ipaddress
import os
import socket
import threading
from typing import Any

Address = tuple[int, Any]
"""(address family, socket address) as connect takes them."""


def is_numeric(host: str) -> bool:
    """Does `host` need no name server?"""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def look_up(host: str, port: int, flags: int = 0) -> list[Address]:
    """Ask the name server, as long as that takes. Raises OSError, and UnicodeError for what can be no name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


class Resolver:
    """Resolves one host; keeps the last good answer for the time when the name server is gone."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._busy = False
        self._closed = False
        self.addresses: list[Address] = []
        self.error = ""
        if is_numeric(host):
            self._read()

    def fileno(self) -> int:
        """Readable once an answer is there."""
        return self._event

    def start(self) -> bool:
        """Ask; False where the host is numeric and the answer is there already."""
        if is_numeric(self._host):
            if not self.addresses:
                self._read()
            return False
        if not self._busy:
            self._busy = True
            try:
                threading.Thread(target=self._ask, name="resolve", daemon=True).start()
            except RuntimeError as failure:  # RLIMIT_NPROC or memory; the back-off tries again
                self.error = str(failure)
                os.eventfd_write(self._event, 1)
        return True

    def _read(self) -> None:
        """A numeric host; its zone may name an interface that comes later."""
        try:
            self.addresses, self.error = look_up(self._host, self._port, socket.AI_NUMERICHOST), ""
        except OSError as failure:
            self.error = failure.strerror or str(failure)

    def _ask(self) -> None:
        addresses, error = [], ""
        try:
            addresses = look_up(self._host, self._port)
        except OSError as failure:
            error = failure.strerror or str(failure)
        except UnicodeError as failure:  # a label that is empty or too long for the name system
            error = str(failure)
        with self._lock:
            self.error = error
            if addresses:
                self.addresses = addresses
            if not self._closed:
                os.eventfd_write(self._event, 1)

    def collect(self) -> None:
        """Called when the descriptor is readable: the answer is in `addresses` and `error`."""
        os.eventfd_read(self._event)
        self._busy = False

    def close(self) -> None:
        """The thread, if one still waits for a name server, ends alone and touches nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._event)
                self._event = -1
