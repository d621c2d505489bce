"""Which addresses are private, so that copies may cross in clear text."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.endpoint import Endpoint
from guestagent.trust import is_exposed, is_private


@given(st.ip_addresses())
def test_no_global_address_is_private(address: object) -> None:
    """What the IANA registries call global, by Python's second opinion, is never private."""
    one = ip_address(str(address))
    assert not (is_private(str(one)) and one.is_global)


@pytest.mark.parametrize("text", ["10.1.2.3", "172.31.0.1", "192.168.0.1", "100.64.0.1", "127.0.0.1", "169.254.1.1"])
def test_private_addresses(text: str) -> None:
    """RFC 1918, RFC 6598, loopback and link-local, also as an IPv4 peer of a dual-stack socket."""
    assert is_private(text)
    assert is_private(f"::ffff:{text}")
    assert not any(map(is_private, ("172.32.0.1", "100.128.0.1", "192.0.2.1", "2001:db8::1", "name", "")))
    assert all(map(is_private, ("fd00::1", "::1", "fe80::1%eth0")))


def test_a_listener_on_all_addresses_is_as_public_as_the_machine() -> None:
    """0.0.0.0 counts the machine's IPv4 addresses, no host and :: all of them."""
    machine = ["10.0.0.1", "2001:db8::1%eth0", "fe80::1%eth0"]
    assert not is_exposed(Endpoint("tcp", "0.0.0.0", 1), machine)
    assert is_exposed(Endpoint("tcp", "", 1), machine)
    assert is_exposed(Endpoint("tcp", "::", 1), machine)
    assert not is_exposed(Endpoint("tls", "", 1), machine)
    assert is_exposed(Endpoint("tcp", "0.0.0.0", 1), ["203.0.113.5"])
    assert not is_exposed(Endpoint("tcp", "::ffff:10.0.0.1", 1))
