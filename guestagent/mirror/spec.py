"""What to mirror, the same for every provider: texts of a file or of flags become one frozen Spec. Pure.

A filter is a list of rules, tried in order; the first that fits decides, and what none fits is not mirrored:

    [not] PROTOCOL[/PORT[-PORT]] [local|remote] [CIDR]

PROTOCOL is all, tcp, udp, icmp or an IANA number. A port may be of either end of a conversation, or with `local` of the
mirrored machine alone, with `remote` of its peer. The CIDR holds the peers. A list of `not` rules alone ends in `all`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from guestagent.errors import ConfigError

DIRECTIONS = ("ingress", "egress")
"""As the mirrored machine sees it."""
PROTOCOLS = {"all": None, "icmp": 1, "tcp": 6, "udp": 17, "sctp": 132}
"""IANA numbers; `icmp` becomes 58 for IPv6."""
WITH_PORTS = {6, 17, 132}
ICMP, ICMP_V6 = 1, 58
ANYWHERE = ("0.0.0.0/0", "::/0")
MOST_VNI = (1 << 24) - 1
MOST_PACKET_BYTES = 65_535
MOST_PORT = 65_535
_RULE = re.compile(
    r"(?P<no>not\s+)?(?P<protocol>[a-z]+|\d{1,3})(?:/(?P<low>\d{1,5})(?:-(?P<high>\d{1,5}))?)?"
    r"(?:\s+(?P<end>local|remote))?(?:\s+(?P<cidr>[0-9a-fA-F.:]+/\d{1,3}))?"
)
_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,48}[a-z0-9])?")
"""As the strictest provider takes it (RFC 1035), with room for a prefix of ours."""
_TAG = re.compile(r"(?P<key>[^=\x00-\x1f]{1,128})=(?P<value>[^\x00-\x1f]{0,256})")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a filter. `protocol` None: all. `ports` are first and last; `end` is either, local or remote."""

    accept: bool = True
    protocol: int | None = None
    ports: tuple[int, int] | None = None
    end: str = "either"
    peers: str = ""
    """A CIDR; empty: every address of both families."""


@dataclass(frozen=True, slots=True)
class Match:
    """A rule as a packet filter sees it: one direction, one family, ports by source and destination."""

    direction: str
    accept: bool
    protocol: int | None
    source: str
    destination: str
    source_ports: tuple[int, int] | None
    destination_ports: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Spec:
    """One mirror."""

    name: str = ""
    source: tuple[str, ...] = ()
    """Identifiers or `tag:KEY=VALUE`, in the words of the provider; together what any of them selects."""
    target: str = ""
    filter: tuple[Rule, ...] = (Rule(),)
    direction: str = "both"
    dns: bool = False
    """Also the questions to the provider's own resolver, where they are mirrored only on request."""
    vni: int | None = None
    packet_length: int | None = None
    """Bytes of each packet, from the Ethernet header; None: whole."""
    vpc: str = ""
    """Narrows the sources to one network."""
    tag: tuple[tuple[str, str], ...] = ()
    """Narrows the sources to machines that bear all of them."""
    region: str = ""
    """Empty: what the provider's own configuration says."""
    collector: str = ""
    """Where the agents of machines that cannot be mirrored send to, a URL of `run --to`."""
    db: str = ""
    """Of Open vSwitch: where its ovsdb-server listens; empty: the socket of this host."""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    @property
    def directions(self) -> tuple[str, ...]:
        """Of DIRECTIONS."""
        return DIRECTIONS if self.direction == "both" else (self.direction,)


def parse_rule(value: Any, where: str) -> Rule:
    """One rule. Raises ConfigError."""
    found = _RULE.fullmatch(value.strip()) if isinstance(value, str) else None
    number = _protocol(found["protocol"]) if found else -1
    if not found or number == -1:
        raise ConfigError(
            f"{where}: {value!r} is no rule: write [not] PROTOCOL[/PORT[-PORT]] [local|remote] [CIDR], for example "
            "'tcp/443', 'not tcp/22 local' or 'all 10.0.0.0/8'"
        )
    ports = None
    if found["low"]:
        ports = (int(found["low"]), int(found["high"] or found["low"]))
        if number not in WITH_PORTS or not ports[0] <= ports[1] <= MOST_PORT:
            raise ConfigError(f"{where}: {value!r}: ports go with tcp, udp and sctp, 0 to {MOST_PORT}, lower first")
    if found["end"] and not ports:
        raise ConfigError(f"{where}: {value!r}: {found['end']} says whose port, and there is no port")
    return Rule(not found["no"], number, ports, found["end"] or "either", _cidr(found["cidr"], where))


def _protocol(text: str) -> int | None:
    """An IANA number, None for all, -1 for none that we know."""
    if text.isdecimal():
        return int(text) if int(text) <= 255 else -1
    return PROTOCOLS.get(text, -1)


def _cidr(text: str | None, where: str) -> str:
    try:
        return str(ip_network(text)) if text else ""
    except ValueError as error:
        raise ConfigError(f"{where}: {text!r} is no network: {error}") from error


def rules(value: Any, where: str) -> tuple[Rule, ...]:
    """A list, or one text with commas."""
    parsed = tuple(parse_rule(one, where) for one in _texts(value, where))
    if not any(rule.accept for rule in parsed):
        return (*parsed, Rule())
    return parsed


def matches(spec: Spec) -> dict[str, list[Match]]:
    """The rules of each direction, in order: what a provider's filter with source and destination needs."""
    return {
        direction: [one for rule in spec.filter for one in _expand(rule, direction)] for direction in spec.directions
    }


def _expand(rule: Rule, direction: str) -> list[Match]:
    found = []
    ends = ("local", "remote") if rule.end == "either" and rule.ports else (rule.end,)
    for peers in (rule.peers,) if rule.peers else ANYWHERE:
        is_v6 = ":" in peers
        anywhere = ANYWHERE[is_v6]
        protocol = ICMP_V6 if is_v6 and rule.protocol == ICMP else rule.protocol
        source, destination = (peers, anywhere) if direction == "ingress" else (anywhere, peers)
        for end in ends:
            at_destination = (end == "local") == (direction == "ingress")
            ports = (None, rule.ports) if at_destination else (rule.ports, None)
            found.append(Match(direction, rule.accept, protocol, source, destination, *ports))
    return found


# -- the table of keys: (value, where) -> value; each raises ConfigError -----------------------------------------------


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise ConfigError(f"{where}: {value!r} must be text or a list of texts")
    parts = tuple(part.strip() for one in value for part in one.split(","))
    if not parts or not all(parts) or any(not part.isprintable() for part in parts):
        raise ConfigError(f"{where}: {value!r} holds nothing, or an empty or unprintable part")
    return parts


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or value != value.strip():
        raise ConfigError(f"{where}: {value!r} must be text without spaces at its ends")
    return value


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(f"{where}: {value!r} must be 1 to 50 of a-z 0-9 -, a letter first, no - at the end")
    return value


def tag_of(text: str, where: str) -> tuple[str, str]:
    """`KEY=VALUE`. Raises ConfigError."""
    found = _TAG.fullmatch(text)
    if not found:
        raise ConfigError(f"{where}: {text!r} is no tag: write KEY=VALUE")
    return found["key"], found["value"]


def _tags(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    return tuple(tag_of(one, where) for one in _texts(value, where))


def _switch(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {value!r} must be true or false")
    return value


def _direction(value: Any, where: str) -> str:
    if value not in ("both", *DIRECTIONS):
        raise ConfigError(f"{where}: {value!r} must be both, ingress or egress")
    return str(value)


def _number(least: int, most: int) -> Callable[[Any, str], int]:
    def parse(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(f"{where}: {value!r} must be a whole number from {least} to {most}")
        return value

    return parse


KEYS: Mapping[str, Callable[[Any, str], Any]] = {
    "name": _name,
    "source": _texts,
    "target": _text,
    "filter": rules,
    "direction": _direction,
    "dns": _switch,
    "vni": _number(1, MOST_VNI),
    "packet_length": _number(1, MOST_PACKET_BYTES),
    "vpc": _text,
    "tag": _tags,
    "region": _text,
    "collector": _text,
    "db": _text,
    "tls.ca": _text,
    "tls.cert": _text,
    "tls.key": _text,
}
"""Keys of mirror.toml, which are the names of the flags."""
