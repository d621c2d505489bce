"""AWS: all mirrors of ours in an account, and what keeps each from working. Pure."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from guestagent.mirror.aws import facts
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
    return Health(name, own, tuple(problems), facts_of_it, tuple(_stopped(sessions, inventory)))


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


def _target_problems(sessions: list[Mapping[str, Any]], inventory: Inventory) -> list[str]:
    places = {one["TrafficMirrorTargetId"]: target_key(one) for one in inventory.targets}
    used: dict[str, int] = defaultdict(int)
    for session in sessions:
        used[places.get(session["TrafficMirrorTargetId"], "")] += 1
    said = []
    for place, count in sorted(used.items()):
        if not place:
            said.append(f"{count} sessions lead to a target that does not exist")
        elif place in inventory.lost:
            said.append(f"{place} does not exist any more: {count} sessions lead nowhere, and are billed")
        elif inventory.listeners.get(place) is False:
            said.append(f"{place} has no UDP listener on {facts.VXLAN_PORT}: the copies of {count} sessions are lost")
    return said
