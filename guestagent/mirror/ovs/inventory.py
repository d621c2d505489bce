"""Open vSwitch: what the database holds of switch, ports and mirrors, as plain values; and whose each is. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

MANAGED, MIRROR, SPEC, TARGET = "guestagent-managed", "guestagent-mirror", "guestagent-spec", "guestagent-target"
"""Keys of external_ids: our marker, the mirror's name, on a mirror what it was made of, on a tunnel where it leads."""
Words = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a bridge, with what its interfaces say; a bond has several, and is taken together."""

    id: str
    name: str
    bridge: str
    type: str = ""
    """Of the interface; empty: a device of the system."""
    options: Words = field(default_factory=dict)
    external_ids: Words = field(default_factory=dict)
    """The port's own: our marker."""
    tags: Words = field(default_factory=dict)
    """external_ids of the interfaces, where a hypervisor says which VM it is."""
    error: str = ""
    link: str = ""
    """`up`, `down`, or empty where the switch does not say."""
    egress: str = ""
    """Of a tunnel: the device that its packets leave through; empty where the switch knows no way."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A row of the table Mirror; ports by name."""

    id: str
    name: str
    bridge: str
    select_all: bool = False
    sources: tuple[str, ...] = ()
    """select_src_port: what comes from these ports, which is what their machines send."""
    destinations: tuple[str, ...] = ()
    vlans: tuple[int, ...] = ()
    output_port: str = ""
    output_vlan: int | None = None
    snaplen: int | None = None
    external_ids: Words = field(default_factory=dict)
    statistics: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inventory:
    """One switch."""

    bridges: Mapping[str, str] = field(default_factory=dict)
    """The datapath type by name."""
    ports: Mapping[str, Port] = field(default_factory=dict)
    """By name, which is unique in the database."""
    mirrors: tuple[Mirror, ...] = ()
    interface_types: frozenset[str] = frozenset()
    """What ovs-vswitchd offers; empty while it never ran."""
    is_current: bool = True
    """ovs-vswitchd has taken over what the database says."""


def owner_of(external_ids: Words) -> str:
    """The mirror that the object belongs to; empty for a stranger's."""
    return external_ids.get(MIRROR, "") if external_ids.get(MANAGED) == "true" else ""


def markers(name: str) -> dict[str, str]:
    """Our marker."""
    return {MANAGED: "true", MIRROR: name}


def is_tunnel(port: Port) -> bool:
    """Whether it leads to another machine."""
    return "remote_ip" in port.options


def leftovers(name: str, inventory: Inventory) -> list[Port]:
    """Tunnels of this mirror that no mirror outputs to: an ordinary port each, which forwards like any other."""
    used = {one.output_port for one in inventory.mirrors}
    return [
        one
        for one in inventory.ports.values()
        if name and owner_of(one.external_ids) == name and is_tunnel(one) and one.name not in used
    ]
