"""Which way a flow goes: both directions the same, evenly spread, and rendezvous moves no flow without need."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.encap.flow import SOURCE_PORTS, flow_hash, name_hash, pick, source_port
from tests import frames
from tests.frames import FLOWS, HEADERS_CASES, ethernet, icmp, ipv4, ipv6, tcp, udp

BACK4 = {"source": frames.PEER4, "destination": frames.HERE4}
BACK6 = {"source": frames.PEER6, "destination": frames.HERE6}
TAGS = ((), (frames.C_TAG,), (frames.S_TAG, frames.C_TAG))


def reply(transport: bytes) -> bytes:
    """The header with its ports changed over."""
    return transport[2:4] + transport[:2] + transport[4:]


CONVERSATIONS = {
    "TCP": (
        ethernet(frames.IPV4, ipv4(frames.TCP, tcp())),
        ethernet(frames.IPV4, ipv4(frames.TCP, reply(tcp()), **BACK4)),
        ethernet(frames.IPV4, ipv4(frames.TCP, tcp(options=frames.OPTIONS40), options=frames.OPTIONS8)),
        ethernet(frames.IPV4, ipv4(frames.TCP, reply(tcp()), fragment=0x4000, **BACK4)),
        ethernet(frames.IPV4, ipv4(frames.ICMP, icmp(3, ipv4(frames.TCP, tcp())), source="10.0.0.77")),
    ),
    "UDP": (
        ethernet(frames.IPV4, ipv4(frames.UDP, udp())),
        ethernet(frames.IPV4, ipv4(frames.UDP, reply(udp()), **BACK4)),
    ),
    "TCP over IPv6": (
        ethernet(frames.IPV6, ipv6(frames.TCP, tcp())),
        ethernet(frames.IPV6, ipv6(frames.TCP, reply(tcp()), **BACK6)),
        ethernet(frames.IPV6, frames.chained([frames.HOP, frames.DESTINATION], frames.TCP, tcp())),
        ethernet(frames.IPV6, ipv6(frames.ICMPV6, icmp(2, ipv6(frames.TCP, tcp())), source="fd00::77")),
    ),
    "fragments of UDP": (
        ethernet(frames.IPV4, ipv4(frames.UDP, udp(), fragment=0x2000)),
        ethernet(frames.IPV4, ipv4(frames.UDP, b"\xaa" * 40, fragment=0x2000 | 100)),
        ethernet(frames.IPV4, ipv4(frames.UDP, b"\xbb" * 40, fragment=200, **BACK4)),
    ),
    "fragments over IPv6": (
        ethernet(frames.IPV6, ipv6(frames.FRAGMENT, frames.extension(frames.FRAGMENT, frames.UDP, fragment=1) + udp())),
        ethernet(
            frames.IPV6,
            ipv6(frames.FRAGMENT, frames.extension(frames.FRAGMENT, frames.UDP, fragment=800) + bytes(40), **BACK6),
        ),
    ),
    "echo": (
        ethernet(frames.IPV4, ipv4(frames.ICMP, icmp(8))),
        ethernet(frames.IPV4, ipv4(frames.ICMP, icmp(0), **BACK4)),
    ),
    "GRE": (
        ethernet(frames.IPV4, ipv4(frames.GRE, frames.PAYLOAD)),
        ethernet(frames.IPV4, ipv4(frames.GRE, b"\1" * 60, **BACK4)),
    ),
    "not IP": (
        bytes.fromhex("020000000001 020000000002 88b5") + bytes(46),
        bytes.fromhex("020000000002 020000000001 88b5") + b"\xff" * 46,
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_has_one_hash(name: str) -> None:
    """Both directions, options, tags, fragments and ICMP errors of a conversation go one way."""
    tagged = [ethernet_tagged(frame, tags) for frame in CONVERSATIONS[name] for tags in TAGS]

    assert 1 == len({flow_hash(frame) for frame in tagged})
    assert {flow_hash(frame) for frame in tagged} == {flow_hash(memoryview(frame)) for frame in tagged}


def ethernet_tagged(frame: bytes, tags: tuple[int, ...]) -> bytes:
    """The frame with tags in it."""
    return frame[:12] + b"".join(tag.to_bytes(2, "big") + b"\0\7" for tag in tags) + frame[12:]


def test_conversations_have_hashes_of_their_own() -> None:
    """No two rows of the table meet."""
    assert len(CONVERSATIONS) == len({flow_hash(rows[0]) for rows in CONVERSATIONS.values()})


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_the_flows_of_the_capture_filter_are_flows_here(flow: frames.Flow) -> None:
    """Frames that the kernel's sampling keeps or leaves together take one way."""
    assert 1 == len({flow_hash(frame) for frame in flow.frames})


@pytest.mark.parametrize("case", HEADERS_CASES, ids=lambda case: case.name)
def test_headers_are_enough(case: frames.Case) -> None:
    """A frame that is sliced to its headers goes where the whole one goes."""
    if "no such bytes" not in case.name:
        assert flow_hash(case.frame) == flow_hash(case.frame[: case.kept])


addresses = st.integers(0, 0xFFFFFFFF).map(lambda number: ".".join(map(str, number.to_bytes(4, "big"))))
ports = st.integers(0, 0xFFFF)


@given(one=addresses, other=addresses, first=ports, second=ports, is_tcp=st.booleans())
def test_any_flow_is_symmetric(one: str, other: str, first: int, second: int, is_tcp: bool) -> None:
    """Ends changed over give one hash, also where addresses or ports are equal."""
    make, protocol = (tcp, frames.TCP) if is_tcp else (udp, frames.UDP)
    there = ipv4(protocol, make(source=first, destination=second), source=one, destination=other)
    back = ipv4(protocol, make(source=second, destination=first), source=other, destination=one)

    value = flow_hash(ethernet(frames.IPV4, there))
    assert value == flow_hash(ethernet(frames.IPV4, back)) == flow_hash(ethernet(frames.IPV4, back, (frames.C_TAG,)))
    assert 0 <= value < 1 << 32
    assert 0 <= source_port(value) < SOURCE_PORTS


@given(frame=st.binary(max_size=120))
def test_every_frame_has_a_hash(frame: bytes) -> None:
    """Random and short ones too; what the cache remembers is what is computed."""
    assert flow_hash(frame) == flow_hash(memoryview(frame)) == flow_hash(bytearray(frame))


EVERYWHERE = "0e14e05a 60799ec8 f8cf1d5a dc2a3b95 766d264f 714839c7 60a529d9 4eb78ea8"
COLLECTORS = tuple(f"tcp://10.0.0.{number}:4795" for number in range(1, 5))


def test_the_hash_is_the_same_everywhere() -> None:
    """Taps on two machines, of two versions, must choose alike: these values never change."""
    told = [flow_hash(rows[0]) for rows in CONVERSATIONS.values()]

    assert EVERYWHERE == " ".join(f"{value:08x}" for value in told)
    assert "tcp://10.0.0.3:4795" == pick(name_hash("i-0123456789"), COLLECTORS)


@pytest.mark.parametrize("name", ["ports in a row", "addresses in a row"])
def test_flows_spread_evenly(name: str) -> None:
    """Neighbouring ports or addresses, as a load test makes them, use all 64 source ports about equally."""
    flows = [
        ethernet(frames.IPV4, ipv4(frames.TCP, tcp(source=20_000 + number)))
        if name == "ports in a row"
        else ethernet(frames.IPV4, ipv4(frames.TCP, tcp(), source=f"10.{number >> 8 & 255}.{number & 255}.1"))
        for number in range(6400)
    ]
    counts = Counter(source_port(flow_hash(frame)) for frame in flows)

    assert SOURCE_PORTS == len(counts)
    assert 60 < min(counts.values()) <= max(counts.values()) < 150


values = st.integers(0, 0xFFFFFFFF)
names = st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=8, unique=True).map(tuple)


@given(value=values, destinations=names, data=st.data())
def test_losing_a_destination_moves_its_flows_alone(
    value: int, destinations: tuple[str, ...], data: st.DataObject
) -> None:
    """A flow that was not sent to the lost one stays; when it is back, all is as before, in whatever order."""
    lost = data.draw(st.sampled_from(destinations))
    chosen = pick(value, destinations)
    rest = tuple(one for one in destinations if one != lost)

    assert chosen in destinations
    assert chosen == pick(value, destinations[::-1])
    if chosen != lost:
        assert chosen == pick(value, rest)
    else:
        assert pick(value, rest) in rest


@pytest.mark.parametrize("count", [2, 3, 5])
def test_destinations_get_equal_shares(count: int) -> None:
    """Of flows and of agents, within a tenth; and the flows of a lost one are shared by all others."""
    destinations = COLLECTORS[:count] if count < 5 else (*COLLECTORS, "vxlan://sensor")
    flows = [flow_hash(ethernet(frames.IPV4, ipv4(frames.TCP, tcp(source=number)))) for number in range(9000)]
    agents = [name_hash(f"i-{number:08x}") for number in range(9000)]
    for hashes in (flows, agents):
        shares = Counter(pick(value, destinations) for value in hashes)
        assert set(destinations) == set(shares)
        assert max(shares.values()) < 1.1 * 9000 / count
        orphans = Counter(
            pick(value, destinations[1:]) for value in hashes if pick(value, destinations) == COLLECTORS[0]
        )
        assert set(destinations[1:]) == set(orphans)


def test_the_source_port_does_not_follow_the_destination() -> None:
    """Each destination is reached through all the source ports, or its sensor could not spread its own work."""
    seen = {destination: set() for destination in COLLECTORS[:3]}
    for number in range(6000):
        value = flow_hash(ethernet(frames.IPV4, ipv4(frames.TCP, tcp(source=number))))
        seen[pick(value, COLLECTORS[:3])].add(source_port(value))

    assert {SOURCE_PORTS} == {len(ports_used) for ports_used in seen.values()}
