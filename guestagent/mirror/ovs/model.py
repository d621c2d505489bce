"""Open vSwitch: what was read becomes choices, resources and warnings. Pure; the reading is read.py's."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from guestagent.endpoint import TUNNEL_FORMS
from guestagent.errors import ConfigError
from guestagent.mirror.ovs.inventory import (
    SPEC,
    TARGET,
    Inventory,
    Mirror,
    is_tunnel,
    leftovers,
    owner_of,
)
from guestagent.mirror.ovs.sources import Selection, listed, select
from guestagent.mirror.ovs.target import Target, interface_of, is_same_tunnel, parse_target
from guestagent.mirror.plan import Kind, Resource
from guestagent.mirror.providers import check
from guestagent.mirror.spec import KEYS, Spec
from guestagent.mirror.survey import AGENT, NATIVE, Choice, Survey
from guestagent.trust import is_exposed

MIRROR, TUNNEL = "mirror", "tunnel"
KINDS = (Kind(MIRROR, is_unique=True), Kind(TUNNEL))
"""A mirror comes and goes with its tunnel, in one transaction: a tunnel without its mirror would forward what it gets.
Such a one is left where somebody removed the mirror alone, and is found so that it can be removed."""
LEAST_SNAPLEN = 14
_STORED = ("source", "vpc", "tag", "direction", "target", "packet_length", "vni")
"""Keys of the spec that a mirror bears, so that `status` knows what it should be."""
_FREE = "no charge; the switch copies each packet"
_DROPS = "copies that the output has no room for are dropped, and a VM's port counts nothing"


# -- found -------------------------------------------------------------------------------------------------------------


def found(name: str, inventory: Inventory, adopt: Sequence[str] = ()) -> tuple[Resource, ...]:
    """All mirrors as this one sees them, and its own tunnels without a mirror. One to be adopted gets our name."""
    made = [
        Resource(
            MIRROR,
            name if is_own(one, name) or one.id in adopt else one.name,
            _found_properties(one, inventory, name),
            one.id,
            is_own(one, name),
        )
        for one in inventory.mirrors
    ]
    return (*made, *(Resource(TUNNEL, port.name, {}, port.id) for port in leftovers(name, inventory)))


def is_own(mirror: Mirror, name: str) -> bool:
    """Whether it belongs to the mirror of this name; nothing belongs to one without a name."""
    return name != "" and owner_of(mirror.external_ids) == name


def _found_properties(mirror: Mirror, inventory: Inventory, name: str) -> dict[str, Any]:
    return {
        "name": mirror.name,
        "bridge": mirror.bridge,
        "output": output_of(mirror, inventory, name),
        "select_all": mirror.select_all,
        "ingress": mirror.destinations,
        "egress": mirror.sources,
        "vlans": mirror.vlans,
        "packet_length": mirror.snaplen,
        "spec": mirror.external_ids.get(SPEC, ""),
    }


def output_of(mirror: Mirror, inventory: Inventory, name: str) -> str:
    """As a target of the spec; empty where it leads nowhere, or by a tunnel of ours that is not as it was made."""
    port = inventory.ports.get(mirror.output_port)
    if (port is None) == (mirror.output_vlan is None):
        return ""
    if port is None:
        return f"vlan:{mirror.output_vlan}"
    if not (is_own(mirror, name) and owner_of(port.external_ids) == name):
        return f"port:{port.name}"
    url = port.external_ids.get(TARGET, "")
    is_intact = _made_of(url) == (port.type, dict(port.options)) and port.bridge == mirror.bridge
    return url if is_intact else ""


def _made_of(url: str) -> tuple[str, dict[str, str]] | None:
    """What a tunnel that leads there has; None where the text, which anybody may have changed, is no URL of ours."""
    try:
        tunnel = parse_target(Spec(target=url)).tunnel
    except (ConfigError, ValueError):
        return None
    return interface_of(tunnel) if tunnel else None


# -- wanted ------------------------------------------------------------------------------------------------------------


def survey(spec: Spec, inventory: Inventory, adopt: Sequence[str] = ()) -> Survey:
    """The choice for each port, and the mirror that the native ones need. Raises ConfigError."""
    selection = select(spec, inventory)
    outputs = _outputs(spec, inventory, adopt)
    choices = _choices(spec, selection, inventory, outputs)
    resources = found(spec.name, inventory, adopt)
    taken = [one for one in choices if one.way == NATIVE]
    if not (spec.target and taken):
        return Survey(choices, (), resources)
    target = parse_target(spec)
    _check_target(spec, target, selection.bridge, inventory)
    wanted = Resource(MIRROR, spec.name, _wanted_properties(spec, target, selection, choices))
    return Survey(choices, (wanted,), resources, tuple(_warnings(spec, target, selection, inventory)))


def _wanted_properties(spec: Spec, target: Target, selection: Selection, choices: Iterable[Choice]) -> dict[str, Any]:
    ports = tuple(sorted(one for choice in choices if choice.way == NATIVE for one in choice.interfaces))
    return {
        "name": spec.name,
        "bridge": selection.bridge,
        "output": str(target),
        "select_all": not selection.ports,
        "ingress": ports if "ingress" in spec.directions else (),
        "egress": ports if "egress" in spec.directions else (),
        "vlans": selection.vlans,
        "packet_length": spec.packet_length,
        "spec": stored(spec),
    }


def stored(spec: Spec) -> str:
    """What a mirror bears of its spec."""
    plain = Spec()
    kept = {key: getattr(spec, key) for key in _STORED if getattr(spec, key) != getattr(plain, key)}
    if "tag" in kept:
        kept["tag"] = [f"{key}={value}" for key, value in kept["tag"]]
    return json.dumps(kept)


def unstored(name: str, text: str) -> Spec:
    """The spec that a mirror bears. Raises ConfigError."""
    try:
        kept = json.loads(text)
        spec = Spec(name=name, **{key: KEYS[key](value, key) for key, value in kept.items() if key in _STORED})
        check("ovs", spec)
    except (ValueError, AttributeError, ConfigError) as error:
        raise ConfigError(f"what it bears in external_ids:{SPEC} is unreadable: run create again") from error
    return spec


# -- the choice --------------------------------------------------------------------------------------------------------


def _outputs(spec: Spec, inventory: Inventory, adopt: Sequence[str]) -> dict[str, str]:
    """Ports that a mirror outputs to, with a sentence each; what it is now counts for nothing where it will change."""
    others = [one for one in inventory.mirrors if not is_own(one, spec.name) and one.id not in adopt]
    outputs = {one.output_port: f"mirror {one.name} outputs to it" for one in others}
    outputs |= {port.name: "it is a tunnel of ours" for port in inventory.ports.values() if owner_of(port.external_ids)}
    if spec.target.startswith("port:"):
        outputs[spec.target.removeprefix("port:")] = "it is itself the target"
    return outputs


def _choices(spec: Spec, selection: Selection, inventory: Inventory, outputs: dict[str, str]) -> tuple[Choice, ...]:
    mtu = f"cut to {spec.packet_length} bytes" if spec.packet_length else "any, where the output carries it"
    more: dict[str, Any] = {"cost": _FREE, "limits": _DROPS, "mtu": mtu}
    if not selection.ports:
        count = sum(port.bridge == selection.bridge for port in inventory.ports.values())
        vlans = f", VLAN {listed(map(str, selection.vlans))}" if selection.vlans else ""
        kind = inventory.bridges[selection.bridge] or "system"
        reason = f"the whole bridge, {count} ports{vlans}, and those that come later"
        return (Choice(f"bridge:{selection.bridge}", "", kind, NATIVE, "yes", reason, **more),)
    made = []
    for name in selection.ports:
        port = inventory.ports[name]
        machine = next((port.tags[key] for key in ("vm-id", "iface-id", "attached-mac") if key in port.tags), "")
        kind = port.type or "system"
        if name in outputs:
            made.append(Choice(name, machine, kind, AGENT, "no", f"it cannot be a source: {outputs[name]}"))
        else:
            reason = f"a port of {port.bridge}"
            made.append(Choice(name, machine, kind, NATIVE, "yes", reason, interfaces=(name,), **more))
    return tuple(made)


def _check_target(spec: Spec, target: Target, bridge: str, inventory: Inventory) -> None:
    if target.port:
        port = inventory.ports.get(target.port)
        if port is None or port.bridge != bridge:
            where = f"it is on {port.bridge}" if port else "there is no such port here"
            raise ConfigError(f"target: {spec.target}: {where}, and a mirror outputs to a port of its bridge, {bridge}")
    if target.tunnel:
        kind = target.tunnel.scheme
        offered = inventory.interface_types
        if offered and kind not in offered:
            usable = listed(sorted(offered & TUNNEL_FORMS.keys()))
            raise ConfigError(f"target: {spec.target}: this switch has no {kind} tunnels: it has {usable}")
        made = interface_of(target.tunnel)
        for port in inventory.ports.values():
            if owner_of(port.external_ids) != spec.name and is_same_tunnel(made, (port.type, port.options)):
                raise ConfigError(
                    f"target: {spec.target}: {port.name} on {port.bridge} is such a tunnel already, and a switch takes "
                    f"one of each: give another number, or on {port.bridge} --target port:{port.name}"
                )
    if spec.packet_length is not None and spec.packet_length < LEAST_SNAPLEN:
        raise ConfigError(f"packet_length: a switch keeps {LEAST_SNAPLEN} bytes at least")


def _warnings(spec: Spec, target: Target, selection: Selection, inventory: Inventory) -> list[str]:
    said = []
    if target.port:
        said.append(f"{target.port} takes copies alone from now on: nothing else is forwarded to it, nothing from it")
    if target.vlan is not None:
        said.append(
            f"every switch that carries VLAN {target.vlan} must flood it (flood_vlans), or it learns from copies"
        )
    if target.tunnel and not spec.packet_length:
        said.append(
            f"the path to {target.tunnel.host} must carry the source's MTU + {target.overhead_bytes} bytes, or longer "
            "copies are lost: set --packet-length"
        )
    if target.tunnel and is_exposed(target.tunnel):
        said.append(f"{target.tunnel.host} is not a private address, and copies are readable on the way")
    if target.tunnel and not selection.ports:
        said.append(
            f"if the tunnel's own packets cross {selection.bridge}, each copy is copied again: `status` tells that, "
            "and --source port:NAME avoids it"
        )
    used = {one.name for one in inventory.mirrors if one.output_port == target.port and not is_own(one, spec.name)}
    if target.port and used:
        said.append(f"mirror {listed(sorted(used))} outputs to {target.port}, too")
    if any(is_tunnel(inventory.ports[name]) for name in selection.ports):
        said.append("a source is a tunnel: what it carries between switches is copied on each of them")
    return said
