"""AWS: what was read becomes choices, resources and warnings. Pure; the reading is read.py's."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from guestagent.errors import ConfigError
from guestagent.mirror.aws import facts
from guestagent.mirror.plan import Kind, Ref, Resource
from guestagent.mirror.spec import DIRECTIONS, Match, Spec, matches
from guestagent.mirror.survey import AGENT, NATIVE, Choice, Survey

FILTER, RULE, TARGET, SESSION = "filter", "rule", "target", "session"
KINDS = (Kind(FILTER), Kind(RULE), Kind(TARGET), Kind(SESSION))
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


@dataclass(frozen=True, slots=True)
class Inventory:
    """The answers of EC2, as botocore gives them."""

    machines: tuple[Machine, ...] = ()
    filters: tuple[Mapping[str, Any], ...] = ()
    targets: tuple[Mapping[str, Any], ...] = ()
    sessions: tuple[Mapping[str, Any], ...] = ()
    listeners: Mapping[str, bool] = field(default_factory=dict)
    """By the ARN of a network load balancer: has it a UDP listener on 4789?"""
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


def survey(spec: Spec, inventory: Inventory) -> Survey:
    """The choice for each machine, and what the native ones need. Raises ConfigError."""
    rules = wanted_rules(spec)
    choices = tuple(_choose(spec, machine, inventory) for machine in inventory.machines)
    choices = _within_target(spec, choices, inventory)
    sources = [interface for one in choices if one.way == NATIVE for interface in one.interfaces]
    wanted: list[Resource] = []
    if sources and spec.target:
        wanted += [Resource(FILTER, spec.name, {"dns": spec.dns}), *rules]
        if not spec.target.startswith("tmt-"):
            wanted.append(Resource(TARGET, spec.target))
        wanted += [_wanted_session(spec, interface, inventory) for interface in sources]
    warnings = tuple(_warnings(spec, inventory, choices))
    return Survey(choices, tuple(wanted), found(spec.name, inventory), warnings)


def wanted_rules(spec: Spec) -> list[Resource]:
    """Raises ConfigError where a filter can't hold them."""
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


def _wanted_session(spec: Spec, interface: str, inventory: Inventory) -> Resource:
    target = spec.target if spec.target.startswith("tmt-") else Ref(TARGET, spec.target)
    length = None if spec.packet_length == facts.WHOLE_PACKET_BYTES else spec.packet_length
    on_it = [one for one in inventory.sessions if one["NetworkInterfaceId"] == interface]
    own = sorted(one["TrafficMirrorSessionId"] for one in on_it if _is_own_session(one, spec.name, inventory))
    kept = [one["SessionNumber"] for one in on_it if one["TrafficMirrorSessionId"] in own[:1]]
    taken = {one["SessionNumber"] for one in on_it if one["TrafficMirrorSessionId"] not in own[:1]}
    free = next(number for number in (*kept, *range(1, facts.MOST_SESSION_NUMBER)) if number not in taken)
    properties = {"filter": Ref(FILTER, spec.name), "target": target, "session_number": free, "packet_length": length}
    if spec.vni is not None:
        properties["vni"] = spec.vni
    return Resource(SESSION, interface, properties)


def _is_own_session(raw: Mapping[str, Any], name: str, inventory: Inventory) -> bool:
    return is_own(raw, name) or raw["TrafficMirrorSessionId"] in inventory.adopted


# -- the choice --------------------------------------------------------------------------------------------------------


def _choose(spec: Spec, machine: Machine, inventory: Inventory) -> Choice:
    verdict, reason = facts.eligible(machine.kind)
    strangers = Counter(
        one["NetworkInterfaceId"] for one in inventory.sessions if not _is_own_session(one, spec.name, inventory)
    )
    targets = {target_key(one) for one in inventory.targets} | {spec.target}
    refusals = [
        *((reason,) if verdict == "no" else ()),
        *(f"{one} is itself a mirror target" for one in machine.interfaces if one in targets),
        *(
            f"{one} has {strangers[one]} other sessions, and EC2 allows {facts.SESSIONS_PER_INTERFACE}"
            for one in machine.interfaces
            if strangers[one] >= facts.SESSIONS_PER_INTERFACE
        ),
        *(() if machine.interfaces else machine.skipped or ("it has no interface that can be a source",)),
    ]
    if refusals:
        return Choice(machine.id, machine.name, machine.kind, AGENT, verdict, "; ".join(refusals))
    uncut = facts.MOST_UNCUT_MTU_GWLB if spec.target.startswith("vpce-") else facts.MOST_UNCUT_MTU
    mtu = f"cut to {spec.packet_length} bytes" if spec.packet_length else f"up to {uncut}, longer packets are cut"
    return Choice(
        machine=machine.id,
        name=machine.name,
        kind=machine.kind,
        way=NATIVE,
        eligible=verdict,
        reason=reason,
        cost=facts.monthly_cost(len(machine.interfaces)),
        limits="copies share the VM's bandwidth and go first when it is short",
        mtu=mtu,
        interfaces=machine.interfaces,
    )


def _within_target(spec: Spec, choices: tuple[Choice, ...], inventory: Inventory) -> tuple[Choice, ...]:
    """What an interface target can't take any more goes to the agent."""
    if not spec.target.startswith("eni-"):
        return choices
    used = {one["NetworkInterfaceId"] for one in inventory.sessions if _leads_to(one, spec.target, inventory)}
    # Those that it has keep their place, whatever comes first in the inventory.
    ordered = sorted(choices, key=lambda one: not used.intersection(one.interfaces))
    kept = set(used)
    fitting: dict[str, Choice] = {}
    for one in ordered:
        with_it = kept | set(one.interfaces)
        if one.way == NATIVE and len(with_it) > max(facts.SOURCES_PER_LARGEST_TARGET, len(kept)):
            reason = f"{spec.target} takes {facts.SOURCES_PER_LARGEST_TARGET} sources at most: use a load balancer"
            one = Choice(one.machine, one.name, one.kind, AGENT, one.eligible, reason)
        else:
            kept = with_it
        fitting[one.machine] = one
    return tuple(fitting[one.machine] for one in choices)


def _leads_to(session: Mapping[str, Any], place: str, inventory: Inventory) -> bool:
    ids = {one["TrafficMirrorTargetId"] for one in inventory.targets if target_key(one) == place}
    return session["TrafficMirrorTargetId"] in ids


def _warnings(spec: Spec, inventory: Inventory, choices: Iterable[Choice]) -> list[str]:
    native = [one for one in choices if one.way == NATIVE]
    sources = {interface for one in native for interface in one.interfaces}
    stopped = [one.id for one in inventory.machines if one.state != "running" and sources & set(one.interfaces)]
    said = []
    if sources:
        said.append(f"cost: {facts.monthly_cost(len(sources))}; EC2 bills a session also while its source is stopped")
    if stopped:
        said.append(f"{', '.join(stopped)}: not running, and the sessions are billed all the same")
    if spec.target.startswith("eni-") and len(sources) > facts.SOURCES_PER_INTERFACE_TARGET:
        said.append(
            f"{len(sources)} sources for {spec.target}: EC2 takes {facts.SOURCES_PER_INTERFACE_TARGET}, or "
            f"{facts.SOURCES_PER_LARGEST_TARGET} where it belongs to the largest size of its family"
        )
    if inventory.listeners.get(spec.target) is False:
        said.append(f"{spec.target} has no UDP listener on {facts.VXLAN_PORT}: nothing arrives until it has one")
    if sources and not spec.dns:
        said.append("questions to the VPC's own resolver are not mirrored: --dns adds them")
    if sources and not spec.packet_length:
        said.append(
            f"the path to the target must carry the source's MTU + {facts.OVERHEAD_BYTES} bytes "
            f"({facts.OVERHEAD_V6_BYTES} over IPv6), or packets are cut: lower the source's MTU or set --packet-length"
        )
    said += [
        f"{machine.id}: {text}" for machine in inventory.machines if machine.interfaces for text in machine.skipped
    ]
    return said
