"""GCP: the rules of a spec as the one filter that Packet Mirroring has. Pure.

That filter is a list of protocols, a list of the peers' networks and a direction, and takes every protocol from and to
every network. It knows no ports and rejects nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

from guestagent.errors import ConfigError
from guestagent.mirror.gcp.facts import PROTOCOL_NAMES
from guestagent.mirror.spec import ANYWHERE, ICMP, ICMP_V6, Rule, Spec

_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}
_INSTEAD = "mirror more natively and let the collector choose, or run the agent with its own --filter"


def wanted_filter(spec: Spec) -> dict[str, Any]:
    """`protocols` (numbers, none for all), `peers` (CIDRs) and `direction`. Raises ConfigError."""
    pairs = {pair for rule in spec.filter for pair in _pairs(rule)}
    everything = {peers for protocol, peers in pairs if protocol is None}
    pairs = {(protocol, peers) for protocol, peers in pairs if protocol is None or peers not in everything}
    protocols = {protocol for protocol, _ in pairs}
    networks = {peers for _, peers in pairs}
    if len(pairs) != len(protocols) * len(networks):
        raise ConfigError(
            f"filter: Packet Mirroring takes every protocol from every network, and these rules do not: {_INSTEAD}"
        )
    if ICMP in protocols and any(":" in one for one in networks):
        protocols.add(ICMP_V6)
    return {
        "protocols": sorted(one for one in protocols if one is not None),
        "peers": _ordered(networks),
        "direction": spec.direction.upper(),
    }


def _pairs(rule: Rule) -> list[tuple[int | None, str]]:
    if not rule.accept:
        raise ConfigError(f"filter: Packet Mirroring has no rule that leaves out: {_INSTEAD}")
    if rule.ports:
        raise ConfigError(f"filter: Packet Mirroring knows no ports: {_INSTEAD}")
    return [(rule.protocol, peers) for peers in ((rule.peers,) if rule.peers else ANYWHERE)]


def _ordered(networks: Iterable[str]) -> list[str]:
    return [str(one) for one in sorted(map(ip_network, networks), key=lambda one: (one.version, one))]


def found_filter(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A filter as the API has it, in the same form: what it leaves out means all IPv4 traffic, both ways."""
    return {
        "protocols": sorted(_number(one) for one in raw.get("I_p_protocols", ())),
        "peers": _ordered(raw.get("cidr_ranges", ()) or ANYWHERE[:1]),
        "direction": raw.get("direction") or "BOTH",
    }


def _number(protocol: str) -> int:
    return int(protocol) if protocol.isdecimal() else _NUMBERS.get(protocol, -1)


def filter_body(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The same as the API takes it."""
    protocols: Sequence[int] = wanted["protocols"]
    return {
        "I_p_protocols": [PROTOCOL_NAMES.get(one, str(one)) for one in protocols],
        "cidr_ranges": wanted["peers"],
        "direction": wanted["direction"],
    }
