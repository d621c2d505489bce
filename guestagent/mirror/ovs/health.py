"""Open vSwitch: what keeps a mirror from working, from what was read. Pure."""

from typing import Any

from guestagent.errors import ConfigError
from guestagent.mirror.ovs.inventory import SPEC, Inventory, Mirror, Port, is_tunnel, leftovers, owner_of
from guestagent.mirror.ovs.model import found, is_own, output_of, survey, unstored
from guestagent.mirror.ovs.sources import listed
from guestagent.mirror.plan import Resource
from guestagent.mirror.survey import Health

_AGAIN = "run create again"


def healths(inventory: Inventory) -> list[Health]:
    """One for each mirror that has anything left, by name."""
    owners = {owner_of(one.external_ids) for one in inventory.mirrors}
    owners |= {owner_of(one.external_ids) for one in inventory.ports.values() if is_tunnel(one)}
    return [_health(name, inventory) for name in sorted(owners - {""})]


def _health(name: str, inventory: Inventory) -> Health:
    own = tuple(one for one in found(name, inventory) if one.is_ours)
    mirrors = sorted((one for one in inventory.mirrors if is_own(one, name)), key=lambda one: one.id)
    if not mirrors:
        tunnels = listed(port.name for port in leftovers(name, inventory))
        return Health(name, own, (f"the mirror itself is gone, its tunnel {tunnels} is left: {_AGAIN}, or delete",))
    mirror = mirrors[0]
    problems = [
        *(() if len(mirrors) == 1 else (f"it is there {len(mirrors)} times: {_AGAIN}",)),
        *(f"its tunnel {port.name} is there twice: {_AGAIN}" for port in leftovers(name, inventory)),
        *_departures(mirror, own, inventory, name),
        *output_problems(mirror, inventory),
        *(() if inventory.is_current else ("ovs-vswitchd has not taken over what the database says: is it running?",)),
    ]
    return Health(name, own, tuple(problems), _facts(mirror, inventory, name))


def _facts(mirror: Mirror, inventory: Inventory, name: str) -> dict[str, Any]:
    return {
        "bridge": mirror.bridge,
        "output": output_of(mirror, inventory, name) or "none",
        "copied_packets": mirror.statistics.get("tx_packets", 0),
        "copied_bytes": mirror.statistics.get("tx_bytes", 0),
        "sources": ["all"] if mirror.select_all else sorted({*mirror.sources, *mirror.destinations}),
    }


def _departures(mirror: Mirror, own: tuple[Resource, ...], inventory: Inventory, name: str) -> list[str]:
    """Where it is not what its spec says. References to ports are weak: one that goes is missing without a word."""
    try:
        spec = unstored(name, mirror.external_ids.get(SPEC, ""))
    except ConfigError as error:
        return [str(error)]
    said = []
    if not output_of(mirror, inventory, name):
        said.append(f"its output {spec.target} is gone or changed, so nothing arrives there: {_AGAIN}")
    if not (mirror.select_all or mirror.sources or mirror.destinations):
        said.append(f"it selects no port: those that it had are gone: {_AGAIN} once they are there")
    try:
        wishes = survey(spec, inventory).wanted
    except ConfigError as error:
        return [*said, str(error)]
    if not wishes:
        return [*said, "none of its sources can be mirrored any more"]
    have = next(one for one in own if one.id == mirror.id)
    other = {key for key, value in wishes[0].properties.items() if have.properties[key] != value} - {"output", "spec"}
    for key in sorted(other & {"ingress", "egress"}):
        lost = sorted(set(wishes[0].properties[key]) - set(have.properties[key]))
        if lost:
            said.append(f"{key} of {listed(lost)} is not mirrored (a port that was made again is another): {_AGAIN}")
            other.discard(key)
    if other:
        said.append(f"other than its spec: {', '.join(sorted(other))}: {_AGAIN}")
    return said


def output_problems(mirror: Mirror, inventory: Inventory) -> list[str]:
    """What the switch says of the port that the copies leave through."""
    port = inventory.ports.get(mirror.output_port)
    if port is None:
        return []
    if port.error:
        return [f"the switch refuses {port.name}: {port.error}"]
    if port.link == "down" and not is_tunnel(port):
        return [f"{port.name}, its output, is down"]
    if is_tunnel(port):
        return _tunnel_problems(mirror, port, inventory)
    return []


def _tunnel_problems(mirror: Mirror, port: Port, inventory: Inventory) -> list[str]:
    if port.link and not port.egress:  # a switch that says nothing of its link has not made it yet
        return [f"the switch knows no way to {port.options['remote_ip']}: give it a route"]
    if loops(mirror, port, inventory):
        return [f"the tunnel leaves through {port.egress}, which is mirrored: each copy is copied again"]
    return []


def loops(mirror: Mirror, tunnel: Port, inventory: Inventory) -> bool:
    """Whether the mirror selects what its own tunnel sends."""
    way = inventory.ports.get(tunnel.egress)
    if way is None or way.bridge != mirror.bridge:
        return False
    return mirror.select_all or way.name in {*mirror.sources, *mirror.destinations}
