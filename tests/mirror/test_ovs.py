"""`guestagent mirror ovs` with ovsdbapp against the real ovsdb-server: converge, adopt, crash and mend."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guestagent.cli import main
from guestagent.mirror.ovs import provider as ovs
from guestagent.mirror.ovs.policy import document
from guestagent.mirror.ovs.session import COLUMNS, DATABASE
from guestagent.mirror.spec import Spec
from tests.mirror.ovsdb_server import Json, OvsdbServer, Proxy, Severed

pytest.importorskip("ovsdbapp")

Run = Callable[..., tuple[int, Any, str]]
VXLAN = "vxlan://10.0.0.9?vni=7"
WEB = ("--name", "web", "--source", "port:vm1", "--target", VXLAN)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OvsdbServer]:
    """One for all tests of this file, emptied for each."""
    one = OvsdbServer(tmp_path_factory.mktemp("ovsdb"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ovs, "LOOK_SECONDS", 0.0)  # there is no switch that would tell anything
        yield one
    one.stop()


@pytest.fixture
def switch(server: OvsdbServer) -> OvsdbServer:
    """Two bridges: vm1, vm2 and col0 on br0, vm3 and col1 on br1; vm1 and vm3 bear role=web."""
    server.reset()
    server.vsctl(
        "add-br br0 -- add-br br1 -- add-port br0 vm1 -- add-port br0 vm2 -- add-port br0 col0 -- add-port br1 vm3 -- "
        "add-port br1 col1 -- set interface vm1 external_ids:role=web external_ids:vm-id=w1 -- "
        "set interface vm3 external_ids:role=web"
    )
    return server


@pytest.fixture
def proxy(switch: OvsdbServer, tmp_path: Path) -> Iterator[Proxy]:
    """Between the command and the server."""
    one = Proxy(tmp_path, switch)
    yield one
    one.stop()


@pytest.fixture
def mirror(switch: OvsdbServer, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `guestagent mirror ovs ... --json`: exit code, document, errors."""

    def run(action: str, *words: str, db: str = switch.db) -> tuple[int, Any, str]:
        code = main(["mirror", "ovs", action, "--db", db, "--json", *words])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


def state(server: OvsdbServer) -> list[dict[str, Json]]:
    """All that a mirror may touch, but for the count of changes."""
    return [server.rows(table) for table in ("Bridge", "Port", "Interface", "Mirror")]


def one_mirror(server: OvsdbServer) -> Json:
    ((_, row),) = server.rows("Mirror").items()
    return row


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


def killed(proxy: Proxy, transaction: int, answered: bool, words: tuple[str, ...]) -> None:
    """Run the command as a user does, and SIGKILL it at this transaction, before the server has it or after."""
    process: list[subprocess.Popen[bytes]] = []
    left = [transaction]

    def strike(request: Json) -> None:
        left[0] -= request["method"] == "transact"
        if left[0] == 0:
            os.kill(process[0].pid, signal.SIGKILL)
            process[0].wait()
            raise Severed

    if answered:
        proxy.after = strike
    else:
        proxy.before = strike
    command = [sys.executable, "-m", "guestagent", "mirror", "ovs", *words, "--db", proxy.db]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        process.append(child)
    assert child.returncode == -signal.SIGKILL
    proxy.before = proxy.after = lambda request: None


TRANSACTIONS = 2
"""Of a create with a tunnel: the tunnel with a mirror that selects nothing, and what it selects."""


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("transaction", range(1, TRANSACTIONS + 1))
def test_a_crash_at_a_transaction_is_repaired(
    switch: OvsdbServer, mirror: Run, proxy: Proxy, transaction: int, answered: bool
) -> None:
    """SIGKILL before or after the server did it: a tunnel is never without its mirror, the next run goes on, nothing is
    there twice; the same for delete."""
    before = state(switch)
    killed(proxy, transaction, answered, ("create", *WEB))
    assert len(switch.rows("Mirror")) == switch.vsctl("list-ports br0").count("ga-web")
    assert mirror("create", *WEB)[0] == 0
    assert mirror("status", "--name", "web")[0] == 0
    assert len(switch.rows("Mirror")) == 1

    killed(proxy, 1, answered, ("delete", "--name", "web", "--yes"))
    assert mirror("delete", "--name", "web", "--yes")[0] == 0
    assert state(switch) == before


def test_two_at_once_make_one(
    switch: OvsdbServer, mirror: Run, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the look and the transaction somebody else makes the same mirror: the second finds it, and makes none."""
    ran = []

    def overtake(request: Json) -> None:
        if request["method"] == "transact" and not ran:
            ran.append(
                subprocess.run(
                    [sys.executable, "-m", "guestagent", "mirror", "ovs", "create", *WEB, "--db", switch.db], check=True
                )
            )

    proxy.before = overtake
    assert mirror("create", *WEB, db=proxy.db)[0] == 0

    assert ran
    assert len(switch.rows("Mirror")) == 1
    assert "ga-web-2" not in switch.vsctl("show")


@pytest.mark.parametrize(
    "words",
    [("delete", "--name", "web", "--yes"), ("create", *WEB, "--packet-length", "64")],
    ids=["delete", "update"],
)
def test_what_is_ours_no_more_is_left_alone(
    switch: OvsdbServer, mirror: Run, proxy: Proxy, words: tuple[str, ...]
) -> None:
    """Between the look and the transaction somebody takes our mark off: refused, and nothing else changes."""
    mirror("create", *WEB)
    after: list[Any] = []

    def take(request: Json) -> None:
        if request["method"] == "transact" and not after:
            switch.vsctl("clear mirror web external_ids")
            after.append(state(switch))

    proxy.before = take
    code, _, said = mirror(*words, db=proxy.db)

    assert (code, "took our mark off" in said) == (1, True)
    assert [state(switch)] == after


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
