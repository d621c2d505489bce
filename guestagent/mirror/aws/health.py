"""AWS: all mirrors of ours in an account, and what keeps each from working. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from guestagent.mirror.aws import facts
from guestagent.mirror.aws.choice import balancer_notes, balancer_problems
from guestagent.mirror.aws.model import RULE, Inventory, found, owner_of, target_key
from guestagent.mirror.survey import Health


def healths(inventory: Inventory) -> list[Health]:
    """One for each mirror that has anything left, by name."""
    everything = (*inventory.filters, *inventory.targets, *inventory.sessions)
    names = sorted({owner_of(one) for one in everything} - {""})
    return [_health(name, inventory) for name in names]


def _health(name: str, inventory: Inventory) -> Health:
    own = tuple(one for one in found(name, inventory) if one.is_ours)
    filters = [one for one in inventory.filters if owner_of(one) == name]
    sessions = [one for one in inventory.sessions if owner_of(one) == name]
    problems = [
        *_target_problems(sessions, inventory),
        *(() if filters else ("it has no filter",)),
        *(() if not filters or _accepts(filters[0]) else ("no rule of its filter accepts anything",)),
        *(() if sessions else ("it has no session, so nothing is mirrored",)),
    ]
    facts_of_it = {
        "sessions": len(sessions),
        "rules": sum(one.kind == RULE for one in own),
        "sources": sorted(one["NetworkInterfaceId"] for one in sessions),
        "cost": facts.monthly_cost(len(sessions)),
    }
    balancers = [(place, inventory.balancers.get(place)) for place in sorted(_used_places(sessions, inventory))]
    notes = [
        *(text for place, one in balancers if one for text in balancer_notes(place, one)),
        *_stopped(sessions, inventory),
    ]
    return Health(name, own, tuple(problems), facts_of_it, tuple(notes))


def _stopped(sessions: list[Mapping[str, Any]], inventory: Inventory) -> list[str]:
    """AWS bills a session by the hour, whether or not its source runs."""
    idle = [one for one in sessions if one["NetworkInterfaceId"] in inventory.stopped]
    machines = sorted({inventory.stopped[one["NetworkInterfaceId"]] for one in idle})
    if not machines:
        return []
    return [f"{', '.join(machines)}: stopped, and still billed: {facts.monthly_cost(len(idle))}"]


def _accepts(raw: Mapping[str, Any]) -> bool:
    rules = (*raw.get("IngressFilterRules", ()), *raw.get("EgressFilterRules", ()))
    return any(rule["RuleAction"] == "accept" for rule in rules)


def _used_places(sessions: list[Mapping[str, Any]], inventory: Inventory) -> dict[str, int]:
    """How many sessions lead there; to an empty one where their target does not exist."""
    places = {one["TrafficMirrorTargetId"]: target_key(one) for one in inventory.targets}
    return Counter(places.get(one["TrafficMirrorTargetId"], "") for one in sessions)


def _target_problems(sessions: list[Mapping[str, Any]], inventory: Inventory) -> list[str]:
    said = []
    for place, count in sorted(_used_places(sessions, inventory).items()):
        if not place:
            said.append(f"{count} sessions lead to a target that does not exist")
        elif place in inventory.lost:
            said.append(f"{place} does not exist any more: {count} sessions lead nowhere, and are billed")
        elif place in inventory.balancers:
            said += balancer_problems(place, inventory.balancers[place])
    return said
