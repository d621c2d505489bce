"""Who names no interface gets those that the default route leads through."""

from collections.abc import Sequence

import pytest

from guestagent.capture.interfaces import select
from guestagent.errors import AbsentError
from guestagent.lab.hosts import Host, Lab

FIRST, SECOND = "via 10.9.0.1 dev eth0", "via 10.8.0.1 dev eth1"
SECOND_6 = "via fd00:8::1 dev eth1"


def _chosen() -> list[str] | str:
    try:
        return [link.name for link in select(())]
    except AbsentError as error:
        return str(error)


@pytest.fixture
def vm(lab: Lab) -> Host:
    """With two NICs and no default route yet."""
    vm, peer = lab.host("vm"), lab.host("peer")
    lab.link(vm, peer)
    second = {"a_addresses": ["10.8.0.2/24", "fd00:8::2/64"], "b_addresses": ["10.8.0.1/24", "fd00:8::1/64"]}
    lab.link(vm, peer, "eth1", "eth1", **second)
    return vm


@pytest.mark.parametrize(
    "routes, names",
    [
        ([f"default {FIRST}"], ["eth0"]),
        ([f"default {FIRST} metric 200", f"default {SECOND} metric 100"], ["eth1"]),
        ([f"default nexthop {SECOND} nexthop {FIRST} weight 3"], ["eth1", "eth0"]),
        ([f"default nexthop {FIRST} nexthop via 10.9.0.3 dev eth0"], ["eth0"]),
        ([f"default metric 200 nexthop {FIRST} nexthop {SECOND}", f"default {SECOND} metric 100"], ["eth1"]),
        (["blackhole default metric 1", f"default {SECOND} metric 9"], ["eth1"]),
        (["blackhole default"], []),
        ([f"default {SECOND_6}"], ["eth1"]),
        ([f"default nexthop {SECOND_6} nexthop via fd00:9::1 dev eth0"], ["eth1", "eth0"]),
        ([f"default {FIRST}", f"default {SECOND_6}"], ["eth0"]),
        ([f"default {FIRST} table 7"], []),
        ([], []),
    ],
    ids=lambda value: " + ".join(value) if isinstance(value, list) else None,
)
def test_no_name_means_the_default_routes_interfaces(vm: Host, routes: Sequence[str], names: Sequence[str]) -> None:
    """Of the route with the least metric every way out, each once; without one a sentence that says what to do."""
    for route in routes:
        vm.run(["ip", "-6" if ":" in route else "-4", "route", "add", *route.split()])

    assert vm.call(_chosen) == (
        names or "no default route says which interface to tap: name one with -i (`ip link` lists them)"
    )
