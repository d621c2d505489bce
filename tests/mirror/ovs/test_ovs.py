"""`guestagent mirror ovs` with ovsdbapp against the real ovsdb-server: converge, adopt and mend."""

import pytest

from guestagent.mirror.ovs.policy import document
from guestagent.mirror.ovs.session import COLUMNS, DATABASE
from guestagent.mirror.spec import Spec
from tests.mirror.ovs.test_crashes import TRANSACTIONS
from tests.mirror.ovs.words import VXLAN, WEB, Run, one_mirror, state
from tests.mirror.ovsdb_server import Json, OvsdbServer, Proxy

pytest.importorskip("ovsdbapp")


def test_create_converges_and_delete_removes_all(switch: OvsdbServer, mirror: Run) -> None:
    """Plan has changes, create makes them, a second create and plan do nothing, delete leaves all as it was."""
    before = state(switch)
    assert mirror("plan", *WEB)[0] == 4
    assert state(switch) == before

    code, made, _ = mirror("create", *WEB, "--packet-length", "128")
    assert (code, made["kind"], [step["op"] for step in made["done"]]) == (0, "outcome", ["create"])
    assert one_mirror(switch)["snaplen"] == 128
    assert 'options: {dst_port="4789", key="7", remote_ip="10.0.0.9"}' in switch.vsctl("show")
    after = state(switch)
    assert mirror("create", *WEB, "--packet-length", "128")[0] == 0
    assert mirror("plan", *WEB, "--packet-length", "128")[0] == 0
    assert state(switch) == after

    assert mirror("delete", "--name", "web", "--yes")[0] == 0
    assert state(switch) == before


def test_dry_run_asks_the_server_and_changes_nothing(switch: OvsdbServer, mirror: Run, proxy: Proxy) -> None:
    """Each step is done by the server and taken back; a plan without --dry-run asks for no transaction."""
    before = state(switch)
    assert mirror("plan", *WEB, db=proxy.db)[0] == 4
    assert not proxy.operations()

    code, plan, _ = mirror("plan", *WEB, "--dry-run", db=proxy.db)

    assert (code, [step["proof"] for step in plan["steps"]]) == (4, ["proved"])
    assert proxy.operations()[-1] == {"op": "abort"}
    assert state(switch) == before


def test_the_choice_names_each_machine(switch: OvsdbServer, mirror: Run) -> None:
    """Ports by their tag, with the hypervisor's name of the VM; one that a mirror outputs to is none."""
    mirror("create", "--name", "db", "--source", "port:vm2", "--target", "port:col0")
    _, plan, _ = mirror("plan", "--source", "tag:role=web,port:col0", "--vpc", "br0")

    assert {(one["machine"], one["name"], one["way"]) for one in plan["machines"]} == {
        ("vm1", "w1", "native"),
        ("col0", "", "agent"),
    }


def test_a_mirror_moves_to_another_bridge(switch: OvsdbServer, mirror: Run) -> None:
    """Mirror and tunnel keep their identifiers, and the old bridge has neither."""
    mirror("create", *WEB)
    ids = [set(switch.rows(table)) for table in ("Mirror", "Port")]

    assert mirror("create", "--name", "web", "--source", "port:vm3", "--target", VXLAN)[0] == 0

    assert [set(switch.rows(table)) for table in ("Mirror", "Port")] == ids
    assert switch.vsctl("list-ports br1").split() == ["col1", "ga-web", "vm3"]
    assert "ga-web" not in switch.vsctl("list-ports br0")
    assert mirror("status", "--name", "web")[0] == 0


def test_a_stranger_is_taken_over_only_by_name(switch: OvsdbServer, mirror: Run) -> None:
    """A mirror of this name that somebody else made is refused until --adopt names it; its tunnel comes with it."""
    switch.vsctl(
        "add-port br0 vx -- set interface vx type=vxlan options:remote_ip=10.0.0.8 options:key=1 -- "
        "--id=@p get port vx -- --id=@m create mirror name=web select_all=true output_port=@p -- "
        "set bridge br0 mirrors=@m"
    )
    before = state(switch)
    ((identifier, _),) = switch.rows("Mirror").items()
    ports = set(switch.rows("Port"))

    code, _, said = mirror("create", *WEB)
    assert (code, f"--adopt {identifier}" in said) == (2, True)
    assert state(switch) == before

    assert mirror("create", *WEB, "--adopt", identifier)[0] == 0
    assert set(switch.rows("Mirror")) == {identifier}
    assert set(switch.rows("Port")) == ports
    assert mirror("plan", *WEB)[0] == 0
    assert mirror("delete", "--name", "web", "--yes")[0] == 0
    assert "vx" not in switch.vsctl("list-ports br0")


def test_a_tunnel_that_a_stranger_uses_stays(switch: OvsdbServer, mirror: Run) -> None:
    """Deleting it would leave the stranger's mirror leading nowhere: refused by name, and nothing changes."""
    mirror("create", *WEB)
    switch.vsctl(
        "--id=@p get port ga-web -- --id=@m create mirror name=span output_port=@p -- add bridge br0 mirrors @m"
    )
    before = state(switch)

    for words in (("delete", "--yes"), ("create", "--source", "port:vm1", "--target", "port:col0")):
        code, _, said = mirror(*words, "--name", "web")
        assert (code, "the mirror span outputs to its tunnel ga-web, too" in said) == (1, True)
    assert state(switch) == before


def test_a_tunnel_left_alone_is_told_and_removed(switch: OvsdbServer, mirror: Run) -> None:
    """Somebody removed the mirror and not its tunnel, now a port like any other: status says so, create mends."""
    mirror("create", *WEB)
    switch.vsctl("clear bridge br0 mirrors")

    code, health, _ = mirror("status", "--name", "web")
    assert (code, "tunnel ga-web is left" in health["problems"][0]) == (1, True)
    assert mirror("create", *WEB)[0] == 0
    assert mirror("status", "--name", "web")[0] == 0
    assert len([row for row in switch.rows("Port").values() if row["name"].startswith("ga-")]) == 1

    switch.vsctl("clear bridge br0 mirrors")
    assert mirror("delete", "--name", "web", "--yes")[0] == 0
    assert "ga-" not in switch.vsctl("show")


def test_a_changed_tunnel_is_told_and_mended(switch: OvsdbServer, mirror: Run) -> None:
    """Options that somebody set by hand are no longer what was made."""
    mirror("create", *WEB)
    switch.vsctl("set interface ga-web options:key=8")

    code, health, _ = mirror("status", "--name", "web")
    assert (code, "is gone or changed" in health["problems"][0]) == (1, True)
    assert mirror("create", *WEB)[0] == 0
    assert mirror("status", "--name", "web")[0] == 0


def test_the_policy_is_what_is_asked_for(switch: OvsdbServer, mirror: Run, proxy: Proxy) -> None:
    """In a life of a mirror with everything, the tables and columns that the server is asked to read and to write are
    those that `policy` prints."""
    switch.vsctl("--id=@m create mirror name=web -- set bridge br0 mirrors=@m")
    (identifier,) = switch.rows("Mirror")
    for words in (
        ("create", *WEB, "--adopt", identifier),
        ("create", "--name", "web", "--source", "bridge:br1/5", "--target", "vlan:9", "--packet-length", "99"),
        ("create", "--name", "web", "--source", "port:vm3", "--target", VXLAN),
        ("delete", "--name", "web", "--yes"),
        ("create", *WEB),
        ("status", "--name", "web"),
    ):
        assert mirror(*words, db=proxy.db)[0] == 0
    inserted, updated = set(), {}
    for one in proxy.operations():
        columns = {*one.get("row", ()), *(mutation[0] for mutation in one.get("mutations", ()))}
        if one["op"] == "insert":
            inserted.add(one["table"])
        if columns:
            updated.setdefault(one["table"], set()).update(columns)
    read = {
        table: set(asked[0]["columns"])
        for request in proxy.requests
        if request["method"].startswith("monitor") and request["params"][0] == DATABASE
        for table, asked in request["params"][2].items()
    }
    printed = document(Spec(), DATABASE, COLUMNS)

    assert {table: set(columns) for table, columns in printed["reads"].items()} == read
    assert {one["table"]: set(one["update"]) for one in printed["permissions"]} == updated
    assert {one["table"] for one in printed["permissions"] if one["insert_delete"]} == inserted


PORTS = 1000


def test_a_large_switch_is_read_once(server: OvsdbServer, mirror: Run, proxy: Proxy) -> None:
    """A tag that selects 1,000 ports: a connection for the schema, one for the rest, and one monitor."""
    rows: list[Json] = []
    for number in range(PORTS):
        tags = ["map", [["role", "many"]]]
        rows.append(
            {
                "op": "insert",
                "table": "Interface",
                "uuid-name": f"i{number}",
                "row": {"name": f"n{number}", "external_ids": tags},
            }
        )
        rows.append(
            {
                "op": "insert",
                "table": "Port",
                "uuid-name": f"p{number}",
                "row": {"name": f"n{number}", "interfaces": ["named-uuid", f"i{number}"]},
            }
        )
    ports = ["set", [["named-uuid", f"p{number}"] for number in range(PORTS)]]
    where = [["name", "==", "br0"]]
    server.transact(
        *rows, {"op": "mutate", "table": "Bridge", "where": where, "mutations": [["ports", "insert", ports]]}
    )

    code, _, _ = mirror("create", "--name", "web", "--source", "tag:role=many", "--target", VXLAN, db=proxy.db)

    assert code == 0
    assert len(one_mirror(server)["select_src_port"][1]) == PORTS
    methods = [request["method"] for request in proxy.requests]
    assert (proxy.connections, methods.count("transact")) == (2, TRANSACTIONS)
    assert (
        sum(request["method"].startswith("monitor") and request["params"][0] == DATABASE for request in proxy.requests)
        == 1
    )
