"""Pair dedupe: whom a lease may name, and what a LEASE may hold."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.collector.leases import FRESH_SECONDS, Leases, Member
from guestagent.model import Interface
from guestagent.tapstream.frames import ProtocolError
from guestagent.tapstream.hello import AgentHello
from guestagent.tapstream.lease import MOST_PEERS, Lease, decode_lease, encode_lease, leasable

WHOLE = {"reduced": False, "probe": False, "filter": "", "keep": 1.0, "seed": 1, "slice": "full"}


def member(*addresses: str, domain: str = "vpc", at: float = 0.0, reports: int = 2, **limits: Any) -> Member:
    """An agent that reported so often, last at this time."""
    interface = Interface(0, "eth0", "02:00:00:00:00:01", 1500, addresses=addresses)
    one = Member(AgentHello("a", "00" * 16, "h", "1", "virtio", 1 << 20, 1, 1, (interface,), dedupe=domain))
    for _ in range(reports):
        one.reported({"limits": {**WHOLE, **limits}, "interfaces": {"0": {"dropped_by_ring": 0}}}, at)
    return one


MEMBERS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([f"10.0.0.{at}" for at in range(1, 6)]), max_size=2, unique=True),
        st.sampled_from(["", "vpc", "other"]),
        st.sampled_from([-FRESH_SECONDS - 1, 0.0]),
        st.integers(0, 3),
        st.booleans(),
        st.sampled_from(["", "tcp"]),
    ),
    max_size=6,
)


@given(MEMBERS)
def test_a_lease_names_those_alone_that_can_be_relied_on(drawn: list[tuple[Any, ...]]) -> None:
    """Each address leased has one holder: another member of the domain, whole, fresh, with the same selection."""
    members = {
        str(at): member(*addresses, domain=domain, at=when, reports=reports, reduced=reduced, filter=chosen)
        for at, (addresses, domain, when, reports, reduced, chosen) in enumerate(drawn)
    }
    for key, lease in Leases().due(members, 0.0).items():
        taker = drawn[int(key)]
        for peer in lease.peers:
            holders = [at for at, one in enumerate(drawn) if peer in one[0] and one[1] == taker[1]]
            assert len(holders) == 1
            assert holders != [int(key)]
            (_, domain, when, reports, reduced, chosen) = drawn[holders[0]]
            assert domain
            assert (when, reduced, chosen) == (0.0, False, taker[5])
            assert reports >= 2


def test_two_whole_members_get_each_others_addresses() -> None:
    """The property above is not true of an empty answer alone."""
    told = Leases().due({"a": member("10.0.0.1"), "b": member("10.0.0.2")}, 0.0)
    assert told["a"].peers == ("10.0.0.2",)
    assert told["b"].peers == ("10.0.0.1",)


@pytest.mark.parametrize("keep, seeds, is_same", [(1.0, (1, 2), True), (0.5, (1, 2), False), (0.5, (7, 7), True)])
def test_sampled_ends_agree_by_their_seed(keep: float, seeds: tuple[int, int], is_same: bool) -> None:
    """Two samples of one fraction are the same only by one seed; without sampling there is none."""
    one, other = (member(f"10.0.0.{seed}{at}", keep=keep, seed=seed) for at, seed in enumerate(seeds))
    told = Leases().due({"a": one, "b": other}, 0.0)
    assert is_same is bool(told.get("a", Lease((), 0.0)).peers)


@pytest.mark.parametrize(
    "chosen",
    [
        *("inbound", "tcp and ether src 02:00:00:00:00:01", "greater 1000", "vlan 7", "ip[2:2] > 576", "len > 99"),
        *("not ifindex 3", "fddi src 02:00:00:00:00:01", "tr src 02:00:00:00:00:01", "ppp dst 02:00:00:00:00:01"),
        "slip host 02:00:00:00:00:01",
    ],
)
def test_a_filter_that_two_ends_answer_differently_lends_nothing(chosen: str) -> None:
    """What is not told by the packet alone may be copied at neither end."""
    assert not member("10.0.0.1", filter=chosen).is_whole(0.0)
    assert member("10.0.0.1", filter="src host 10.0.0.1 and tcp dst port 443").is_whole(0.0)


@pytest.mark.parametrize("change", [{"reduced": True}, {"probe": True}])
def test_who_sheds_is_revoked_at_the_next_look(change: dict[str, Any]) -> None:
    """A lease that names a member that is whole no more is replaced without waiting for its renewal."""
    leases, one, other = Leases(), member("10.0.0.1"), member("10.0.0.2")
    assert leases.due({"a": one, "b": other}, 0.0)["a"].peers
    other.reported({"limits": {**WHOLE, **change}, "interfaces": {}}, 0.1)
    assert leases.due({"a": one, "b": other}, 0.2)["a"].peers == ()


def test_a_loss_in_the_ring_ends_reliance() -> None:
    """A member whose ring dropped between two reports is not whole."""
    one = member("10.0.0.1")
    one.reported({"limits": WHOLE, "interfaces": {"0": {"dropped_by_ring": 1}}}, 0.5)
    assert not one.is_whole(0.5)


@given(st.lists(st.ip_addresses().map(str).filter(lambda one: leasable(one) == one), max_size=MOST_PEERS))
def test_a_lease_survives_the_wire(peers: list[str]) -> None:
    """What is encoded is decoded."""
    lease = Lease(tuple(peers), 5.0)
    assert decode_lease(encode_lease(lease)) == lease


ODD = st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.lists(st.text() | st.integers())


@given(st.dictionaries(st.sampled_from(["peers", "seconds", "x"]), ODD))
def test_an_odd_lease_is_refused_in_one_way(value: dict[str, Any]) -> None:
    """Any JSON object is a sound lease or a ProtocolError."""
    try:
        lease = decode_lease(value)
    except ProtocolError:
        return
    assert 0 <= lease.seconds <= 10
    assert all(leasable(peer) == peer for peer in lease.peers)
