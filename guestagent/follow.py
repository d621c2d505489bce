"""A NIC's life: renamed, changed, gone and made anew under its old name or another one. The capture follows it.

The kernel keeps the socket bound through flaps and renames. After a removal the old socket is bound to the new device,
which needs no privilege; what its ring holds stays. An interface's id is the same for the whole run.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

from guestagent.capture.interfaces import Changes, Link, default_interfaces, links, local_addresses
from guestagent.capture.source import Source
from guestagent.desk import Desk
from guestagent.errors import ConfigError

log = logging.getLogger("guestagent.agent")


class Follower:
    """Asked once a second, it looks at the devices of this host where one changed: within two it is followed."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._tap = desk, desk.tap
        self._changes, self._is_due = Changes(), True
        self._gone: set[int] = set()
        """Interfaces without a device."""
        self.is_up = {source.interface.name: True for source in self._tap.sources}
        """By name: there and up, as of the last look."""

    def look(self) -> None:
        """Bind to devices that came, tell the collector of new facts. Raises OSError; then the look is still due."""
        self._is_due = self._changes.seen() or self._is_due
        if self._is_due or self._gone:
            self._look()
            self._is_due = False

    def _look(self) -> None:
        known, addresses = links(), local_addresses()
        by_index = {link.index: link for link in known.values()}
        self.is_up = {}
        for source in self._tap.sources:
            if trouble := source.pending_error():
                log.warning("interface %s: %s", source.interface.name, trouble)
            link = by_index.get(source.index) or self._successor(source, known)
            self.is_up[source.interface.name if link is None else link.name] = link is not None and link.is_up
            if link is None:
                self._lost(source)
            elif (link.index == source.index and source.is_bound()) or self._rebind(source, link):
                self._tell(source, link, addresses.get(link.name, ()))

    def close(self) -> None:
        """Hear of no changes any more."""
        self._changes.close()

    def _lost(self, source: Source) -> None:
        if source.interface.id not in self._gone:
            self._gone.add(source.interface.id)
            log.warning("interface %s is gone; waiting for it to come back", source.interface.name)

    def _successor(self, source: Source, known: dict[str, Link]) -> Link | None:
        """The device that took a lost one's place: its name, its MAC, or what the choice of the operator means now."""
        mine = source.interface
        lost = self._desk.capture.links[mine.id]
        others = [one for one in self._tap.sources if one is not source]
        taken = {one.index for one in others}, {one.interface.name for one in others}
        free = [
            link
            for link in known.values()
            if link.index not in taken[0] and link.name not in taken[1] and link.hardware_type == lost.hardware_type
        ]
        wished = self._desk.capture.wish.interfaces or _default_names()
        ranks: tuple[Callable[[Link], bool], ...] = (
            lambda link: link.name == mine.name,
            lambda link: (link.mac, link.kind) == (mine.mac, lost.kind) and not link.master,  # its VLANs have its MAC
            lambda link: not link.master and any(fnmatchcase(link.name, one) for one in wished),
        )
        return next((link for fits in ranks for link in free if fits(link)), None)

    def _rebind(self, source: Source, link: Link) -> bool:
        try:
            source.bind(link.index)
        except OSError as error:  # gone again already
            log.warning("interface %s could not be bound: %s", link.name, error.strerror)
            return False
        self._gone.discard(source.interface.id)
        self._desk.capture.links[source.interface.id] = link
        log.warning("interface %s was made anew; capturing it again", link.name)
        return True

    def _tell(self, source: Source, link: Link, addresses: tuple[str, ...]) -> None:
        was = source.interface
        new = replace(was, name=link.name, mac=link.mac, mtu=link.mtu, addresses=addresses)
        if new != was:
            if link.name != was.name:
                log.warning("interface %s is called %s now", was.name, link.name)
                self._desk.capture.links[was.id] = link
            source.interface = new
            self._desk.interface_changed(new)


def _default_names() -> tuple[str, ...]:
    try:
        return default_interfaces()
    except ConfigError:
        return ()
