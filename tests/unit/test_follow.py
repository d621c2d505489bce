"""The devices of a host are looked at where one changed."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest

from guestagent.capture.interfaces import Link, describe
from guestagent.follow import Follower
from guestagent.model import MOST_ADDRESSES
from guestagent.tapstream.hello import decode_interface, encode_interface
from tests.fakes import FakeSource
from tests.replicas import desk_of

ETH0 = Link(2, "eth0", 1, "02:00:00:00:00:00", 1500, 0, "", is_up=True)


class Host:
    """Its devices, and whether something changed."""

    def __init__(self) -> None:
        self.devices = {"eth0": ETH0}
        self.has_changed = False
        self.looks = 0
        self.error: OSError | None = None

    def links(self) -> dict[str, Link]:
        """As the kernel tells them."""
        self.looks += 1
        if self.error:
            raise self.error
        return self.devices


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """One with eth0."""
    found = Host()
    monkeypatch.setattr("guestagent.follow.links", found.links)
    monkeypatch.setattr("guestagent.follow.Changes.seen", lambda _changes: found.has_changed)
    return found


@pytest.fixture
def follower(host: Host) -> Iterator[Follower]:
    """Of eth0."""
    source = FakeSource()
    source.index = ETH0.index
    desk = desk_of(source)
    desk.capture.links[0] = ETH0
    with closing(Follower(desk)) as found:
        yield found


def test_a_host_that_does_not_change_is_looked_at_once(host: Host, follower: Follower) -> None:
    """At first, and then again when something changed."""
    for _ in range(3):
        follower.look()
    assert host.looks == 1
    host.has_changed = True
    follower.look()
    assert host.looks == 2


def test_a_look_that_failed_is_still_due(host: Host, follower: Follower) -> None:
    """What changed is not forgotten for want of a descriptor."""
    host.error = OSError(24, "too many open files")
    with pytest.raises(OSError, match="too many"):
        follower.look()
    host.error = None
    follower.look()
    follower.look()
    assert host.looks == 2


def test_a_lost_device_is_looked_for_until_it_is_back(host: Host, follower: Follower) -> None:
    """Binding to its successor may have failed, so the look does not wait for a change."""
    source = follower._tap.sources[0]
    assert isinstance(source, FakeSource)
    host.devices, source.has_device = {}, False
    follower.look()
    assert not follower.is_up["eth0"]
    host.devices = {"eth0": ETH0}
    follower.look()
    follower.look()
    assert host.looks == 2
    assert follower.is_up["eth0"]


def test_a_device_stacked_on_a_lost_one_does_not_take_its_place(host: Host, follower: Follower) -> None:
    """A VLAN or a bridge has the MAC of its NIC, and would be all that is copied from then on; a NIC renamed is one."""
    source = follower._tap.sources[0]
    assert isinstance(source, FakeSource)
    source.has_device = False
    kinds = enumerate(("vlan", "macvlan", "bridge"), 5)
    stacked = [replace(ETH0, name=f"{kind}0", index=index, kind=kind) for index, kind in kinds]
    host.devices = {one.name: one for one in stacked}
    follower.look()
    assert follower.is_up == {"eth0": False}

    host.devices["ens5"] = replace(ETH0, name="ens5", index=9)
    follower.look()
    assert (source.index, source.interface.name) == (9, "ens5")


def test_no_more_addresses_are_told_than_a_collector_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load balancer with hundreds of them is taken, by the hello and by each INFO."""
    many = [SimpleNamespace(family=socket.AF_INET, address=f"10.0.{at // 250}.{at % 250}") for at in range(300)]
    monkeypatch.setattr("psutil.net_if_addrs", lambda: {"eth0": many})
    facts = describe(ETH0, 0)

    assert facts.addresses == tuple(one.address for one in many[:MOST_ADDRESSES])
    assert decode_interface(json.loads(json.dumps(encode_interface(facts)["interface"]))) == facts
