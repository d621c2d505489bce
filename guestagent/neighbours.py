"""Agents on one host leave out each other's streams: two that tap the NIC by which they send would else copy copies.

Each has one of SLOTS abstract UNIX sockets, which are seen by whoever shares the network namespace and by nobody else,
and tells the others its exclusions, before each connection and once a second. Believed are root, our own user and the
packages' user: everybody else could hide a connection from the capture. Who sent may be another program by the time
that we look, so nothing that /proc says of a process counts, but the user that the kernel wrote beside the message.
"""

import json
import logging
import os
import pwd
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple
from ipaddress import ip_address

from guestagent.desk import Desk
from guestagent.loop import READABLE, Loop
from guestagent.model import Exclusion

log = logging.getLogger("guestagent.agent")

SLOTS = 8
MOST_TOLD = 12
"""Exclusions of each: the last few connections, and some tunnels."""
MOST_BYTES = 4096
MOST_HEARD = 2 * SLOTS
"""In one turn: whoever shouts all the time keeps nobody from capturing."""
HEARING_SECONDS = 0.03
"""The loop of an agent rests 20 ms at the most while somebody tells it something."""
FORGOTTEN_SECONDS = 5.0
"""Who has not been heard for so long is gone, and its connections with it."""
_NAME = "\0guestagent-stream-{}"
_CREDENTIALS = struct.Struct("@3i")
"""struct ucred: pid, uid, gid (unix(7))."""
SERVICE_USER = "guestagent"
"""Of the units; no one else's processes have it (packaging/)."""
PORTED = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)


class Neighbours:
    """The other agents of this network namespace, as far as they can be believed."""

    def __init__(self, changed: Callable[[tuple[Exclusion, ...]], None], now: Callable[[], float]) -> None:
        self._changed, self._now = changed, now
        self._own: Sequence[Exclusion] = ()
        self._told: dict[int, tuple[float, tuple[Exclusion, ...]]] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._slot = next((slot for slot in range(SLOTS) if self._bind(slot)), SLOTS)
        if self._slot == SLOTS:
            log.warning("%d agents run here already: they copy this one's stream, and it theirs", SLOTS)

    def _bind(self, slot: int) -> bool:
        try:
            self._socket.bind(_NAME.format(slot))
        except OSError:
            return False
        return True

    def fileno(self) -> int:
        """Readable when a neighbour has told something."""
        return self._socket.fileno()

    def announce(self, own: Sequence[Exclusion]) -> None:
        """Tell of a connection that is about to be made, and give those who hear it the time to leave it out."""
        self._own = own
        if self._tell():
            time.sleep(HEARING_SECONDS)

    def _tell(self) -> int:
        """How many heard it."""
        if self._slot == SLOTS:
            return 0
        text, heard = json.dumps([astuple(one) for one in self._own[-MOST_TOLD:]]).encode(), 0
        for slot in range(SLOTS):
            if slot != self._slot:
                with suppress(OSError):  # nobody is there, or has not read for long
                    heard += self._socket.sendto(text, _NAME.format(slot)) > 0
        return heard

    def hear(self, _events: int = 0) -> None:
        """Take what neighbours told; a new one is told back."""
        known = set(self._told)
        with suppress(BlockingIOError):
            for _ in range(MOST_HEARD):
                data, ancillary, _, sender = self._socket.recvmsg(MOST_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
                slot = _slot_of(sender)
                if slot is not None and _is_believed(ancillary):
                    with suppress(ValueError):
                        self._told[slot] = self._now(), _decode(data)
        if self._told.keys() - known:
            self._tell()
        self._settle()

    def tick(self) -> None:
        """Tell it again, forget who is gone."""
        self._tell()
        since = self._now() - FORGOTTEN_SECONDS
        self._told = {slot: told for slot, told in self._told.items() if told[0] >= since}
        self._settle()

    def _settle(self) -> None:
        self._changed(tuple(one for _, (_, told) in sorted(self._told.items()) for one in told))

    def close(self) -> None:
        """Say no more: what the kernel still sends for us is left out until we are forgotten."""
        self._socket.close()


def meet(loop: Loop, desk: Desk) -> Neighbours:
    """Have the desk leave out what neighbours tell, and tell them what it leaves out itself."""
    neighbours = Neighbours(desk.leave_out, loop.now)
    desk.tell = neighbours.announce
    loop.watch(neighbours, READABLE, neighbours.hear)
    neighbours.announce(())
    neighbours.hear()
    return neighbours


def _slot_of(sender: object) -> int | None:
    names = {_NAME.format(slot).encode(): slot for slot in range(SLOTS)}
    return names.get(sender) if isinstance(sender, bytes) else None


def _is_believed(ancillary: list[tuple[int, int, bytes]]) -> bool:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) >= _CREDENTIALS.size:
            _, uid, _ = _CREDENTIALS.unpack_from(data)
            return uid in (0, os.geteuid()) or uid == _service_uid()
    return False


def _service_uid() -> int:
    try:
        return pwd.getpwnam(SERVICE_USER).pw_uid
    except KeyError:
        return 0


def _decode(data: bytes) -> tuple[Exclusion, ...]:
    """Exclusions as told. Raises ValueError for anything that is none."""
    try:
        return tuple(_exclusion(*row) for row in json.loads(data)[:MOST_TOLD])
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _exclusion(protocol: int, address: str, remote: int, local: int, last: int) -> Exclusion:
    numbers = (protocol, remote, local, last)
    if not all(type(number) is int for number in numbers) or not 0 < protocol < 256:
        raise ValueError(f"no exclusion: {numbers}")
    if not all(0 <= port < 1 << 16 for port in numbers[1:]) or (protocol in PORTED and not remote):
        raise ValueError(f"no ports of a connection: {numbers}")
    return Exclusion(protocol, str(ip_address(address)), remote, local, last)
