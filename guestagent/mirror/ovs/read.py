"""Open vSwitch: rows of the database become plain values."""

from collections.abc import Iterable
from typing import Any

from guestagent.mirror.ovs.inventory import Inventory, Mirror, Port
from guestagent.mirror.ovs.session import Tables, root


def inventory(tables: Tables) -> Inventory:
    """The whole switch, from what the session holds; asks nobody."""
    switch = root(tables)
    bridges = sorted(switch.bridges, key=lambda row: row.name)
    return Inventory(
        bridges={row.name: row.datapath_type for row in bridges},
        ports={port.name: _port(port, bridge.name) for bridge in bridges for port in bridge.ports},
        mirrors=tuple(_mirror(row, bridge.name) for bridge in bridges for row in bridge.mirrors),
        interface_types=frozenset(switch.iface_types),
        is_current=switch.cur_cfg >= switch.next_cfg,
    )


def _port(row: Any, bridge: str) -> Port:
    interfaces = sorted(row.interfaces, key=lambda one: one.name)
    tags = {key: value for one in interfaces for key, value in one.external_ids.items()}
    first = interfaces[0] if interfaces else None
    links = [link for one in interfaces for link in one.link_state]
    return Port(
        id=str(row.uuid),
        name=row.name,
        bridge=bridge,
        type=first.type if first else "",
        options=dict(first.options) if first else {},
        external_ids=dict(row.external_ids),
        tags=tags,
        error="; ".join(text for one in interfaces for text in one.error),
        link="up" if "up" in links else "down" if links else "",
        egress=first.status.get("tunnel_egress_iface", "") if first else "",
    )


def _mirror(row: Any, bridge: str) -> Mirror:
    return Mirror(
        id=str(row.uuid),
        name=row.name,
        bridge=bridge,
        select_all=row.select_all,
        sources=_names(row.select_src_port),
        destinations=_names(row.select_dst_port),
        vlans=tuple(sorted(row.select_vlan)),
        output_port=next((port.name for port in row.output_port), ""),
        output_vlan=next(iter(row.output_vlan), None),
        snaplen=next(iter(row.snaplen), None),
        external_ids=dict(row.external_ids),
        statistics=dict(row.statistics),
    )


def _names(ports: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted(port.name for port in ports))
