"""Several stream links as one: each has its own collector and connection, and every collector gets every frame."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Protocol

from guestagent.links.owner import LinkState, OnTheWire
from guestagent.links.stream import StreamLink


class Books(Protocol):
    """Who has what of the frames that all links send."""

    def relieve(self, cut: Callable[[int], bool]) -> None:
        """Give back what fills the ring; `cut` ends the connection of the link of this number, if it streams."""

    def finish(self) -> None:
        """Close the books."""

    def describe(self, at: int) -> dict[str, Any]:
        """Those of one collector."""


class ReplicateLink:
    """See `links.owner.Link` for the contract; each copy has caps of its own."""

    on_the_wire = OnTheWire()

    def __init__(self, links: Sequence[StreamLink], books: Books) -> None:
        self._links, self._books = links, books

    @property
    def state(self) -> LinkState:
        """Of all links together; connected while one is."""
        states = [link.state for link in self._links]
        return LinkState(
            connected=any(one.connected for one in states),
            text="; ".join(one.text for one in states),
            reconnects=sum(one.reconnects for one in states),
            sent_bytes=sum(one.sent_bytes for one in states),
            retransmitted=sum(one.retransmitted for one in states),
            trouble="; ".join(one.trouble for one in states if one.trouble),
            destinations=[
                {**about, **self._books.describe(at)} for at, one in enumerate(states) for about in one.destinations
            ],
        )

    @property
    def is_blocked(self) -> bool:
        """Was one of the ways full at the last pump?"""
        return any(link.is_blocked for link in self._links)

    def deadline(self) -> float:
        """When `tick` is due."""
        return min(link.deadline() for link in self._links)

    def tick(self, now: float) -> None:
        """Do what time asks for."""
        for link in self._links:
            link.tick(now)

    def pump(self, now: float) -> bool:
        """Send what can be sent; True where more could go at once."""
        self._books.relieve(lambda at: self._links[at].cut("it lags half a ring behind, and is left behind"))
        return reduce(lambda more, link: link.pump(now) or more, self._links, False)

    def retransmitted(self) -> int | None:
        """Segments that the kernel sent again on these connections; None without one."""
        counts = [count for link in self._links if (count := link.retransmitted()) is not None]
        return sum(counts) if counts else None

    def finish(self, reason: str) -> None:
        """Say goodbye to all."""
        for link in self._links:
            link.finish(reason)
        self._books.finish()

    def close(self) -> None:
        """Give every descriptor back; idempotent."""
        for link in self._links:
            link.close()
