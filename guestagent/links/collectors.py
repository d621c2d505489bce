"""Which collector to try next, and when to go back to a better one. Pure: addresses and time come as arguments.

The first of the list is preferred. A round tries each address of each collector once, in order; after a round that
nobody answered comes the back-off. While another one serves, better ones are watched: a collector is taken back after
HEALTHY_PONGS answers a second apart, and each return that does not last doubles the wait before the next.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from guestagent.endpoint import Endpoint


class Patience(NamedTuple):
    """How long a collector may take before it counts as gone."""

    connect_seconds: float
    """To accept the connection, and again to answer the hello."""
    silence_seconds: float
    """More than PING_SECONDS, or no answer to a ping could come in time."""


SILENCE_SECONDS = 3.0
"""A collector that answers nothing for so long is gone; its successor is found within the ring's 25 s."""
ALONE = Patience(3.0, SILENCE_SECONDS)
WITH_OTHERS = Patience(1.5, 2.0)
"""Another one takes over within 3 s."""
HEALTHY_PONGS = 3
FIRST_RETURN_SECONDS, MOST_RETURN_SECONDS = 5.0, 300.0
LASTING_SECONDS = 60.0
"""A return that held so long was right."""


def ordered(collectors: Sequence[Endpoint], agent_id: str) -> list[Endpoint]:
    """The order in which this agent prefers the collectors, by rendezvous: losing one moves its agents alone."""
    return sorted(collectors, key=lambda one: _weight(f"{agent_id}\n{one}"), reverse=True)


def _weight(text: str) -> int:
    """FNV-1a and a finalizer, 64 bits; the same on every machine, and hashlib would load OpenSSL."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 33


class Rota:
    """Whose turn it is, of `count` collectors."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.at = 0
        """The collector whose turn it is, or that serves."""
        self.look_at = inf
        """When to look for a better one; infinite where the best one serves."""
        self._address = 0
        self._looks = 0
        self._return_seconds = FIRST_RETURN_SECONDS
        self._returned_at = -inf

    def address(self, addresses: int) -> int:
        """Which of so many addresses of the collector at turn to try."""
        return self._address % max(1, addresses)

    def failed(self, addresses: int) -> bool:
        """Nobody answered there, or no more: the next address, the next collector; True where the round is over."""
        self.look_at = inf
        self._address += 1
        if self._address < addresses:
            return False
        self._address = 0
        self.at = (self.at + 1) % self.count
        return self.at == 0

    def broke(self, now: float) -> None:
        """The one that served, or was to serve, is gone, too soon perhaps."""
        if self.at == 0 and self._returned_at > -inf:
            lasted = now - self._returned_at >= LASTING_SECONDS
            self._return_seconds = (
                FIRST_RETURN_SECONDS if lasted else min(self._return_seconds * 2, MOST_RETURN_SECONDS)
            )
            self._returned_at = -inf  # one return, one verdict

    def serves(self, now: float) -> None:
        """The collector at turn answered."""
        self.look_at = now + self._return_seconds if self.at else inf

    def look(self, now: float) -> int:
        """Which better collector to watch now, each in turn."""
        self.look_at = now + self._return_seconds
        self._looks += 1
        return self._looks % self.at

    def returned(self, at: int, now: float) -> None:
        """A better collector takes over."""
        self.at, self._address = at, 0
        self.look_at = inf
        self._returned_at = now
