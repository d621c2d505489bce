"""Who may leave whose packets out: pair dedupe, decided where both ends of a conversation are seen. Pure.

When two tapped VMs talk, each packet is captured twice. The sender's copy is kept: an agent with a lease on a peer's
addresses leaves their incoming packets out. Duplicates are the safe error, so a lease is granted only on a peer that

- is of the same address domain (private addresses come again in other networks) and the only one with that address,
- is connected and was whole in its last two reports, the last of them no older than FRESH_SECONDS,
- selects what the agent itself selects, and lost nothing in its ring between those reports. That must be told by the
  packet alone: a filter that asks for the direction, the link layer, a length or single bytes may take a packet at one
  end and leave it at the other, where it is merged otherwise.

A peer that dies without a word was last heard at most 3 s before the last grant, which lasts 5 s: no packet is missing
later than 8 s after. Whoever says that it sheds, or goes, is taken out within CHECK_SECONDS.
"""

import re
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, NamedTuple, Protocol

from guestagent.model import Interface
from guestagent.tapstream.hello import AgentHello
from guestagent.tapstream.lease import MOST_PEERS, Lease, leasable

LEASE_SECONDS = 5.0
RENEW_SECONDS = 1.0
FRESH_SECONDS = 3.0
CHECK_SECONDS = 0.1
LEAST_WHOLE_REPORTS = 2
NEVER = -1.0
"""A moment before all others; JSON knows no infinity."""
_SELECTION = ("filter", "keep", "slice")
"""Keys of a report's limits that must be the same at both ends; with `keep` below 1 the seed, too."""
_ONE_SIDED = re.compile(
    r"\b(inbound|outbound|ifname|ifindex|ether|link|wlan|fddi|tr|ppp|slip|vlan|mpls|pppoe[ds]|broadcast|multicast|len"
    r"|less|greater)\b|\["
)
"""Words of pcap-filter(7) by which two ends of a conversation can differ over a packet; libpcap takes fddi, tr, ppp and
slip for ether on any link."""
_LOSSES = ("capped", "dropped_by_ring", "unsupported_gso")


class Standing(NamedTuple):
    """How one agent of a domain stands, as far as a lease depends on it."""

    domain: str
    addresses: tuple[str, ...]
    """Those that peers may leave to this agent."""
    selection: tuple[str, ...]
    whole_until: float
    """Monotonic seconds until which others can rely on its copies."""

    def is_whole(self, now: float) -> bool:
        """Can others rely on its copies?"""
        return now <= self.whole_until


class Peer(Protocol):
    """What is asked of a Member or of its Standing."""

    @property
    def domain(self) -> str: ...
    @property
    def addresses(self) -> tuple[str, ...]: ...
    @property
    def selection(self) -> tuple[str, ...]: ...
    def is_whole(self, now: float) -> bool:
        """Can others rely on its copies?"""


class Member:
    """One agent of a domain, as its hello and its reports show it."""

    def __init__(self, hello: AgentHello) -> None:
        self.domain = hello.dedupe
        self._interfaces = {one.id: one for one in hello.interfaces}
        self.addresses = _leasable(self._interfaces.values())
        """Those that peers may leave to this agent."""
        self.whole_reports = 0
        self.selection: tuple[str, ...] = ()
        self._lost: tuple[Any, ...] = ()
        self._reported_at = -inf

    def described(self, facts: Interface) -> None:
        """An interface has other addresses now: an old one may be another host's, whose packets nobody else copies."""
        self._interfaces[facts.id] = facts
        self.addresses = _leasable(self._interfaces.values())

    def reported(self, report: Mapping[str, Any], now: float) -> None:
        """One more REPORT; what is missing in it is not whole."""
        limits, interfaces = report.get("limits"), report.get("interfaces")
        if not isinstance(limits, dict) or not isinstance(interfaces, dict):
            self.whole_reports = 0
            return
        lost = tuple(repr(one.get(key)) for one in interfaces.values() if isinstance(one, dict) for key in _LOSSES)
        is_whole = limits.get("reduced") is False and limits.get("probe") is False and _is_mutual(limits)
        is_same = self.whole_reports == 0 or lost == self._lost
        self.whole_reports = self.whole_reports + 1 if is_whole and is_same else 0
        keys = _SELECTION if limits.get("keep") == 1 else (*_SELECTION, "seed")
        self.selection = tuple(repr(limits.get(key)) for key in keys)
        self._lost, self._reported_at = lost, now

    def is_whole(self, now: float) -> bool:
        """Can others rely on its copies?"""
        return self.standing().is_whole(now)

    def standing(self) -> Standing:
        """As of now, for whoever decides elsewhere."""
        is_whole = self.whole_reports >= LEAST_WHOLE_REPORTS
        whole_until = self._reported_at + FRESH_SECONDS if is_whole else NEVER
        return Standing(self.domain, self.addresses, self.selection, whole_until)


def _is_mutual(limits: Mapping[str, Any]) -> bool:
    return not _ONE_SIDED.search(str(limits.get("filter", "")).lower())


def _leasable(interfaces: Iterable[Interface]) -> tuple[str, ...]:
    found = (leasable(address) for one in interfaces for address in one.addresses)
    return tuple(sorted({address for address in found if address}))


class Grant(NamedTuple):
    """What an agent was told last."""

    peers: tuple[str, ...]
    at: float


class _Lender(NamedTuple):
    address: str
    key: str


class Leases:
    """Told of members; asked often what to tell whom. Keys are the caller's."""

    def __init__(self) -> None:
        self._granted: dict[str, Grant] = {}
        self._due_at = -inf

    def due(self, members: Mapping[str, Peer], now: float) -> dict[str, Lease]:
        """The leases to send now: new ones, those to renew, and at once those that lose a peer."""
        if now < self._due_at:
            return {}
        self._due_at = now + CHECK_SECONDS
        lenders = _lenders(members, now)
        self._granted = {key: grant for key, grant in self._granted.items() if key in members}
        told = {}
        for key, member in members.items():
            before = self._granted.get(key, Grant((), -inf))
            found = [
                one.address
                for one in lenders.get(member.domain, ())
                if one.key != key and members[one.key].selection == member.selection
            ]
            # Those held already go first, so that leases are stable where not all have room.
            peers = tuple(sorted(found, key=lambda address: (address not in before.peers, address))[:MOST_PEERS])
            is_due = now - before.at >= RENEW_SECONDS and (peers or before.peers)
            if is_due or not set(before.peers) <= set(peers):
                told[key] = Lease(peers, LEASE_SECONDS)
                self._granted[key] = Grant(peers, now)
        return told


def _lenders(members: Mapping[str, Peer], now: float) -> dict[str, list[_Lender]]:
    """By domain: the addresses that one member alone has, and that member is whole."""
    holders: dict[tuple[str, str], list[str]] = {}
    for key, member in members.items():
        for address in member.addresses if member.domain else ():
            holders.setdefault((member.domain, address), []).append(key)
    lenders: dict[str, list[_Lender]] = {}
    for (domain, address), keys in holders.items():
        if len(keys) == 1 and members[keys[0]].is_whole(now):
            lenders.setdefault(domain, []).append(_Lender(address, keys[0]))
    return lenders
