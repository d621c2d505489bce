"""What `mirror ovs` decides from what it read: targets, sources, sentences and health, without a server."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestagent.errors import ConfigError
from guestagent.mirror.ovs.health import healths
from guestagent.mirror.ovs.inventory import Inventory, Mirror, Port, markers
from guestagent.mirror.ovs.model import stored, survey, unstored
from guestagent.mirror.ovs.target import interface_of, is_same_tunnel, parse_target
from guestagent.mirror.providers import check
from guestagent.mirror.spec import Spec

VM1 = Port("p1", "vm1", "br0", tags={"role": "web", "iface-id": "x1"})
VM2 = Port("p2", "vm2", "br0", tags={"role": "web"})
VM3 = Port("p3", "vm3", "br1", tags={"role": "web"})
COL = Port("p4", "col", "br0")
OTHER = Port("p5", "vx", "br1", "vxlan", {"remote_ip": "10.0.0.9", "key": "7"})
PORTS = {port.name: port for port in (VM1, VM2, VM3, COL, OTHER)}
SWITCH = Inventory({"br0": "netdev", "br1": ""}, PORTS, (), frozenset({"vxlan", "gre", "geneve", "system"}))
WEB = Spec(name="web", source=("port:vm1",), target="port:col")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"source": ("port:vm9",)}, "source: vm9: there is no such port here"),
        ({"source": ("port:vm1", "port:vm3")}, "the sources are on br0, br1, and a mirror is of one bridge"),
        ({"source": ("tag:role=mail",)}, "together select no port"),
        ({"source": ("bridge:br9",)}, "there is no bridge br9 here: there are br0, br1"),
        ({"source": ("bridge:br0", "port:vm1")}, "a whole bridge stands alone"),
        ({"source": ("bridge:br0",), "direction": "egress"}, "direction: a whole bridge is mirrored once"),
        ({"source": ("bridge:br0/4096",)}, "from 0 (untagged) to 4095"),
        ({"vpc": "br9"}, "vpc: there is no bridge br9"),
        ({"target": "port:vm9"}, "target: port:vm9: there is no such port here"),
        ({"target": "port:vm3"}, "it is on br1, and a mirror outputs to a port of its bridge, br0"),
        ({"target": "vlan:0"}, "a VLAN is from 1 to 4095"),
        ({"target": "vlan:9", "vni": 7}, "only tunnels have one"),
        ({"target": "gre://10.0.0.9?key=7", "vni": 7}, "has its own key: leave one of them out"),
        ({"target": "gre://10.0.0.9"}, "names no key"),
        ({"target": "gre://sensor?key=7"}, "a switch asks no resolver"),
        ({"target": "gre://10.0.0.9?key=7&check=80"}, "a switch checks no port"),
        (
            {"target": "erspan://10.0.0.9?session=7"},
            "this switch has no erspan tunnels: it has geneve, gre, vxlan",
        ),
        ({"target": "vxlan://10.0.0.9?vni=7"}, "vx on br1 is such a tunnel already"),
        ({"packet_length": 13}, "a switch keeps 14 bytes at least"),
    ],
)
def test_what_cannot_be_is_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    """Each is refused before the server is asked for anything."""
    spec = replace(WEB, **changes)
    check("ovs", spec)
    with pytest.raises(ConfigError) as error:
        survey(spec, SWITCH)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": ("vm1",)},
        {"source": ("self",)},
        {"source": ("port:a/b",)},
        {"source": ("bridge:br0/x",)},
        {"target": "col"},
        {"target": "tcp://10.0.0.9"},
        {"filter": ("tcp",)},
        {"dns": True},
        {"region": "eu"},
        {"packet_length": 65_536},
    ],
)
def test_words_of_others_are_refused(changes: dict[str, Any]) -> None:
    """What only another provider knows never reaches the model."""
    with pytest.raises(ConfigError):
        check("ovs", replace(WEB, **changes))


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_a_cloud_has_no_database(provider: str) -> None:
    """The keys of a server mean nothing to a provider whose address is known."""
    with pytest.raises(ConfigError, match="db: it means nothing"):
        check(provider, Spec(db="unix:/x"))


@pytest.mark.parametrize(
    "target, bytes_more",
    [
        ("vxlan://10.0.0.8?vni=1", 50),
        ("geneve://10.0.0.8?vni=1", 50),
        ("gre://10.0.0.8?key=1", 42),
        ("vxlan://[fd00::8]?vni=1", 70),
    ],
)
def test_the_overhead_of_a_tunnel_is_said(target: str, bytes_more: int) -> None:
    """IP, UDP or GRE, the tunnel's header and the inner Ethernet header, by the RFCs; a packet length ends the need."""
    said = survey(replace(WEB, target=target), SWITCH).warnings
    assert any(f"MTU + {bytes_more} bytes" in text for text in said)
    assert not any("MTU" in text for text in survey(replace(WEB, target=target, packet_length=128), SWITCH).warnings)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({}, "col takes copies alone from now on"),
        ({"target": "vlan:9"}, "must flood it"),
        ({"target": "vxlan://192.0.2.1?vni=1"}, "is not a private address"),
        ({"target": "vxlan://10.0.0.8?vni=1", "source": ("bridge:br0",)}, "if the tunnel's own packets cross br0"),
        ({"source": ("port:vx",), "target": "vlan:9"}, "a source is a tunnel"),
    ],
)
def test_what_the_operator_should_know_is_said(changes: dict[str, Any], sentence: str) -> None:
    """Notes of a plan that can be done."""
    assert any(sentence in text for text in survey(replace(WEB, **changes), SWITCH).warnings)


def test_an_output_is_no_source() -> None:
    """A port that a mirror outputs to, or that is the target, is left out of a tag's machines, with the reason."""
    span = Mirror("m1", "span", "br0", output_port="vm2")
    tagged = replace(COL, tags={"role": "web"})
    inventory = replace(SWITCH, mirrors=(span,), ports={**PORTS, "col": tagged})

    found = survey(replace(WEB, source=("tag:role=web",), vpc="br0"), inventory)

    assert {one.machine: one.way for one in found.choices} == {"vm1": "native", "vm2": "agent", "col": "agent"}
    assert found.wanted[0].properties["egress"] == ("vm1",)


@pytest.mark.parametrize(
    "target",
    ["port:col", "vlan:9", "gre://10.0.0.9?key=7", "erspan://[fd00::9]?session=7", "geneve://10.0.0.9:99?vni=1"],
)
def test_a_target_is_read_as_it_is_written(target: str) -> None:
    """The text that a mirror bears leads to the same target, and to the same tunnel."""
    read = parse_target(Spec(target=target))
    assert parse_target(Spec(target=str(read))) == read


@pytest.mark.parametrize(
    "options, is_same",
    [
        ({"remote_ip": "10.0.0.9", "key": "7"}, True),
        ({"remote_ip": "10.0.0.9", "in_key": "7", "out_key": "7", "dst_port": "4789"}, True),
        ({"remote_ip": "10.0.0.9", "key": "8"}, False),
        ({"remote_ip": "10.0.0.8", "key": "7"}, False),
        ({"remote_ip": "10.0.0.9", "key": "7", "dst_port": "4790"}, False),
        ({"remote_ip": "10.0.0.9", "key": "7", "local_ip": "10.0.0.1"}, False),
    ],
)
def test_equal_tunnels_are_known(options: dict[str, str], is_same: bool) -> None:
    """By what the switch tells incoming packets of one from the other by; defaults are as good as written."""
    ours = parse_target(Spec(target="vxlan://10.0.0.9?vni=7")).tunnel
    assert ours
    assert is_same_tunnel(interface_of(ours), ("vxlan", options)) == is_same
    assert not is_same_tunnel(interface_of(ours), ("geneve", options))


words = st.text("abc019-", min_size=1, max_size=8)
sources = st.one_of(words.map("port:{}".format), st.builds("tag:{}={}".format, words, words))


@given(
    st.builds(
        Spec,
        name=st.just("web"),
        source=st.lists(sources, min_size=1, max_size=3).map(tuple),
        target=st.sampled_from(["", "vlan:9", "gre://10.0.0.9?key=7"]),
        direction=st.sampled_from(["both", "ingress"]),
        vni=st.none() | st.integers(1, 99),
        packet_length=st.none() | st.integers(14, 65_535),
        vpc=st.just("") | words,
        tag=st.lists(st.tuples(words, words), max_size=2).map(tuple),
    )
)
def test_a_mirror_bears_its_spec(spec: Spec) -> None:
    """Whatever the spec, what is written into external_ids gives it back."""
    assert unstored("web", stored(spec)) == spec


@given(st.text(max_size=20))
@example('{"name": "x", "tls.ca": "y"}')
@example('{"target": "vlan:x"}')
@example('{"source": 7}')
@example("[]")
def test_a_spec_that_somebody_changed_is_a_sentence(text: str) -> None:
    """Anybody may write external_ids: what is not ours is refused, and never a crash."""
    try:
        unstored("web", text)
    except ConfigError:
        pass


def health(mirror: Mirror, **ports: Port) -> tuple[str, ...]:
    """Problems of the only mirror."""
    (found,) = healths(replace(SWITCH, mirrors=(mirror,), ports={**PORTS, **ports}))
    return found.problems


def test_each_trouble_of_an_output_is_told() -> None:
    """A port that is down; a tunnel that the switch refuses, that has no way, or whose way is mirrored."""
    spec = replace(WEB, target="gre://10.0.0.9?key=7")
    words = {**markers("web"), "guestagent-spec": stored(spec)}
    tunnel = Port(
        *("p9", "ga-web", "br0", "gre", {"remote_ip": "10.0.0.9", "key": "7"}),
        {**markers("web"), "guestagent-target": "gre://10.0.0.9?key=7"},
        link="up",
        egress="eth9",
    )
    mirror = Mirror("m1", "web", "br0", False, ("vm1",), ("vm1",), (), "ga-web", external_ids=words)
    assert health(mirror, **{"ga-web": tunnel}) == ()
    emptied = replace(mirror, external_ids={**markers("web"), "guestagent-spec": '{"source": ["port:vm1"]}'})
    assert "none of its sources can be mirrored any more" in health(emptied, **{"ga-web": tunnel})
    for changed, sentence in (
        (replace(tunnel, error="File exists"), "the switch refuses ga-web: File exists"),
        (replace(tunnel, egress=""), "knows no way to 10.0.0.9"),
        (replace(tunnel, egress="vm1"), "leaves through vm1, which is mirrored"),
        (replace(tunnel, bridge="br1"), "is gone or changed"),
    ):
        assert any(sentence in text for text in health(mirror, **{"ga-web": changed})), changed
