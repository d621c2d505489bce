"""AWS: what was read, and what is wanted, as resources. Pure; the reading is read.py's, the choice choice.py's."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from guestagent.errors import ConfigError
from guestagent.mirror.aws import facts
from guestagent.mirror.plan import Kind, Ref, Resource
from guestagent.mirror.spec import DIRECTIONS, Match, Spec, matches

FILTER, RULE, TARGET, SESSION = "filter", "rule", "target", "session"
KINDS = (Kind(FILTER), Kind(RULE, is_leaf=True), Kind(TARGET), Kind(SESSION, is_leaf=True))
MANAGED_TAG, MIRROR_TAG = "guestagent-managed", "guestagent-mirror"


@dataclass(frozen=True, slots=True)
class Machine:
    """One instance. `interfaces` are those of the selection, of type `interface` and attached."""

    id: str
    name: str
    kind: str
    state: str
    interfaces: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    """Sentences on interfaces that can't be a source."""
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By interface, what a load balancer may call it: its addresses, and the instance where it is the first."""


class Balancer(NamedTuple):
    """A network load balancer, as a target."""

    has_listener: bool = False
    """For UDP on 4789; the rest is behind that one."""
    members: frozenset[str] = frozenset()
    """Instances and addresses."""
    healthy: int = 0


@dataclass(frozen=True, slots=True)
class Inventory:
    """The answers of EC2, as botocore gives them."""

    machines: tuple[Machine, ...] = ()
    idle: tuple[str, ...] = ()
    """Sources that select nothing."""
    filters: tuple[Mapping[str, Any], ...] = ()
    targets: tuple[Mapping[str, Any], ...] = ()
    sessions: tuple[Mapping[str, Any], ...] = ()
    place: str = ""
    """Where the target of the spec leads: an interface, a load balancer's ARN or an endpoint."""
    balancers: Mapping[str, Balancer] = field(default_factory=dict)
    """By ARN."""
    lost: frozenset[str] = frozenset()
    """Interfaces and load balancers that our targets lead to and that do not exist any more."""
    stopped: Mapping[str, str] = field(default_factory=dict)
    """Instances that do not run, by their interfaces."""
    adopted: frozenset[str] = frozenset()
    """Identifiers of strangers' objects that the operator named."""


def tags_of(raw: Mapping[str, Any]) -> dict[str, str]:
    """The tags of anything."""
    return {tag["Key"]: tag["Value"] for tag in raw.get("Tags", ())}


def owner_of(raw: Mapping[str, Any]) -> str:
    """The mirror that the object belongs to; empty for a stranger's."""
    tags = tags_of(raw)
    return tags.get(MIRROR_TAG, "") if tags.get(MANAGED_TAG) == "true" else ""


def is_own(raw: Mapping[str, Any], name: str) -> bool:
    """Whether it belongs to the mirror of this name; nothing belongs to one without a name."""
    return name != "" and owner_of(raw) == name


def tags(name: str) -> list[dict[str, str]]:
    """Our marker."""
    return [{"Key": MANAGED_TAG, "Value": "true"}, {"Key": MIRROR_TAG, "Value": name}]


# -- found -------------------------------------------------------------------------------------------------------------


def found(name: str, inventory: Inventory) -> tuple[Resource, ...]:
    """All resources as this mirror sees them: its own, and strangers' that it might be told to adopt."""
    own = sorted(one["TrafficMirrorFilterId"] for one in inventory.filters if is_own(one, name))
    made = []
    for raw in inventory.filters:
        identifier, is_ours = raw["TrafficMirrorFilterId"], is_own(raw, name)
        services = raw.get("NetworkServices", ())
        made.append(Resource(FILTER, name, {"dns": "amazon-dns" in services}, identifier, is_ours))
        # The rules of a second filter, which a mishap left, are nobody's.
        prefix = "" if [identifier] == own[:1] or not is_ours else f"{identifier}/"
        made += _found_rules(raw, prefix, is_ours or identifier in inventory.adopted)
    made += [
        Resource(TARGET, target_key(raw), {}, raw["TrafficMirrorTargetId"], is_own(raw, name))
        for raw in inventory.targets
    ]
    made += [_found_session(raw, is_own(raw, name)) for raw in inventory.sessions]
    return tuple(made)


def target_key(raw: Mapping[str, Any]) -> str:
    """Where a target leads."""
    return str(
        raw.get("NetworkInterfaceId") or raw.get("NetworkLoadBalancerArn") or raw.get("GatewayLoadBalancerEndpointId")
    )


def place_of(target: str, inventory: Inventory) -> str:
    """Where a target of the spec leads. Raises ConfigError for a mirror target that does not exist."""
    if not target.startswith("tmt-"):
        return target
    for raw in inventory.targets:
        if raw["TrafficMirrorTargetId"] == target:
            return target_key(raw)
    raise ConfigError(f"target: {target} does not exist in this region, nor is it shared with this account")


def _found_rules(raw: Mapping[str, Any], prefix: str, is_ours: bool) -> list[Resource]:
    made = []
    for rule in (*raw.get("IngressFilterRules", ()), *raw.get("EgressFilterRules", ())):
        properties = {
            "filter": raw["TrafficMirrorFilterId"],
            "accept": rule["RuleAction"] == "accept",
            "protocol": rule.get("Protocol"),
            "source": rule.get("SourceCidrBlock"),
            "destination": rule.get("DestinationCidrBlock"),
            "source_ports": _ports(rule.get("SourcePortRange")),
            "destination_ports": _ports(rule.get("DestinationPortRange")),
        }
        key = f"{prefix}{rule['TrafficDirection']}/{rule['RuleNumber']}"
        made.append(Resource(RULE, key, properties, rule["TrafficMirrorFilterRuleId"], is_ours))
    return made


def _ports(raw: Mapping[str, int] | None) -> tuple[int, int] | None:
    return (raw["FromPort"], raw["ToPort"]) if raw else None


def _found_session(raw: Mapping[str, Any], is_ours: bool) -> Resource:
    length = raw.get("PacketLength")
    properties = {
        "filter": raw["TrafficMirrorFilterId"],
        "target": raw["TrafficMirrorTargetId"],
        "session_number": raw["SessionNumber"],
        "packet_length": None if length == facts.WHOLE_PACKET_BYTES else length,
        "vni": raw.get("VirtualNetworkId"),
    }
    return Resource(SESSION, raw["NetworkInterfaceId"], properties, raw["TrafficMirrorSessionId"], is_ours)


# -- wanted ------------------------------------------------------------------------------------------------------------


def wanted(spec: Spec, sources: Sequence[str], inventory: Inventory) -> tuple[Resource, ...]:
    """What it takes to mirror these interfaces."""
    made = [Resource(FILTER, spec.name, {"dns": spec.dns}), *wanted_rules(spec)]
    if not spec.target.startswith("tmt-"):
        made.append(Resource(TARGET, spec.target))
    by_interface = sessions_by_interface(inventory)
    return (*made, *(_wanted_session(spec, one, by_interface.get(one, ()), inventory) for one in sources))


def sessions_by_interface(inventory: Inventory) -> dict[str, list[Mapping[str, Any]]]:
    """Whoever's; there may be thousands of both."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for one in inventory.sessions:
        found[one["NetworkInterfaceId"]].append(one)
    return found


def wanted_rules(spec: Spec) -> list[Resource]:
    """Raises ConfigError where a filter can't hold them."""
    if any(rule.ports and rule.protocol not in facts.WITH_PORTS for rule in spec.filter):
        raise ConfigError("filter: EC2 takes ports of tcp and udp alone: leave the port of sctp out")
    lists = matches(spec)
    count = sum(map(len, lists.values()))
    if count > facts.RULES_PER_FILTER:
        raise ConfigError(
            f"filter: it becomes {count} rules, and EC2 allows {facts.RULES_PER_FILTER} of a filter: name a CIDR (one "
            "address family is half of them), `local` or `remote` (half again), or one --direction"
        )
    return [
        _wanted_rule(spec.name, match, number)
        for direction in DIRECTIONS
        for number, match in enumerate(lists.get(direction, ()), 1)
    ]


def _wanted_rule(name: str, match: Match, number: int) -> Resource:
    properties = {
        "filter": Ref(FILTER, name),
        "accept": match.accept,
        "protocol": match.protocol,
        "source": match.source,
        "destination": match.destination,
        "source_ports": match.source_ports,
        "destination_ports": match.destination_ports,
    }
    return Resource(RULE, f"{match.direction}/{number}", properties)


def _wanted_session(spec: Spec, interface: str, on_it: Sequence[Mapping[str, Any]], inventory: Inventory) -> Resource:
    target = spec.target if spec.target.startswith("tmt-") else Ref(TARGET, spec.target)
    length = None if spec.packet_length == facts.WHOLE_PACKET_BYTES else spec.packet_length
    own = sorted(one["TrafficMirrorSessionId"] for one in on_it if is_own_session(one, spec.name, inventory))
    kept = [one["SessionNumber"] for one in on_it if one["TrafficMirrorSessionId"] in own[:1]]
    taken = {one["SessionNumber"] for one in on_it if one["TrafficMirrorSessionId"] not in own[:1]}
    free = next(number for number in chain(kept, range(1, facts.MOST_SESSION_NUMBER)) if number not in taken)
    properties = {"filter": Ref(FILTER, spec.name), "target": target, "session_number": free, "packet_length": length}
    if spec.vni is not None:
        properties["vni"] = spec.vni
    return Resource(SESSION, interface, properties)


def is_own_session(raw: Mapping[str, Any], name: str, inventory: Inventory) -> bool:
    """Whether it is, or is to become, this mirror's."""
    return is_own(raw, name) or raw["TrafficMirrorSessionId"] in inventory.adopted
