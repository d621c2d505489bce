"""What psutil, /proc and the kernel know of the host, in the governor's words; the one file of this room that reads.

Devices are asked about one by one (rtnetlink(7), RTM_GETSTATS, Linux 4.7): psutil reads /proc/net/dev, which has a line
for each device of the host, and a host of containers has hundreds.
"""

import os
import time
from collections.abc import Sequence
from operator import sub
from pathlib import Path
from struct import Struct

import psutil

from guestagent import netlink
from guestagent.governor.limits import Traffic, Usage

MOST_BYTES = 512
"""Of /proc/loadavg and /proc/pressure/cpu: they have one and two lines. Of an answer of rtnetlink: some 230 bytes."""
_MOST_GONE = 64
"""Devices whose counts are kept apart after they went, for each of them may come back and go on counting."""
_RTM_NEWSTATS, _RTM_GETSTATS = 92, 94
_IF_STATS_MSG = Struct("=4xII")
"""struct if_stats_msg (linux/if_link.h): the index of a device, and what is asked."""
_LINK_64 = 1
"""IFLA_STATS_LINK_64, as an attribute and as a bit of what is asked."""
_LINK_STATS = Struct("=4Q")
"""The first fields of struct rtnl_link_stats64: packets received and sent, bytes received and sent."""


class Meter:
    """Reads the host's CPU and what its devices counted.

    Files that this kernel lacks are remembered as missing and not asked for again.
    """

    def __init__(self, proc: str = "/proc") -> None:
        self.cores = psutil.cpu_count() or 1
        self._loadavg = _open(Path(proc, "loadavg"))
        self._pressure = _open(Path(proc, "pressure/cpu"))
        self._netlink = netlink.open_socket()
        self._counted: dict[int, Traffic] = {}
        """By device, as of its last answer."""
        self._counted_before = Traffic()
        """By devices that are kept no more, less what later ones had counted when they came."""

    def read(self, retransmitted: int | None = None) -> Usage:
        """One reading; `retransmitted` is the link's own count, passed on."""
        return Usage(
            cores=self.cores,
            # The process's clock as psutil reads it has ticks of 10 ms, a tenth of our tick; this one counts ns.
            own_seconds=time.process_time(),
            stalled_seconds=_stalled_seconds(_text(self._pressure)),
            stolen_seconds=_stolen_seconds(),
            running=_running(_text(self._loadavg)),
            retransmitted=retransmitted,
        )

    def traffic(self, indexes: Sequence[int]) -> Traffic | None:
        """What these devices counted, and those that were asked for before; None where none has ever answered.

        One that comes later, in the place of another, counts from there on: it may have lived for long.
        """
        has_begun = bool(self._counted)
        for index in indexes:
            if counted := self._ask(index):
                if has_begun and index not in self._counted:  # what it counted before it was tapped is not ours
                    self._counted_before = _difference(self._counted_before, counted)
                self._counted[index] = counted
        for index in [one for one in self._counted if one not in indexes][:-_MOST_GONE]:
            self._counted_before = _sum(self._counted_before, self._counted.pop(index))
        return _sum(self._counted_before, *self._counted.values()) if self._counted else None

    def _ask(self, index: int) -> Traffic | None:
        try:
            self._netlink.send(netlink.question(_RTM_GETSTATS, _IF_STATS_MSG.pack(index, _LINK_64)))
            answer = self._netlink.recv(MOST_BYTES)
        except OSError:
            return None
        return _link_stats(answer)

    def close(self) -> None:
        """Give the descriptors back; idempotent."""
        self._netlink.close()
        for descriptor in (self._loadavg, self._pressure):
            if descriptor is not None:
                os.close(descriptor)
        self._loadavg = self._pressure = None


def _difference(one: Traffic, other: Traffic) -> Traffic:
    return Traffic(*map(sub, one, other))


def _sum(*parts: Traffic) -> Traffic:
    return Traffic(*map(sum, zip(*parts, strict=True)))


def _link_stats(answer: bytes) -> Traffic | None:
    """None of one that says that there is no such device."""
    for kind, body in netlink.messages(answer):
        if kind == _RTM_NEWSTATS:
            counted = netlink.attributes(body[_IF_STATS_MSG.size :]).get(_LINK_64, b"")
            return Traffic(*_LINK_STATS.unpack_from(counted)) if len(counted) >= _LINK_STATS.size else None
    return None


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _text(descriptor: int | None) -> str:
    """A file of /proc from its start; kernels with pressure stall information switched off fail to read it."""
    try:
        return "" if descriptor is None else os.pread(descriptor, MOST_BYTES, 0).decode("ascii", "replace")
    except OSError:
        return ""


def _stolen_seconds() -> float | None:
    try:
        return getattr(psutil.cpu_times(), "steal", None)
    except OSError:  # psutil opens /proc/stat each time, and there may be no free descriptor
        return None


def _stalled_seconds(text: str) -> float | None:
    """Of `some avg10=8.21 avg60=30.81 avg300=22.13 total=396986905`."""
    first = text.partition("\n")[0]
    total = first.rpartition("total=")[2] if first.startswith("some ") else ""
    return int(total) / 1e6 if total.isdecimal() else None


def _running(text: str) -> int | None:
    """Of `0.20 0.18 0.12 3/345 11206`: three, and one of them is this process reading."""
    fields = text.split()
    number = fields[3].partition("/")[0] if len(fields) > 3 else ""
    return max(0, int(number) - 1) if number.isdecimal() else None
