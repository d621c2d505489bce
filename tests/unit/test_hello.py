"""Hellos and INFO: what is encoded is decoded, and any other JSON is refused with the field that is wrong."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from guestagent import identity
from guestagent.capture.block import LAYOUTS
from guestagent.collector.sinks import pcapng
from guestagent.model import MOST_INTERFACES, Interface
from guestagent.tapstream.frames import ProtocolError
from guestagent.tapstream.hello import (
    AgentHello,
    CollectorHello,
    decode_agent_hello,
    decode_collector_hello,
    decode_counts,
    decode_interface,
    encode_agent_hello,
    encode_collector_hello,
    encode_interface,
    is_name,
)
from tests.fakes import RUN_ID, agent_hello, interface

NAMES = st.from_regex(r"[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-]", fullmatch=True)
COUNTS = st.integers(0, 2**63 - 1)
PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z")), max_size=64)
INTERFACES = st.builds(
    Interface,
    id=st.integers(0, 0xFFFF),
    name=PRINTABLE,
    mac=st.sampled_from(["", "02:00:00:00:00:01"]),
    mtu=st.integers(0, 2**32),
    addresses=st.lists(PRINTABLE, max_size=3).map(tuple),
    speed_mbit=st.integers(0, 800_000),
)
AGENT_HELLOS = st.builds(
    AgentHello,
    agent_id=NAMES,
    run_id=st.just(RUN_ID),
    host=NAMES,
    version=PRINTABLE,
    layout=st.sampled_from(LAYOUTS),
    ring_bytes=COUNTS,
    started_ns=COUNTS,
    first_sequence=st.integers(1, 2**63 - 1),
    interfaces=st.lists(INTERFACES, min_size=1, max_size=4).map(tuple),
    cloud=PRINTABLE,
    tags=st.dictionaries(NAMES, PRINTABLE.filter(lambda text: len(text) <= 64), max_size=4),
    copy=st.integers(0, 3),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def over_the_wire(value: Any) -> Any:
    """As the other end sees it."""
    return json.loads(json.dumps(value))


@given(AGENT_HELLOS)
def test_agent_hello_round_trip(hello: AgentHello) -> None:
    """An agent's hello arrives as it was said; one that knows of no copies is of the only one."""
    said = over_the_wire(encode_agent_hello(hello))
    assert hello == decode_agent_hello(said, LAYOUTS)
    del said["copy"]
    assert replace(hello, copy=0) == decode_agent_hello(said, LAYOUTS)


@given(
    st.builds(
        CollectorHello,
        NAMES,
        PRINTABLE,
        st.none() | COUNTS,
        st.dictionaries(st.integers(0, 0xFFFF), COUNTS, max_size=4),
        COUNTS,
    )
)
def test_collector_hello_round_trip(hello: CollectorHello) -> None:
    """A collector's hello arrives as it was said; one that tells of nothing that waits has nothing."""
    said = over_the_wire(encode_collector_hello(hello))
    assert hello == decode_collector_hello(said)
    del said["taken_sequence"]
    assert replace(hello, taken_sequence=0) == decode_collector_hello(said)


@given(INTERFACES)
def test_info_round_trip(facts: Interface) -> None:
    """Facts of an interface arrive as they were said."""
    assert facts == decode_interface(over_the_wire(encode_interface(facts))["interface"])


@given(st.data())
def test_any_json_is_a_hello_or_refused(data: st.DataObject) -> None:
    """A hello of which some fields are any JSON is refused with ProtocolError, or it is a sound hello."""
    value = over_the_wire(encode_agent_hello(agent_hello()))
    for key in data.draw(st.lists(st.sampled_from(sorted(value)), max_size=3)):
        value[key] = data.draw(JSON)
    for key in data.draw(st.lists(st.sampled_from(sorted(asdict(interface()))), max_size=3)):
        if isinstance(value["interfaces"], list) and value["interfaces"] and isinstance(value["interfaces"][0], dict):
            value["interfaces"][0][key] = data.draw(JSON)
    try:
        hello = decode_agent_hello(value, LAYOUTS)
    except ProtocolError:
        return
    assert is_name(hello.agent_id)
    assert is_name(hello.host)
    assert hello.first_sequence >= 1
    for facts in hello.interfaces:
        pcapng.interface(facts, hello.agent_id, hello.host, bytes(16))
    pcapng.section(hello.cloud, hello.version, "Linux")


@given(JSON, st.sampled_from([decode_interface, decode_counts]))
def test_any_json_is_decoded_or_refused(value: Any, decode: Callable[[Any], Any]) -> None:
    """Any JSON where facts or counts are expected is decoded or refused with ProtocolError, nothing else."""
    try:
        decode(value)
    except ProtocolError:
        return
    assert isinstance(value, dict)


@given(
    st.dictionaries(
        st.text(max_size=12) | st.sampled_from(["collector_id", "version", "held_sequence", "taken_sequence"]), JSON
    )
)
def test_any_object_is_an_answer_or_refused(value: dict[str, Any]) -> None:
    """Any JSON object as a collector's hello is decoded or refused with ProtocolError, nothing else."""
    try:
        answer = decode_collector_hello(value)
    except ProtocolError:
        return
    assert is_name(answer.collector_id)


def hello_with(**changes: Any) -> Any:
    """The JSON of a sound hello, apart from the changes."""
    return over_the_wire({**encode_agent_hello(agent_hello()), **changes})


def interface_with(**changes: Any) -> Any:
    """The JSON of a hello whose interface is sound apart from the changes."""
    return hello_with(interfaces=[{**asdict(interface()), **changes}])


HOSTILE_NAMES = [
    "../../etc/passwd",
    "..",
    ".",
    "....",
    "",
    "a/b",
    "a\\b",
    "a b",
    "a\0",
    "a\n",
    "\x1b[2J",
    "x" * 65,
    "ä",
    "\uff0e\uff0e",
    "\ud800",
    "-" * 65,
    None,
    7,
    ["a"],
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
@pytest.mark.parametrize("key", ["agent_id", "host"])
def test_hostile_names_are_refused(key: str, name: Any) -> None:
    """A name that could leave its directory, hide or confuse a terminal is refused, by the key that holds it."""
    with pytest.raises(ProtocolError, match=f"^hello: {key} "):
        decode_agent_hello(hello_with(**{key: name}), LAYOUTS)


@pytest.mark.parametrize("name", ["a", "x" * 64, "i-0123456789abcdef0", "a..b", "_", "-", ".hidden", "A.b_c-9"])
def test_sound_names_pass(name: str) -> None:
    """Instance ids, machine ids and host names pass."""
    assert name == decode_agent_hello(hello_with(agent_id=name), LAYOUTS).agent_id


@pytest.mark.parametrize(
    "value, message",
    [
        ({}, "interfaces must be a list"),
        (hello_with(interfaces=[]), "interfaces must be a list of 1 to 64"),
        (hello_with(interfaces=[asdict(interface())] * (MOST_INTERFACES + 1)), "interfaces must be a list of 1 to 64"),
        (hello_with(interfaces={}), "interfaces must be a list"),
        (hello_with(interfaces=[[]]), "no JSON object"),
        (hello_with(layout="tpacket4"), "record layout 'tpacket4' is not known here"),
        (hello_with(layout="x" * 257), "longer than 256"),
        (hello_with(run_id="0" * 31), "32 hexadecimal digits"),
        (hello_with(run_id="0" * 31 + "\n"), "32 hexadecimal digits"),
        (hello_with(run_id="G" * 32), "32 hexadecimal digits"),
        (hello_with(ring_bytes=-1), "ring_bytes is out of range"),
        (hello_with(ring_bytes=2**63), "ring_bytes is out of range"),
        (hello_with(ring_bytes=True), "ring_bytes is no int"),
        (hello_with(ring_bytes=1.0), "ring_bytes is no int"),
        (hello_with(first_sequence=0), "first_sequence"),
        (hello_with(started_ns=None), "started_ns is missing"),
        (hello_with(version=1), "version is no str"),
        (interface_with(id=65536), "16 bits"),
        (interface_with(id=-1), "id is out of range"),
        (interface_with(mac="02:00:00:00:00:0g"), "mac must be"),
        (interface_with(mac="02:00:00:00:00:01\n"), "mac must be"),
        (interface_with(link_type=113), "link_type must be 1"),
        (interface_with(addresses="x"), "addresses must be a list"),
        (interface_with(addresses=["x"] * 65), "addresses must be a list"),
        (interface_with(addresses=[1]), "addresses must be texts"),
        (interface_with(name="x" * 257), "name is longer than 256"),
        (interface_with(speed_mbit=2**63 - 1), "speed_mbit is out of range"),
    ],
)
def test_bad_hellos_are_refused_by_field(value: dict[str, Any], message: str) -> None:
    """Each wrong field is refused with its name."""
    with pytest.raises(ProtocolError, match=message):
        decode_agent_hello(value, LAYOUTS)


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "a\nb", "\ud800", "\u202egpj.exe"], ids=ascii)
def test_an_interface_name_is_made_printable(name: str) -> None:
    """Linux lets an interface be called nearly anything: controls and lone surrogates are escaped at the door."""
    facts = decode_agent_hello(interface_with(name=name), LAYOUTS).interfaces[0]

    assert facts.name.isprintable()
    assert facts.name.encode() in pcapng.interface(facts, "vm-1", "host-1", bytes(16))


@pytest.mark.parametrize(
    "value", [None, [], "x", {"x": 1}, {"-1": 1}, {"1": -1}, {"1": True}, {"1": 1.5}, {"": 1}, {"123456": 1}, {"²": 1}]
)
def test_bad_counts_are_refused(value: Any) -> None:
    """Counts are whole numbers by interface id, nothing else."""
    with pytest.raises(ProtocolError, match="counts by interface"):
        decode_counts(value)


@given(st.text(max_size=200))
def test_a_safe_name_is_a_name(text: str) -> None:
    """Whatever a cloud or a host calls itself becomes a name that every collector takes, or nothing."""
    name = identity.safe_name(text)

    assert name == "" or is_name(name)
    assert is_name(identity.host_name())


def test_the_first_real_identity_wins(tmp_path: Path) -> None:
    """The cloud's instance id comes before the machine id; placeholders and empty files are passed over."""
    paths = [tmp_path / name for name in ("missing", "placeholder", "empty", "odd", "real", "later")]
    for path, text in zip(paths[1:], ["iid-datasource-none\n", "\n", " ...\n", "i-0abc/def\n", "x"], strict=True):
        path.write_text(text)

    assert "i-0abc-def" == identity.agent_id(tuple(paths))
    assert identity.host_name() == identity.agent_id(tuple(paths[:4]))


@given(st.data())
def test_what_one_worker_takes_the_next_takes_too(data: st.DataObject) -> None:
    """A hello that is handed over is decoded twice: the second time as it was after the first, whatever it held."""
    odd = st.text(st.characters(exclude_categories=("Cs",)), max_size=300) | st.just("\u3000" * 64)
    changes = {"version": data.draw(odd), "cloud": data.draw(odd), "tags": {"a": data.draw(odd)}}
    value = json.loads(json.dumps(encode_agent_hello(agent_hello())))
    try:
        hello = decode_agent_hello({**value, **changes}, LAYOUTS)
    except ProtocolError as refusal:
        event(str(refusal))
        return
    assert hello == decode_agent_hello(json.loads(json.dumps(encode_agent_hello(hello))), LAYOUTS)
