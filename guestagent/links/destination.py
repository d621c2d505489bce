"""One sensor at the far end of a one-way tunnel: found by name, opened, and judged by what the network says of it.

A tunnel has no answers, so a sensor is *gone* for a while after an error came back: the host does not answer, no route,
nobody listens. Then the next copies are the test; each relapse doubles the wait. With `check=PORT` a TCP connection to
that port, made anew each second, must also have succeeded.

Where the host says that nobody listens, the copies did arrive: a sensor that sniffs has no socket. So others are
preferred, but nothing counts as lost.

A name is resolved again from time to time, off the loop: copies go on to the address that it has now, and where it has
several, to the next one while one can't be reached. An answer that is not private is refused like such a URL.
"""

import errno
import logging
import socket
from collections import Counter
from collections.abc import Iterable
from typing import Any, Protocol

from guestagent.encap.inner import UDP
from guestagent.encap.tunnel import TUNNELS
from guestagent.endpoint import Endpoint
from guestagent.links.batch import reason
from guestagent.links.datagram import open_datagrams
from guestagent.links.rawip import open_raw
from guestagent.links.resolve import Address, Resolver
from guestagent.links.sender import Sender
from guestagent.links.way import Way
from guestagent.loop import READABLE, Loop
from guestagent.model import Exclusion
from guestagent.trust import cleartext_sentence, is_private

log = logging.getLogger("guestagent.tunnels")

CHECK_SECONDS = 1.0
FIRST_GONE_SECONDS, MOST_GONE_SECONDS = 3.0, 48.0
"""An unanswered ARP request takes the kernel 3 s."""
RELAPSE_SECONDS = 10.0
RESOLVE_SECONDS, GONE_RESOLVE_SECONDS = 30.0, 3.0
"""How often a name is asked after, while the sensor is well and while it is gone; answers are cached for longer."""
_ARRIVED = frozenset(map(reason, (errno.ECONNREFUSED, errno.ENOPROTOOPT)))
"""ICMP port and protocol unreachable."""
_IPPROTO_TCP = 6
_ESTABLISHED = 1
"""TCP_ESTABLISHED (net/tcp_states.h), the first byte of struct tcp_info."""


class Captures(Protocol):
    """Whoever must not capture the copies, or send copies of them."""

    def exclude(self, exclusion: Exclusion) -> None:
        """Packets of ours, before the first of them leaves; each time counts."""

    def readmit(self, exclusion: Exclusion) -> None:
        """They are ours no more, or once less."""


class Destination:
    """A sensor; `way` is there once it could be opened."""

    def __init__(
        self, endpoint: Endpoint, policy: str, loop: Loop, captures: Captures, *, allow_cleartext: bool = False
    ) -> None:
        self.endpoint = endpoint
        self.name = str(endpoint)
        self.way: Way | None = None
        self.is_gone = False
        """Others are preferred."""
        self.is_unreachable = False
        """What is sent there is lost."""
        self.trouble = "not yet open"
        self._policy, self._loop, self._captures = policy, loop, captures
        self._allow_cleartext = allow_cleartext
        self._address: Address | None = None
        """Where the way leads."""
        self._exclusions: tuple[Exclusion, ...] = ()
        self._ask_at = 0.0
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
        if self.way is None or now >= self._ask_at:
            self._ask_at = now + (RESOLVE_SECONDS if self.is_well else GONE_RESOLVE_SECONDS)
            if not self._resolver.start():
                self._open()
        if self.way is None:
            return
        self.way.sender.check()
        self.way.follow_path()
        if self.endpoint.check:
            self._ask_companion(now)
        self.judge(now)

    def _resolved(self, _events: int) -> None:
        self._resolver.collect()
        self._open()

    def _open(self) -> None:
        """Go where the name leads now, unless copies go there already."""
        address = self._next_address()
        if address is None or (address == self._address and not self._is_astray()):
            return
        tunnel = TUNNELS[self.endpoint.scheme]
        try:
            sender = (open_datagrams if tunnel.transport == UDP else open_raw)(*address)
        except OSError as error:
            self._complain(f"no socket for it: {error.strerror}")
            return
        exclusions = self._exclusions_of(sender)
        for exclusion in exclusions:
            self._captures.exclude(exclusion)
        try:
            sender.connect()
        except OSError as error:
            sender.close()
            self._readmit(exclusions)
            self._complain(f"no way leads there: {error.strerror}")
            return
        if self.way is None:
            self.way, self.trouble = Way(tunnel, sender, self._policy), ""
        else:
            log.warning("%s is at %s now, seen from %s, copies go there", self.name, address[1][0], sender.source)
            self.way.move(sender)
            self.is_gone, self.is_unreachable, self.trouble = False, False, ""
        self._readmit(self._exclusions)
        self._address, self._exclusions = address, exclusions
        self._drop_check()

    def _is_astray(self) -> bool:
        return self.way is not None and self.way.sender.is_astray

    def _exclusions_of(self, sender: Sender) -> tuple[Exclusion, ...]:
        if not self.endpoint.check:
            return sender.exclusions
        companion = Exclusion(_IPPROTO_TCP, sender.exclusions[0].remote_address, self.endpoint.check, 0)
        return (*sender.exclusions, companion)

    def _readmit(self, exclusions: Iterable[Exclusion]) -> None:
        for one in exclusions:
            self._captures.readmit(one)

    def _next_address(self) -> Address | None:
        """Where copies should go; None, with a complaint, where that is nowhere."""
        found = self._resolver.addresses
        allowed = [one for one in found if self._allow_cleartext or is_private(str(one[1][0]))]
        if not found:
            self._complain(f"the name could not be resolved: {self._resolver.error}")
        elif not allowed:
            self._complain(cleartext_sentence(f"{self.name} at {found[0][1][0]}"))
        if not allowed or self._address not in allowed:
            return allowed[0] if allowed else None
        step = 1 if self.is_unreachable else 0
        return allowed[(allowed.index(self._address) + step) % len(allowed)]

    def _complain(self, trouble: str) -> None:
        """Without a way that is the trouble; else copies go on where they went."""
        if self.way is None:
            self.trouble = trouble
        else:
            log.warning("%s: %s; copies go on to the address before", self.name, trouble)

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
        self._ask_at = min(self._ask_at, now + GONE_RESOLVE_SECONDS)

    def _ask_companion(self, now: float) -> None:
        assert self._address is not None
        if self._check is not None:
            state = self._check.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            self._drop_check()
            if state != _ESTABLISHED:
                self._fail(now, f"TCP port {self.endpoint.check} does not accept connections", True)
        family, address = self._address
        try:
            self._check = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            log.warning("%s: TCP port %d can't be asked: %s", self.name, self.endpoint.check, error.strerror)
            return
        self._check.connect_ex((address[0], self.endpoint.check, *address[2:]))

    def _drop_check(self) -> None:
        if self._check is not None:
            self._check.close()
            self._check = None

    def describe(self) -> dict[str, Any]:
        """For status and reports."""
        address = str(self._address[1][0]) if self._address else ""
        about = {"to": self.name, "address": address, "well": self.is_well, "trouble": self.trouble}
        return about | (self.way.describe() if self.way else {})

    def close(self) -> None:
        """Give back all descriptors."""
        if self.way is not None:
            self.way.sender.close()
        self._drop_check()
        if self._resolver.fileno() >= 0:
            self._loop.forget(self._resolver)
        self._resolver.close()
