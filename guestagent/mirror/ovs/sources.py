"""Open vSwitch: which ports, or which bridge, the words of a spec select. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from guestagent.errors import ConfigError
from guestagent.mirror.ovs.inventory import Inventory, Port
from guestagent.mirror.ovs.target import MOST_VLAN
from guestagent.mirror.spec import Spec


class Selection(NamedTuple):
    """What the sources come to: ports of one bridge, or all of it, of all VLANs or some."""

    bridge: str
    ports: tuple[str, ...] = ()
    """Empty: all of it."""
    vlans: tuple[int, ...] = ()


def select(spec: Spec, inventory: Inventory) -> Selection:
    """Raises ConfigError where nothing, or what one mirror can't hold, is selected."""
    if spec.vpc and spec.vpc not in inventory.bridges:
        raise ConfigError(f"vpc: there is no bridge {spec.vpc} here: there are {listed(inventory.bridges)}")
    words = spec.source or ((f"bridge:{spec.vpc}",) if spec.vpc and not spec.tag else ())
    whole = [word.removeprefix("bridge:") for word in words if word.startswith("bridge:")]
    if whole:
        return _whole_bridge(spec, whole, len(whole) < len(words), inventory)
    ports = [port for port in _named_ports(words, inventory) if _is_within(port, spec)]
    bridges = sorted({port.bridge for port in ports})
    if not ports:
        raise ConfigError("the sources, --vpc and --tag together select no port of this switch")
    if len(bridges) > 1:
        raise ConfigError(f"the sources are on {listed(bridges)}, and a mirror is of one bridge: narrow with --vpc")
    return Selection(bridges[0], tuple(sorted(port.name for port in ports)))


def _whole_bridge(spec: Spec, whole: Sequence[str], has_ports: bool, inventory: Inventory) -> Selection:
    parts = [one.partition("/") for one in whole]
    bridges = sorted({bridge for bridge, _, _ in parts})
    if len(bridges) > 1 or has_ports or spec.tag:
        raise ConfigError("source: a whole bridge stands alone: make one mirror for it and another for the rest")
    if bridges[0] not in inventory.bridges or spec.vpc not in ("", bridges[0]):
        raise ConfigError(f"source: there is no bridge {bridges[0]} here: there are {listed(inventory.bridges)}")
    if spec.direction != "both":
        raise ConfigError("direction: a whole bridge is mirrored once, in both: name ports, or leave it out")
    vlans = {int(vlan) for _, _, vlan in parts if vlan}
    if any(vlan > MOST_VLAN for vlan in vlans):
        raise ConfigError(f"source: a VLAN is from 0 (untagged) to {MOST_VLAN}")
    every = any(not vlan for _, _, vlan in parts)
    return Selection(bridges[0], (), () if every else tuple(sorted(vlans)))


def _named_ports(words: Sequence[str], inventory: Inventory) -> list[Port]:
    """All, where no word says which. Raises ConfigError for a name that is not there."""
    names = [word.removeprefix("port:") for word in words if word.startswith("port:")]
    absent = [name for name in names if name not in inventory.ports]
    if absent:
        raise ConfigError(f"source: {listed(absent)}: there is no such port here")
    tags = [word.removeprefix("tag:").partition("=")[::2] for word in words if word.startswith("tag:")]
    return [
        port
        for port in inventory.ports.values()
        if not words or port.name in names or any(port.tags.get(key) == value for key, value in tags)
    ]


def _is_within(port: Port, spec: Spec) -> bool:
    return spec.vpc in ("", port.bridge) and all(port.tags.get(key) == value for key, value in spec.tag)


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a sentence, the first of many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "none"
