"""The words that rooms share: plain frozen data, no behaviour beyond arithmetic, no imports of other rooms."""

from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

LINK_TYPE_ETHERNET = 1
"""LINKTYPE_ETHERNET in the tcpdump.org link-type registry; the only one of version 1."""
MOST_INTERFACES = 64
"""Of one run. More NICs than any cloud gives one VM (AWS: 15 cards' worth)."""
KEPT_EXCLUSIONS = 4
"""Closed connections of ours may still say FIN or be answered by RST; the last few stay left out."""
MOST_ADDRESSES = 64
"""That are told of one interface; a load balancer's may have hundreds."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One tapped interface as the agent knows it; `id` is never re-used within a run."""

    id: int
    name: str
    mac: str
    mtu: int
    link_type: int = LINK_TYPE_ETHERNET
    addresses: tuple[str, ...] = ()
    speed_mbit: int = 0
    """0 where the kernel does not know, as on virtio."""


@dataclass(slots=True)
class InterfaceLedger:
    """What became of every record that one interface's filter accepted. Units are records; a super-packet is one.

    `captured = delivered + capped + dropped_by_ring + unsupported_gso + lost_on_link + in_flight` always.
    """

    captured: int = 0
    """Records the kernel's filter accepted, also those the full ring then refused (tp_packets)."""
    delivered: int = 0
    """Records that a collector acknowledged."""
    capped: int = 0
    """Records given up in the agent to keep a cap."""
    dropped_by_ring: int = 0
    """Records for which the ring had no room (tp_drops, less unsupported_gso)."""
    unsupported_gso: int = 0
    """Super-packets of a kind that the kernel cannot describe in a virtio header; their bytes never reach the ring."""
    lost_on_link: int = 0
    """Records sent or held that no collector acknowledged before the agent ended."""
    captured_ring_bytes: int = 0
    """Bytes of retired ring blocks, record headers included."""
    delivered_bytes: int = 0
    """Ring bytes that a collector acknowledged."""

    @property
    def in_flight(self) -> int:
        """Records in the ring or on the way: the remainder of the identity."""
        accounted = self.delivered + self.capped + self.dropped_by_ring + self.unsupported_gso + self.lost_on_link
        return self.captured - accounted

    def as_dict(self) -> dict[str, int]:
        """Every counter by name, `in_flight` included."""
        return {**asdict(self), "in_flight": self.in_flight}


def total(ledgers: list[InterfaceLedger]) -> InterfaceLedger:
    """The sum of several interfaces' ledgers."""
    return InterfaceLedger(*(sum(getattr(one, f.name) for one in ledgers) for f in fields(InterfaceLedger)))


class Selection(NamedTuple):
    """What the capture filter keeps of the traffic that the operator selected. Equal selections, equal programs."""

    slice: str | int = "full"
    """`full`, `headers`, or a number of bytes of each frame."""
    sample: float = 1.0
    """The part of the flows that is kept, whole flows by their hash."""
    heavy: tuple[int, ...] = ()
    """Hashes of the flows of which only headers are kept."""
    heavy_fraction: float = 1.0
    """Of the packets of heavy flows; SYN, FIN and RST are always kept."""
    paused: bool = False
    peers: tuple[str, ...] = ()
    """Addresses whose incoming packets are left to their own agents."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """One connection of our own that the capture must not see, named as narrowly as the kernel lets us."""

    protocol: int
    """IP protocol number: 6 TCP, 17 UDP; any other has no ports, then all of it with the remote address is meant."""
    remote_address: str
    remote_port: int
    local_port: int
    last_local_port: int = 0
    """Not 0: a tunnel, whose packets go one way, from this range of ports to the remote port. Those that come from the
    remote address are left out, too: a tap there that sends its copies here would have them go round."""
