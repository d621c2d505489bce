"""What a capture holds, in two short tables: protocols and conversations. Pure, and never surprised by a frame.

A frame that is cut, odd or of a protocol unknown here is still counted, under the last name that its bytes give it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

MOST_HEADER_BYTES = 256
"""Two VLAN tags and six IPv6 extension headers of usual size fit; what lies deeper stays unnamed."""
ETHERNET_BYTES, TAG_BYTES, IPV4_LEAST_BYTES, IPV6_BYTES = 14, 4, 20, 40
TAGS = (0x8100, 0x88A8, 0x9100)
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
ETHER_TYPES = {ARP: "ARP", 0x8847: "MPLS", 0x8863: "PPPoE", 0x8864: "PPPoE", 0x888E: "802.1X", 0x88CC: "LLDP"}
LEAST_ETHER_TYPE = 0x0600
"""Below, the field is the length of an 802.3 frame."""
TCP, UDP, ICMP, ICMPV6, SCTP, UDP_LITE = 6, 17, 1, 58, 132, 136
IP_PROTOCOLS = {
    ICMP: "ICMP", 2: "IGMP", 4: "IP-in-IP", TCP: "TCP", UDP: "UDP", 41: "IPv6-in-IP", 47: "GRE", 50: "ESP", 51: "AH",
    ICMPV6: "ICMPv6", 89: "OSPF", 112: "VRRP", SCTP: "SCTP", UDP_LITE: "UDP-Lite",
}  # fmt: skip
WITH_PORTS = (TCP, UDP, SCTP, UDP_LITE)
IPV6_FRAGMENT, IPV6_AUTHENTICATION = 44, 51
IPV6_EXTENSIONS = (0, 43, 60, 135, 139, 140, IPV6_FRAGMENT, IPV6_AUTHENTICATION)
FRAGMENT_OFFSET_IPV4, FRAGMENT_OFFSET_IPV6 = 0x1FFF, 0xFFF8
ICMP_KINDS = {0: "ping", 3: "unreachable", 5: "redirect", 8: "ping", 11: "time exceeded"}
ICMPV6_KINDS = {
    **dict.fromkeys(range(133, 138), "neighbours"),
    **dict.fromkeys((130, 131, 132, 143), "multicast"),
    1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "ping", 129: "ping",
}  # fmt: skip
WELL_KNOWN_PORTS = {
    22: "SSH", 25: "SMTP", 53: "DNS", 67: "DHCP", 68: "DHCP", 80: "HTTP", 123: "NTP", 143: "IMAP", 161: "SNMP",
    179: "BGP", 389: "LDAP", 443: "HTTPS", 445: "SMB", 514: "syslog", 546: "DHCPv6", 547: "DHCPv6", 636: "LDAPS",
    853: "DNS over TLS", 993: "IMAPS", 1433: "SQL Server", 2049: "NFS", 3306: "MySQL", 3389: "RDP", 4789: "VXLAN",
    4795: "tapstream", 5353: "mDNS", 5432: "PostgreSQL", 5672: "AMQP", 6081: "Geneve", 6379: "Redis",
    8080: "HTTP", 8443: "HTTPS", 9092: "Kafka",
}  # fmt: skip
CUT = "cut short"
LATER_FRAGMENTS = "later fragments"


class Flow(NamedTuple):
    """What one frame's headers say of where it belongs. Addresses have 4 or 16 bytes, or 6 where there is no IP."""

    source: bytes
    destination: bytes
    protocol: str
    source_port: int = 0
    destination_port: int = 0
    """0 where the protocol has no ports or the frame does not show them."""
    detail: str = ""
    """What is known beside the protocol where there are no ports."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """One row of the protocol table."""

    name: str
    service: str
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one client and one server said to each other by one service, both directions, all connections."""

    client: str
    server: str
    protocol: str
    service: str
    connections: int
    """Distinct pairs of ports."""
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A capture in short; both tables begin with the row of most bytes."""

    packets: int
    bytes: int
    """On the wire, also of frames of which the capture kept less."""
    protocols: tuple[Protocol, ...]
    conversations: tuple[Conversation, ...]


class _Sums:
    """The counts of one row while they grow."""

    def __init__(self) -> None:
        self.packets = self.bytes = 0
        self.port_pairs: set[tuple[int, int]] = set()

    def add(self, flow: Flow, counts: tuple[int, int]) -> None:
        self.packets += counts[0]
        self.bytes += counts[1]
        self.port_pairs.add((flow.source_port, flow.destination_port))


def summarize(frames: Iterable[tuple[int, bytes | memoryview]], ports: Mapping[int, str] = WELL_KNOWN_PORTS) -> Summary:
    """Sum up (original bytes, Ethernet frame) pairs; `ports` names the services."""
    protocols: dict[tuple[str, str], _Sums] = {}
    talks: dict[tuple[bytes, bytes, str, str], _Sums] = {}
    for flow, counts in _by_flow(frames).items():
        toward, service = _toward_server(flow, ports)
        talk = (toward.source, toward.destination, toward.protocol, service)
        back = (toward.destination, toward.source, toward.protocol, service)
        # Where ports do not tell, the first speaker is the client.
        is_answer = toward.source_port == toward.destination_port and back in talks
        protocols.setdefault((toward.protocol, service), _Sums()).add(toward, counts)
        talks.setdefault(back if is_answer else talk, _Sums()).add(toward, counts)
    rows = [Protocol(*key, sums.packets, sums.bytes) for key, sums in protocols.items()]
    conversations = [
        Conversation(
            _address(client), _address(server), protocol, service, len(sums.port_pairs), sums.packets, sums.bytes
        )
        for (client, server, protocol, service), sums in talks.items()
    ]
    return Summary(
        sum(row.packets for row in rows),
        sum(row.bytes for row in rows),
        tuple(sorted(rows, key=_most_bytes)),
        tuple(sorted(conversations, key=_most_bytes)),
    )


def _by_flow(frames: Iterable[tuple[int, bytes | memoryview]]) -> dict[Flow, tuple[int, int]]:
    """(packets, bytes) of each flow, in the order of first appearance."""
    flows: dict[Flow, tuple[int, int]] = {}
    for original_bytes, frame in frames:
        flow = flow_of(bytes(frame[:MOST_HEADER_BYTES]))
        packets, size = flows.get(flow, (0, 0))
        flows[flow] = packets + 1, size + original_bytes
    return flows


def flow_of(head: bytes) -> Flow:
    """Where a frame belongs, by its first bytes."""
    kind = int.from_bytes(head[12:14], "big")
    at = ETHERNET_BYTES
    while kind in TAGS and len(head) >= at + TAG_BYTES:
        kind = int.from_bytes(head[at + 2 : at + TAG_BYTES], "big")
        at += TAG_BYTES
    if reader := _NETWORK.get(kind):
        flow = reader(head, at)
        if flow is not None:
            return flow
    source, destination = head[6:12], head[:6]
    if len(head) < ETHERNET_BYTES or kind in TAGS or kind in _NETWORK:
        name = {IPV4: "IPv4", IPV6: "IPv6"}.get(kind, "Ethernet")
        return Flow(source, destination, name, detail=CUT)
    name = ETHER_TYPES.get(kind, f"EtherType 0x{kind:04x}") if kind >= LEAST_ETHER_TYPE else "802.3"
    return Flow(source, destination, name)


def _ipv4(head: bytes, at: int) -> Flow | None:
    """None where no sound IPv4 header stands at `at`."""
    if len(head) < at + IPV4_LEAST_BYTES or not 0x45 <= head[at] <= 0x4F:
        return None
    addresses = head[at + 12 : at + 16], head[at + 16 : at + 20]
    is_later = bool(int.from_bytes(head[at + 6 : at + 8], "big") & FRAGMENT_OFFSET_IPV4)
    return _transport(head, at + 4 * (head[at] & 0x0F), head[at + 9], addresses, is_later)


def _ipv6(head: bytes, at: int) -> Flow | None:
    """None where no sound IPv6 header stands at `at`."""
    if len(head) < at + IPV6_BYTES or head[at] >> 4 != 6:
        return None
    addresses = head[at + 8 : at + 24], head[at + 24 : at + 40]
    following, at = head[at + 6], at + IPV6_BYTES
    is_later = False
    while following in IPV6_EXTENSIONS and not is_later and len(head) >= at + 8:
        size = 8 * (head[at + 1] + 1)
        if following == IPV6_FRAGMENT:
            size = 8
            is_later = bool(int.from_bytes(head[at + 2 : at + 4], "big") & FRAGMENT_OFFSET_IPV6)
        elif following == IPV6_AUTHENTICATION:
            size = 4 * (head[at + 1] + 2)
        following, at = head[at], at + size
    return _transport(head, at, following, addresses, is_later)


def _transport(head: bytes, at: int, protocol: int, addresses: tuple[bytes, bytes], is_later: bool) -> Flow:
    """The flow of an IP packet whose payload of `protocol` begins at `at`."""
    name = IP_PROTOCOLS.get(protocol, f"IP protocol {protocol}")
    if is_later:
        return Flow(*addresses, name, detail=LATER_FRAGMENTS)
    if protocol in WITH_PORTS:
        if len(head) < at + 4:
            return Flow(*addresses, name, detail=CUT)
        source_port, destination_port = head[at : at + 2], head[at + 2 : at + 4]
        return Flow(*addresses, name, int.from_bytes(source_port, "big"), int.from_bytes(destination_port, "big"))
    kinds = {ICMP: ICMP_KINDS, ICMPV6: ICMPV6_KINDS}.get(protocol)
    if kinds is None:
        return Flow(*addresses, name)
    return Flow(*addresses, name, detail=kinds.get(head[at], f"type {head[at]}") if len(head) > at else CUT)


_NETWORK: dict[int, Callable[[bytes, int], Flow | None]] = {IPV4: _ipv4, IPV6: _ipv6}


def _toward_server(flow: Flow, ports: Mapping[int, str]) -> tuple[Flow, str]:
    """The flow in the server's direction and the name of what is served: a known port, else the lower one."""
    if not flow.source_port and not flow.destination_port:
        return flow, flow.detail
    port = min(flow.source_port, flow.destination_port, key=lambda one: (one not in ports, one))
    service = ports.get(port, f"port {port}")
    if port == flow.destination_port:
        return flow, service
    turned = Flow(flow.destination, flow.source, flow.protocol, flow.destination_port, flow.source_port)
    return turned, service


def _most_bytes(row: Protocol | Conversation) -> tuple[int, int]:
    return -row.bytes, -row.packets


def _address(raw: bytes) -> str:
    return str(ip_address(raw)) if len(raw) in (4, 16) else raw.hex(":")
