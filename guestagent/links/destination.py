"""One sensor at the far end of a one-way tunnel: found by name, opened, and judged by what the network says of it.

A tunnel has no answers, so a sensor is *gone* for a while after an error came back: the host does not answer, no route,
nobody listens. Then the next copies are the test; each relapse doubles the wait. With `check=PORT` a TCP connection to
that port, made anew each second, must also have succeeded.

Where the host says that nobody listens, the copies did arrive: a sensor that sniffs has no socket. So others are
preferred, but nothing counts as lost.
"""

import errno
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from guestagent.encap.inner import UDP
from guestagent.encap.tunnel import TUNNELS
from guestagent.endpoint import Endpoint
from guestagent.links.batch import reason
from guestagent.links.datagram import open_datagrams
from guestagent.links.rawip import open_raw
from guestagent.links.resolve import Resolver
from guestagent.links.way import Way
from guestagent.loop import READABLE, Loop
from guestagent.model import Exclusion

CHECK_SECONDS = 1.0
FIRST_GONE_SECONDS, MOST_GONE_SECONDS = 3.0, 48.0
"""An unanswered ARP request takes the kernel 3 s."""
RELAPSE_SECONDS = 10.0
_ARRIVED = frozenset(map(reason, (errno.ECONNREFUSED, errno.ENOPROTOOPT)))
"""ICMP port and protocol unreachable."""
_IPPROTO_TCP = 6
_ESTABLISHED = 1
"""TCP_ESTABLISHED (net/tcp_states.h), the first byte of struct tcp_info."""


class Destination:
    """A sensor; `way` is there once it could be opened."""

    def __init__(self, endpoint: Endpoint, policy: str, loop: Loop, exclude: Callable[[Exclusion], None]) -> None:
        self.endpoint = endpoint
        self.name = str(endpoint)
        self.way: Way | None = None
        self.is_gone = False
        """Others are preferred."""
        self.is_unreachable = False
        """What is sent there is lost."""
        self.trouble = "not yet open"
        self._policy, self._loop, self._exclude = policy, loop, exclude
        self._resolver = Resolver(endpoint.host, endpoint.port)
        loop.watch(self._resolver, READABLE, self._resolved)
        self._faults_seen: Counter[str] = Counter()
        self._gone_until = self._back_at = 0.0
        self._gone_seconds = FIRST_GONE_SECONDS
        self._check: socket.socket | None = None

    @property
    def is_well(self) -> bool:
        """May copies be sent there?"""
        return self.way is not None and not self.is_gone

    # -- opening --------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Once a second: open what is not open, hear errors, follow the path's MTU, ask the companion port."""
        if self.way is None:
            if not self._resolver.start():
                self._open()
            return
        self.way.sender.check()
        self.way.follow_path()
        if self.endpoint.check:
            self._ask_companion(now)
        self.judge(now)

    def _resolved(self, _events: int) -> None:
        self._resolver.collect()
        if self.way is None:
            self._open()

    def _open(self) -> None:
        if not self._resolver.addresses:
            self.trouble = f"the name could not be resolved: {self._resolver.error}"
            return
        family, address = self._resolver.addresses[0]
        tunnel = TUNNELS[self.endpoint.scheme]
        try:
            sender = (open_datagrams if tunnel.transport == UDP else open_raw)(family, address)
        except OSError as error:
            self.trouble = f"no socket for it: {error.strerror}"
            return
        try:
            for exclusion in sender.exclusions:
                self._exclude(exclusion)
            if self.endpoint.check:
                self._exclude(Exclusion(_IPPROTO_TCP, sender.exclusions[0].remote_address, self.endpoint.check, 0))
            sender.connect()
        except OSError as error:
            sender.close()
            self.trouble = f"no way leads there: {error.strerror}"
            return
        self.way, self.trouble = Way(tunnel, sender, self._policy), ""

    # -- judging --------------------------------------------------------------------------------------------------

    def judge(self, now: float) -> None:
        """Is it gone, by what was heard since the last look?"""
        if self.way is None:
            return
        faults = self.way.sender.faults
        if faults.total() > self._faults_seen.total():
            new = faults - self._faults_seen
            self._faults_seen = Counter(faults)
            arrived = new.keys() <= _ARRIVED
            if not (arrived and self.endpoint.check):  # the companion port knows better
                self._fail(now, " and ".join(name.replace("_", " ") for name in sorted(new)), not arrived)
        elif self.is_gone and now >= self._gone_until:
            self.is_gone, self.is_unreachable, self.trouble, self._back_at = False, False, "", now

    def _fail(self, now: float, trouble: str, is_unreachable: bool) -> None:
        if not self.is_gone:
            relapsed = now - self._back_at < RELAPSE_SECONDS and self._back_at > 0
            self._gone_seconds = min(MOST_GONE_SECONDS, 2 * self._gone_seconds) if relapsed else FIRST_GONE_SECONDS
        self.is_gone, self.is_unreachable, self.trouble = True, is_unreachable, trouble
        self._gone_until = now + self._gone_seconds

    def _ask_companion(self, now: float) -> None:
        if self._check is not None:
            state = self._check.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            self._check.close()
            if state != _ESTABLISHED:
                self._fail(now, f"TCP port {self.endpoint.check} does not accept connections", True)
        family, address = self._resolver.addresses[0]
        self._check = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._check.connect_ex((address[0], self.endpoint.check, *address[2:]))

    def describe(self) -> dict[str, Any]:
        """For status and reports."""
        about = {"to": self.name, "well": self.is_well, "trouble": self.trouble}
        return about | (self.way.describe() if self.way else {})

    def close(self) -> None:
        """Give back all descriptors."""
        if self.way is not None:
            self.way.sender.close()
        if self._check is not None:
            self._check.close()
        if self._resolver.fileno() >= 0:
            self._loop.forget(self._resolver)
        self._resolver.close()
