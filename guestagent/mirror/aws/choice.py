"""AWS: native or agent, for each machine, and what the operator should know before. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from guestagent.mirror.aws import facts
from guestagent.mirror.aws.model import (
    Balancer,
    Inventory,
    Machine,
    found,
    is_own_session,
    target_key,
    wanted,
    wanted_rules,
)
from guestagent.mirror.spec import Spec
from guestagent.mirror.survey import AGENT, NATIVE, Choice, Survey


def survey(spec: Spec, inventory: Inventory) -> Survey:
    """The choice for each machine, and what the native ones need. Raises ConfigError."""
    wanted_rules(spec)  # too many are told also where nothing is to be made yet
    strangers = Counter(
        one["NetworkInterfaceId"] for one in inventory.sessions if not is_own_session(one, spec.name, inventory)
    )
    targets = {target_key(one) for one in inventory.targets} | {inventory.place}
    choices = tuple(_choose(spec, one, inventory, strangers, targets) for one in inventory.machines)
    choices = _within_target(choices, inventory)
    sources = [interface for one in choices if one.way == NATIVE for interface in one.interfaces]
    resources = wanted(spec, sources, inventory) if sources and spec.target else ()
    return Survey(choices, resources, found(spec.name, inventory), tuple(_warnings(spec, inventory, choices)))


def _choose(
    spec: Spec, machine: Machine, inventory: Inventory, strangers: Mapping[str, int], targets: Collection[str]
) -> Choice:
    """`strangers` are the sessions of others by interface, `targets` where any target leads."""
    verdict, reason = facts.eligible(machine.kind)
    behind = inventory.balancers.get(inventory.place, Balancer()).members
    refusals = [
        *((reason,) if verdict == "no" else ()),
        *(f"{one} is itself a mirror target" for one in machine.interfaces if one in targets),
        *(
            f"{one} is behind the target, so that each copy would be copied again"
            for one in machine.interfaces
            if behind & machine.names.get(one, frozenset())
        ),
        *(
            f"{one} has {strangers.get(one, 0)} other sessions, and EC2 allows {facts.SESSIONS_PER_INTERFACE}"
            for one in machine.interfaces
            if strangers.get(one, 0) >= facts.SESSIONS_PER_INTERFACE
        ),
        *(() if machine.interfaces else machine.skipped or ("it has no interface that can be a source",)),
    ]
    if refusals:
        return Choice(machine.id, machine.name, machine.kind, AGENT, verdict, "; ".join(refusals))
    uncut = facts.MOST_UNCUT_MTU_GWLB if inventory.place.startswith("vpce-") else facts.MOST_UNCUT_MTU
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


def _within_target(choices: tuple[Choice, ...], inventory: Inventory) -> tuple[Choice, ...]:
    """What an interface target can't take any more goes to the agent."""
    place = inventory.place
    if not place.startswith("eni-"):
        return choices
    used = _used(inventory)
    # Those that it has keep their place, whatever comes first in the inventory.
    ordered = sorted(choices, key=lambda one: not used.intersection(one.interfaces))
    kept = set(used)
    fitting: dict[str, Choice] = {}
    for one in ordered:
        with_it = kept | set(one.interfaces)
        if one.way == NATIVE and len(with_it) > max(facts.SOURCES_PER_LARGEST_TARGET, len(kept)):
            reason = f"{place} takes {facts.SOURCES_PER_LARGEST_TARGET} sources at most: use a load balancer"
            one = Choice(one.machine, one.name, one.kind, AGENT, one.eligible, reason)
        else:
            kept = with_it
        fitting[one.machine] = one
    return tuple(fitting[one.machine] for one in choices)


def _used(inventory: Inventory) -> set[str]:
    """Sources of all sessions, whoever's, that lead to the place."""
    ids = {one["TrafficMirrorTargetId"] for one in inventory.targets if target_key(one) == inventory.place}
    return {one["NetworkInterfaceId"] for one in inventory.sessions if one["TrafficMirrorTargetId"] in ids}


def _warnings(spec: Spec, inventory: Inventory, choices: Iterable[Choice]) -> list[str]:
    native = [one for one in choices if one.way == NATIVE]
    sources = {interface for one in native for interface in one.interfaces}
    stopped = [one.id for one in inventory.machines if one.state != "running" and sources & set(one.interfaces)]
    said = [f"{one} selects no instance now" for one in inventory.idle]
    if sources:
        said.append(f"cost: {facts.monthly_cost(len(sources))}; EC2 bills a session also while its source is stopped")
    if stopped:
        said.append(f"{', '.join(stopped)}: not running, and the sessions are billed all the same")
    said += _place_warnings(sources, inventory)
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


def _place_warnings(sources: set[str], inventory: Inventory) -> list[str]:
    place, balancer = inventory.place, inventory.balancers.get(inventory.place)
    if balancer:
        return [*balancer_problems(place, balancer), *balancer_notes(place, balancer)]
    together = len(sources | _used(inventory))
    if not (place.startswith("eni-") and sources and together > facts.SOURCES_PER_INTERFACE_TARGET):
        return []
    text = f"{together} sources for {place}, others' included: EC2 takes {facts.SOURCES_PER_INTERFACE_TARGET}, or "
    return [f"{text}{facts.SOURCES_PER_LARGEST_TARGET} where it belongs to the largest size of its family"]


def balancer_problems(place: str, balancer: Balancer) -> list[str]:
    """Why no copy arrives."""
    if not balancer.has_listener:
        return [f"{place} has no UDP listener on {facts.VXLAN_PORT}: nothing arrives until it has one"]
    if not balancer.members:
        return [f"{place} has nobody behind its listener on {facts.VXLAN_PORT}: nothing arrives until it has"]
    return []


def balancer_notes(place: str, balancer: Balancer) -> list[str]:
    """A load balancer of which all are unhealthy sends to all."""
    if balancer.members and not balancer.healthy:
        return [f"{place}: none of the {len(balancer.members)} behind it is healthy"]
    return []
