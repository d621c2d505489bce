"""GCP: what was read becomes choices, policies and warnings. Pure; the reading is read.py's."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from guestagent.errors import ConfigError
from guestagent.mirror.gcp import facts
from guestagent.mirror.gcp.filter import filter_body, wanted_filter
from guestagent.mirror.gcp.shares import spread
from guestagent.mirror.plan import Kind, Resource
from guestagent.mirror.spec import Spec
from guestagent.mirror.survey import AGENT, NATIVE, Choice, Survey

POLICY = "policy"
KINDS = (Kind(POLICY, is_unique=True),)
_MARK = "guestagent:"
PREFIX = "ga-"


@dataclass(frozen=True, slots=True)
class Machine:
    """One VM. References are short URLs, `projects/...`."""

    url: str
    kind: str
    status: str
    places: tuple[tuple[str, str], ...]
    """Network and subnetwork of each interface."""
    tags: frozenset[str] = frozenset()
    """Network tags, not labels."""
    followed: bool = False
    """A subnetwork or network tag of the sources selects it, and will select others like it."""

    @property
    def id(self) -> str:
        """`ZONE/NAME`."""
        parts = self.url.split("/")
        return f"{parts[-3]}/{parts[-1]}"


@dataclass(frozen=True, slots=True)
class Policy:
    """One PacketMirroring, whoever made it."""

    name: str
    owner: str
    """The mirror of ours that it belongs to; empty for a stranger's."""
    network: str
    collector: str
    mirrored: Mapping[str, tuple[str, ...]]
    """`instances` and `subnetworks` (short URLs), `tags`."""
    filter: Mapping[str, Any]
    is_enabled: bool = True
    priority: int = facts.DEFAULT_PRIORITY


@dataclass(frozen=True, slots=True)
class Collector:
    """The forwarding rule that takes the copies."""

    url: str
    network: str
    scheme: str
    is_collector: bool


@dataclass(frozen=True, slots=True)
class Inventory:
    """What Compute Engine answered."""

    network: str = ""
    """The one to mirror; empty while nobody says which."""
    machines: tuple[Machine, ...] = ()
    subnetworks: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """Subnetworks and network tags that the policies are to name."""
    policies: tuple[Policy, ...] = ()
    collector: Collector | None = None
    quota: tuple[int, int] | None = None
    """Limit of policies of the project, and how many there are."""
    adopted: frozenset[str] = frozenset()


def mark(mirror: str, policy: str) -> str:
    """The description that says whose a policy is. It names the policy, so that a copy of it is not ours."""
    return _MARK + json.dumps({"mirror": mirror, "policy": policy})


def owner_of(name: str, description: str) -> str:
    """The mirror that a policy belongs to; empty for a stranger's."""
    if not description.startswith(_MARK):
        return ""
    try:
        found = json.loads(description.removeprefix(_MARK))
    except ValueError:
        return ""
    if not isinstance(found, dict) or found.get("policy") != name or not isinstance(found.get("mirror"), str):
        return ""
    return str(found["mirror"])


def body(mirror: str, name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """A PacketMirroring of these properties; each that it says it says whole, as a PATCH may merge or replace."""
    made: dict[str, Any] = {"name": name, "description": mark(mirror, name)}
    for key, make in _BODY.items():
        if key in properties:
            made.update(make(properties[key]))
    return made


_BODY: dict[str, Any] = {
    "network": lambda url: {"network": {"url": url}},
    "collector": lambda url: {"collector_ilb": {"url": url}},
    "mirrored": lambda share: {
        "mirrored_resources": {
            "instances": [{"url": url} for url in share["instances"]],
            "subnetworks": [{"url": url} for url in share["subnetworks"]],
            "tags": share["tags"],
        }
    },
    "filter": lambda wanted: {"filter": filter_body(wanted)},
    "enabled": lambda is_on: {"enable": "TRUE" if is_on else "FALSE"},
}


def found(name: str, policies: Iterable[Policy]) -> tuple[Resource, ...]:
    """All policies as this mirror sees them."""
    return tuple(
        Resource(
            POLICY,
            one.name,
            {
                "network": one.network,
                "collector": one.collector,
                "mirrored": {kind: sorted(names) for kind, names in one.mirrored.items()},
                "filter": dict(one.filter),
                "enabled": one.is_enabled,
            },
            one.name,
            name != "" and one.owner == name,
        )
        for one in policies
    )


def survey(spec: Spec, inventory: Inventory) -> Survey:
    """The choice for each machine, and the policies of the native ones. Raises ConfigError."""
    wanted = wanted_filter(spec)
    choices = tuple(_choose(spec, machine, inventory) for machine in inventory.machines)
    policies: tuple[Resource, ...] = ()
    if inventory.collector and any(one.way == NATIVE for one in choices):
        policies = _wanted(spec, inventory, choices, wanted)
    warnings = tuple(_warnings(inventory, choices, policies))
    return Survey(choices, policies, found(spec.name, inventory.policies), warnings)


def _wanted(
    spec: Spec, inventory: Inventory, choices: Iterable[Choice], wanted: Mapping[str, Any]
) -> tuple[Resource, ...]:
    assert inventory.collector
    native = {one.machine for one in choices if one.way == NATIVE}
    names = {
        "instances": [one.url for one in inventory.machines if one.id in native and not one.followed],
        "subnetworks": inventory.subnetworks,
        "tags": inventory.tags,
    }
    held = {
        one.name: one.mirrored
        for one in inventory.policies
        if (one.owner == spec.name or one.name in inventory.adopted)
        and one.network == inventory.network
        and (wanted["protocols"] or not one.filter["protocols"])
    }
    shares, more = spread(names, held)
    taken = {one.name for one in inventory.policies if one.owner}
    shares.update(zip(_free_names(spec.name, taken, len(more)), more, strict=True))
    common = {"network": inventory.network, "collector": inventory.collector.url, "filter": wanted, "enabled": True}
    return tuple(Resource(POLICY, name, {**common, "mirrored": share}) for name, share in sorted(shares.items()))


def _free_names(mirror: str, taken: set[str], count: int) -> list[str]:
    """Names that no policy of ours has. A stranger's is in the way, and `diff` says so."""
    made: list[str] = []
    number = 1
    while len(made) < count:
        name = f"{PREFIX}{mirror}" if number == 1 else f"{PREFIX}{mirror}-{number}"
        if name not in taken:
            made.append(name)
        number += 1
    return made


# -- the choice --------------------------------------------------------------------------------------------------------


def _choose(spec: Spec, machine: Machine, inventory: Inventory) -> Choice:
    verdict, reason = facts.eligible(machine.kind)
    networks = {network for network, _ in machine.places}
    refusals = []
    if inventory.network and inventory.network not in networks:
        refusals.append(f"it has no interface in {inventory.network.rpartition('/')[2]}, the network to mirror")
    refusals += [
        f"the policy {one.name} mirrors it already, and one policy applies to a VM"
        for one in inventory.policies
        if one.owner != (spec.name or None) and one.name not in inventory.adopted and _covers(one, machine)
    ]
    if refusals:
        return Choice(machine.id, "", machine.kind, AGENT, verdict, "; ".join(refusals))
    return Choice(machine.id, "", machine.kind, NATIVE, verdict, reason, facts.COST, facts.LIMITS, facts.MTU)


def _covers(policy: Policy, machine: Machine) -> bool:
    """Whether it takes this machine before a policy of ours would."""
    places = {subnetwork for network, subnetwork in machine.places if network == policy.network}
    named = (
        machine.url in policy.mirrored["instances"]
        or places.intersection(policy.mirrored["subnetworks"])
        or machine.tags.intersection(policy.mirrored["tags"])
    )
    return bool(places and named) and policy.is_enabled and policy.priority <= facts.DEFAULT_PRIORITY


def refuse_collector(collector: Collector) -> None:
    """Raises ConfigError where the forwarding rule cannot take copies."""
    if collector.scheme != "INTERNAL" or not collector.is_collector:
        raise ConfigError(
            f"target: the forwarding rule {collector.url.rpartition('/')[2]} is no collector: it needs the scheme "
            "INTERNAL and --is-mirroring-collector, which is given when it is made"
        )


def _warnings(inventory: Inventory, choices: Iterable[Choice], policies: tuple[Resource, ...]) -> list[str]:
    said = []
    if any(one.way == NATIVE for one in choices):
        said.append(facts.NEWER_WAY)
        said.append("firewall rules of the collectors must admit the mirrored packets' own addresses")
    followed = {tag for one in inventory.machines for tag in one.tags}
    followed |= {subnetwork for one in inventory.machines for _, subnetwork in one.places}
    said += [
        f"{one.rpartition('/')[2]} selects no VM now: those that come later are mirrored"
        for one in (*inventory.subnetworks, *inventory.tags)
        if one not in followed
    ]
    if inventory.collector and inventory.collector.network != inventory.network:
        said.append("the collector is in another network: the two must be peered")
    there = {one.name for one in inventory.policies}
    new = sum(one.key not in there for one in policies)
    if inventory.quota and inventory.quota[1] + new > inventory.quota[0]:
        limit, usage = inventory.quota
        said.append(
            f"{new} new policies, and the project has {usage} of {limit} ({facts.QUOTA}): name subnetworks or network "
            "tags rather than VMs, or ask Google for more"
        )
    return said
