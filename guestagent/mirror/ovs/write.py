"""Open vSwitch: the transactions of a mirror on rows of ovs.db.idl. The server does each as a whole or not at all.

A mirror and its tunnel come, change and go together: a tunnel port that no mirror has reserved forwards like any other
port of the bridge, and would flood the sensor, or worse, let it speak.
"""

from collections.abc import Callable, Mapping
from typing import Any

from guestagent.errors import RunError
from guestagent.mirror.ovs.inventory import SPEC, TARGET, markers, owner_of
from guestagent.mirror.ovs.session import Refused, Tables
from guestagent.mirror.ovs.target import interface_of, parse_target
from guestagent.mirror.spec import Spec

PREFIX = "ga-"
MOST_NAME_CHARACTERS = 15
"""Of an interface (IFNAMSIZ less the end)."""
_EMPTY: Mapping[str, Any] = {"output_port": [], "select_all": False, "select_src_port": [], "select_dst_port": []}


def put(transaction: Any, tables: Tables, name: str, identifier: str, changes: Mapping[str, Any]) -> Any:
    """Make the mirror `name`, or change the one of this identifier; its row. Raises RunError."""
    mirror = _by_id(tables, "Mirror", identifier) if identifier else _ours(tables, name)
    if mirror is None and identifier:
        raise RunError("somebody removed it meanwhile: run again")
    if mirror is None:
        mirror = _new(transaction, tables, "Mirror", external_ids=markers(name), **_EMPTY)
    else:
        _insist(mirror, name)
    for key, value in changes.items():
        if key in _COLUMNS:
            _COLUMNS[key](mirror, value, tables)
    bridge = _row(tables, "Bridge", changes["bridge"]) if "bridge" in changes else _holder(tables, "mirrors", mirror)
    bridge.verify("mirrors")  # of two that make the same mirror at once the second looks again, and finds it
    _move(tables, "mirrors", mirror, bridge)
    tunnel = _tunnel_of(mirror, name)
    if "output" in changes:
        tunnel = _output(transaction, tables, mirror, name, changes["output"])
        _sweep(tables, name, mirror, tunnel)
    if tunnel is not None:
        _move(tables, "ports", tunnel, bridge)
        _refuse_loop(mirror, tunnel, bridge)
    return mirror


def _refuse_loop(mirror: Any, tunnel: Any, bridge: Any) -> None:
    """Raises Refused where the mirror would select what its own tunnel sends, as far as the switch has told its way."""
    ways = {one.status.get("tunnel_egress_iface") for one in tunnel.interfaces}
    crossed = [port for port in bridge.ports if port.name in ways]
    selected = {*mirror.select_src_port, *mirror.select_dst_port}
    if crossed and (mirror.select_all or selected.intersection(crossed)):
        raise Refused(
            f"the tunnel leaves through {crossed[0].name}, which would be mirrored, so that each copy is copied again: "
            "name the ports of the VMs"
        )


def take_over(tables: Tables, name: str, identifier: str) -> Any:
    """Put our marker on somebody's mirror, and on the tunnel that it alone outputs to; the mirror's row."""
    mirror = _by_id(tables, "Mirror", identifier)
    if mirror is None:
        raise RunError("somebody removed it meanwhile: run again")
    _mark(mirror, markers(name))
    for port in mirror.output_port:
        if _is_tunnel(port) and not _users(tables, port, mirror):
            _mark(port, markers(name))
    return mirror


def remove(tables: Tables, name: str, identifier: str) -> None:
    """The mirror with its tunnel; one that is gone is fine. Raises RunError."""
    mirror = _by_id(tables, "Mirror", identifier)
    if mirror is None:
        return
    _insist(mirror, name)
    tunnel = _tunnel_of(mirror, name)
    holder = _holder(tables, "mirrors", mirror)
    if holder is not None:
        holder.delvalue("mirrors", mirror)
    if tunnel is not None and not _has_twin(tables, tunnel, mirror, name):
        _drop(tables, tunnel, mirror)


def remove_tunnel(tables: Tables, name: str, identifier: str) -> None:
    """One of ours that no mirror outputs to; one that is gone, or in use by now, is fine."""
    port = _by_id(tables, "Port", identifier)
    if port is not None and owner_of(port.external_ids) == name and not _users(tables, port, None):
        _drop(tables, port, None)


def _insist(mirror: Any, name: str) -> None:
    """Only while it is ours, also when the server comes to do it. Raises RunError."""
    if owner_of(mirror.external_ids) != name:
        raise RunError("somebody took our mark off it meanwhile: run again")
    _hold(mirror)


# -- columns -----------------------------------------------------------------------------------------------------------


def _ports_into(column: str) -> Callable[[Any, Any, Tables], None]:
    def put_ports(mirror: Any, names: tuple[str, ...], tables: Tables) -> None:
        rows = {row.name: row for row in tables["Port"].rows.values()} if names else {}
        gone = [name for name in names if name not in rows]
        if gone:
            raise RunError(f"the port {gone[0]} is gone: run again")
        setattr(mirror, column, [rows[name] for name in names])

    return put_ports


def _put(column: str) -> Callable[[Any, Any, Tables], None]:
    def put_value(mirror: Any, value: Any, tables: Tables) -> None:
        setattr(mirror, column, [] if value is None else list(value) if isinstance(value, tuple) else value)

    return put_value


_COLUMNS: Mapping[str, Callable[[Any, Any, Tables], None]] = {
    "name": _put("name"),
    "select_all": _put("select_all"),
    "ingress": _ports_into("select_dst_port"),
    "egress": _ports_into("select_src_port"),
    "vlans": _put("select_vlan"),
    "packet_length": _put("snaplen"),
    "spec": lambda mirror, text, tables: _mark(mirror, {SPEC: text}),
}
"""How each property of the resource is set, but for the bridge and the output."""


def _hold(row: Any) -> None:
    """The transaction is composed again where somebody else marks the row meanwhile."""
    row.verify("external_ids")
    row.external_ids = row.external_ids  # ovs.db.idl verifies only rows that are written


def _mark(row: Any, words: Mapping[str, str]) -> None:
    row.external_ids = {**row.external_ids, **words}


# -- the output --------------------------------------------------------------------------------------------------------


def _output(transaction: Any, tables: Tables, mirror: Any, name: str, text: str) -> Any:
    """Lead the mirror there; the row of its tunnel, if it has one."""
    target = parse_target(Spec(target=text))
    mirror.output_vlan = [] if target.vlan is None else [target.vlan]
    if target.tunnel is None:
        mirror.output_port = [_row(tables, "Port", target.port)] if target.port else []
        return None
    port = _tunnel_of(mirror, name)
    if port is None:
        free = _free_name(tables, name)
        interface = _new(transaction, tables, "Interface", name=free, options={}, status={})
        port = _new(transaction, tables, "Port", name=free, interfaces=[interface], external_ids={})
    (interface, *_) = port.interfaces
    interface.type, interface.options = interface_of(target.tunnel)
    _mark(port, {**markers(name), TARGET: text})
    mirror.output_port = [port]
    return port


def _tunnel_of(mirror: Any, name: str) -> Any:
    """The tunnel that came with a mirror of ours, or None."""
    ports = [port for port in mirror.output_port if owner_of(port.external_ids) == name and _is_tunnel(port)]
    return ports[0] if ports else None


def _is_tunnel(port: Any) -> bool:
    return any("remote_ip" in interface.options for interface in port.interfaces)


def _free_name(tables: Tables, name: str) -> str:
    taken = {row.name for table in ("Port", "Interface") for row in tables[table].rows.values()}
    most = MOST_NAME_CHARACTERS - len(PREFIX)
    tries = [name[:most], *(f"{name[: most - 4]}-{number}" for number in range(2, 1000))]
    return next(PREFIX + one for one in tries if PREFIX + one not in taken)


def _sweep(tables: Tables, name: str, mirror: Any, kept: Any) -> None:
    """Other tunnels of this mirror go in the same transaction: the switch takes one of each."""
    for port in list(tables["Port"].rows.values()):
        if port is kept or owner_of(port.external_ids) != name or not _is_tunnel(port):
            continue
        if not _has_twin(tables, port, mirror, name):
            _drop(tables, port, mirror)


def _drop(tables: Tables, port: Any, mirror: Any) -> None:
    for one in _users(tables, port, mirror):
        raise RunError(f"the mirror {one.name} outputs to its tunnel {port.name}, too: it stays until that one is gone")
    _hold(port)
    holder = _holder(tables, "ports", port)
    if holder is not None:
        holder.delvalue("ports", port)


def _has_twin(tables: Tables, port: Any, mirror: Any, name: str) -> bool:
    """Whether a second mirror of this name, which a mishap left, outputs there."""
    return any(owner_of(one.external_ids) == name for one in _users(tables, port, mirror))


def _users(tables: Tables, port: Any, mirror: Any) -> list[Any]:
    """Other mirrors that output to the port."""
    return [one for one in tables["Mirror"].rows.values() if one is not mirror and port in one.output_port]


# -- rows --------------------------------------------------------------------------------------------------------------


def _new(transaction: Any, tables: Tables, table: str, **columns: Any) -> Any:
    """A row with all the columns that are read here: of a new row ovs.db.idl knows only what was set."""
    row = transaction.insert(tables[table])
    for column, value in columns.items():
        setattr(row, column, value)
    return row


def _by_id(tables: Tables, table: str, identifier: str) -> Any:
    return next((row for row in tables[table].rows.values() if str(row.uuid) == identifier), None)


def _row(tables: Tables, table: str, name: str) -> Any:
    for row in tables[table].rows.values():
        if row.name == name:
            return row
    raise RunError(f"the {table.lower()} {name} is gone: run again")


def _ours(tables: Tables, name: str) -> Any:
    rows = tables["Mirror"].rows.values()
    return next((row for row in rows if owner_of(row.external_ids) == name), None)


def _holder(tables: Tables, column: str, row: Any) -> Any:
    """The bridge that has the row in this column."""
    return next((one for one in tables["Bridge"].rows.values() if row in getattr(one, column)), None)


def _move(tables: Tables, column: str, row: Any, bridge: Any) -> None:
    holder = _holder(tables, column, row)
    if holder is bridge:
        return
    if holder is not None:
        holder.delvalue(column, row)
    bridge.addvalue(column, row)
