"""Any state of a real ovsdb-server is led to any spec, strangers stay, and a crash is mended by the next run."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from guestagent.errors import ConfigError
from guestagent.mirror.apply import Outcome, apply
from guestagent.mirror.ovs import provider as ovs
from guestagent.mirror.plan import diff, has_changes
from guestagent.mirror.spec import Spec
from tests.mirror.mortal import Crash
from tests.mirror.ovs.words import state
from tests.mirror.ovsdb_server import Json, OvsdbServer

BRIDGES, MACHINES = ("br0", "br1"), ("vm1", "vm2", "vm3", "vm4")


class Mortal(ovs.Ovs):
    """Dies after so many transactions."""

    left = 0

    def _body(self, step: Any) -> Any:
        if self.left == 0:
            raise Crash
        self.left -= 1
        return super()._body(step)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Any of the forms, for ports that may lie on two bridges."""
    bridge = draw(st.sampled_from(BRIDGES))
    words = st.sampled_from([*(f"port:{name}" for name in MACHINES), "tag:role=web", "tag:role=db"])
    whole = st.sampled_from([f"bridge:{bridge}", f"bridge:{bridge}/0", f"bridge:{bridge}/7"])
    sources = draw(st.one_of(st.lists(words, min_size=1, max_size=3), st.lists(whole, min_size=1, max_size=2)))
    tunnels = st.builds(
        "{}://10.0.0.{}?{}".format, st.just("vxlan"), st.integers(8, 9), st.sampled_from(["vni=1", "vni=2"])
    )
    targets = st.one_of(tunnels, st.just("gre://10.0.0.9?key=1"), st.just("vlan:9"), st.just(f"port:col{bridge[-1]}"))
    return Spec(
        name="web",
        source=tuple(sources),
        target=draw(targets),
        direction=draw(st.sampled_from(["both", "ingress", "egress"])),
        packet_length=draw(st.sampled_from([None, 64])),
        vpc=draw(st.sampled_from(["", bridge])),
    )


@st.composite
def states(draw: st.DrawFn) -> list[Json]:
    """Inserts: machines on two bridges; mirrors and tunnels of ours, of another mirror of ours and of strangers."""
    owners = st.sampled_from(["", "web", "web", "db"])
    rows: list[Json] = []
    ports: dict[str, list[str]] = {bridge: [] for bridge in BRIDGES}
    mirrors: dict[str, list[str]] = {bridge: [] for bridge in BRIDGES}

    def add_port(bridge: str, name: str, interface: Json, owner: str = "", more: dict[str, str] | None = None) -> None:
        rows.append(
            {"op": "insert", "table": "Interface", "uuid-name": f"i_{name}", "row": {"name": name, **interface}}
        )
        row = {"name": name, "interfaces": named(f"i_{name}"), "external_ids": marks(owner, more or {})}
        rows.append({"op": "insert", "table": "Port", "uuid-name": f"p_{name}", "row": row})
        ports[bridge].append(f"p_{name}")

    for name in MACHINES:
        role = draw(st.sampled_from(["web", "db"]))
        add_port(draw(st.sampled_from(BRIDGES)), name, {"external_ids": ["map", [["role", role]]]})
    for bridge in BRIDGES:
        add_port(bridge, f"col{bridge[-1]}", {})
    for number in range(draw(st.integers(0, 3))):
        options = {"remote_ip": f"10.0.0.{draw(st.integers(8, 9))}", "key": str(draw(st.integers(1, 3)))}
        add_port(
            draw(st.sampled_from(BRIDGES)),
            f"t{number}",
            {"type": "vxlan", "options": ["map", [*options.items()]]},
            draw(owners),
            {"guestagent-target": draw(st.sampled_from(["", "vxlan://10.0.0.9:4789?vni=1", "nonsense"]))},
        )
    for number in range(draw(st.integers(0, 3))):
        bridge = draw(st.sampled_from(BRIDGES))
        row: Json = {
            "name": draw(st.sampled_from(["web", "span"])),
            "select_all": draw(st.booleans()),
            "select_src_port": ["set", [named(one) for one in draw(st.sets(st.sampled_from(["p_vm1", "p_vm2"])))]],
            "external_ids": marks(
                draw(owners), {"guestagent-spec": draw(st.sampled_from(["", "{}", "[", '{"vni": -1}']))}
            ),
        }
        outputs = [one for bridge_ports in ports.values() for one in bridge_ports if one[2] in "ct"]
        if output := draw(st.sampled_from([None, *outputs])):
            row["output_port"] = named(output)
        if draw(st.booleans()):
            row["output_vlan"] = 3
        rows.append({"op": "insert", "table": "Mirror", "uuid-name": f"m{number}", "row": row})
        mirrors[bridge].append(f"m{number}")
    for bridge in BRIDGES:
        row = {"name": bridge}
        for column, names in (("ports", ports[bridge]), ("mirrors", mirrors[bridge])):
            row[column] = ["set", [named(one) for one in names]]
        rows.append({"op": "insert", "table": "Bridge", "uuid-name": bridge, "row": row})
    bridges = ["set", [named(bridge) for bridge in BRIDGES]]
    rows.append({"op": "update", "table": "Open_vSwitch", "where": [], "row": {"bridges": bridges}})
    return rows


def named(name: str) -> list[str]:
    return ["named-uuid", name]


def marks(owner: str, more: dict[str, str]) -> Any:
    ours = {"guestagent-managed": "true", "guestagent-mirror": owner, **more} if owner else {"guestagent-mirror": "web"}
    return ["map", [*ours.items()]]


def run_once(server: OvsdbServer, spec: Spec, dies_after: int = -1) -> Outcome:
    """As the command does, up to a crash."""
    session = ovs.Session(Spec(db=server.db))
    provider = Mortal(spec, session)
    provider.left = dies_after
    try:
        provider.mirrors()  # of any state there is a health
        survey = provider.survey(spec)
        steps = diff(survey.wanted, survey.found, provider.kinds) if survey.wanted else ()
        return apply(steps, survey.found, provider, lambda done, total, what: None)
    finally:
        session.close()


def words_of(row: Json) -> dict[str, str]:
    return dict(row["external_ids"][1])


def is_web(row: Json) -> bool:
    words = words_of(row)
    return words.get("guestagent-managed") == "true" and words["guestagent-mirror"] == "web"


def strangers(server: OvsdbServer) -> dict[str, Json]:
    """Rows of others, as they are."""
    ports = server.rows("Port")
    rows = {**server.rows("Mirror"), **ports}
    inner = {one[1] for port in ports.values() if is_web(port) for one in many(port["interfaces"])}
    others = {key: row for key, row in rows.items() if not is_web(row)}
    return others | {key: row for key, row in server.rows("Interface").items() if key not in inner}


def references(server: OvsdbServer) -> set[str]:
    return {
        one[1] for row in server.rows("Bridge").values() for column in ("ports", "mirrors") for one in many(row[column])
    }


def many(value: Any) -> list[Any]:
    """A set as JSON has it: one value alone stands for itself."""
    return list(value[1]) if isinstance(value, list) and value[0] == "set" else [value]


@settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(specs(), states(), st.integers(-1, 3))
def test_any_state_is_led_to_the_spec(server: OvsdbServer, spec: Spec, rows: list[Json], dies_after: int) -> None:
    """From any state, also after a crash at any transaction, the next run leads to the spec or refuses; a second plan
    is empty, the mirror is there once with what was asked for, and strangers' rows and places are as they were."""
    server.reset()
    server.transact(*rows)
    before, everything = strangers(server), state(server)
    used_by_others = {one[1] for row in before.values() if "output_port" in row for one in many(row["output_port"])}
    try:
        run_once(server, spec, dies_after)
    except Crash:
        pass
    except ConfigError:
        assert state(server) == everything
        return
    outcome = run_once(server, spec)

    web_tunnels = {key for key, row in server.rows("Port").items() if is_web(row)}
    assert all("outputs to its tunnel" in text or "is kept" in text for _, text in outcome.failed), outcome.failed
    assert not outcome.failed or used_by_others & web_tunnels
    assert strangers(server) == before
    assert before.keys() & references(server) == before.keys() - server.rows("Interface").keys()
    if outcome.failed:
        return
    assert_reached(server, spec)


def assert_reached(server: OvsdbServer, spec: Spec) -> None:
    """An independent reading of the rows."""
    ours = [row for row in server.rows("Mirror").values() if is_web(row)]
    ports = server.rows("Port")
    interfaces = server.rows("Interface")
    by_name = {row["name"]: key for key, row in ports.items()}
    tunnels = [key for key, row in ports.items() if is_web(row)]
    session = ovs.Session(Spec(db=server.db))
    try:
        provider = ovs.Ovs(spec, session)
        survey = provider.survey(spec)
        assert not has_changes(diff(survey.wanted, survey.found, provider.kinds))
        if not survey.wanted:
            return
        (health,) = [one for one in provider.mirrors() if one.name == "web"]
        assert all("no way to" in problem or "copied again" in problem for problem in health.problems), health
    finally:
        session.close()
    (row,) = ours
    chosen = {key for key, port in ports.items() if port["name"] in selected(spec, ports, interfaces)}
    chosen -= {
        one[1] for other in server.rows("Mirror").values() if not is_web(other) for one in many(other["output_port"])
    }
    if spec.vpc:
        (bridge,) = [one for one in server.rows("Bridge").values() if one["name"] == spec.vpc]
        chosen &= {one[1] for one in many(bridge["ports"])}
    assert row["select_all"] == any(word.startswith("bridge:") for word in spec.source)
    for column, direction in (("select_src_port", "egress"), ("select_dst_port", "ingress")):
        wanted = chosen if direction in spec.directions else set()
        assert {one[1] for one in many(row[column])} == wanted
    scheme, _, rest = spec.target.partition(":")
    assert many(row["output_vlan"]) == ([int(rest)] if scheme == "vlan" else [])
    output = [one[1] for one in many(row["output_port"])]
    if scheme in ("vxlan", "gre"):
        assert output == tunnels
        (interface,) = [interfaces[one[1]] for one in many(ports[output[0]]["interfaces"])]
        assert interface["type"] == scheme
        assert dict(interface["options"][1])["key"] == rest[-1]
    else:
        assert not tunnels
        assert output == ([by_name[rest]] if scheme == "port" else [])
    assert many(row["snaplen"]) == ([spec.packet_length] if spec.packet_length else [])


def selected(spec: Spec, ports: dict[str, Json], interfaces: dict[str, Json]) -> set[str]:
    """Names that the words mean, on whatever bridge."""
    found = {word.removeprefix("port:") for word in spec.source if word.startswith("port:")}
    for word in spec.source:
        if word.startswith("tag:"):
            found |= {row["name"] for row in interfaces.values() if words_of(row).get("role") == word[9:]}
    return found


def test_the_property_can_fail(switch: OvsdbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red first: where a length is not written, the reading of the rows says so."""
    spec = Spec(name="web", source=("port:vm1",), target="port:col0", packet_length=64)
    monkeypatch.setitem(ovs.ovs_write._COLUMNS, "packet_length", lambda mirror, value, tables: None)
    run_once(switch, spec)

    with pytest.raises(AssertionError):
        assert_reached(switch, spec)
