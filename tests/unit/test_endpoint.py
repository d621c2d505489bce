"""URLs of `--to` and `--listen`: what they mean, and one sentence for what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.config import (
    Endpoint,
)
from guestagent.endpoint import parse_endpoint
from guestagent.errors import ConfigError

ENDPOINTS = [
    ("tcp://collector", Endpoint("tcp", "collector", 4795)),
    ("tcp://collector:1", Endpoint("tcp", "collector", 1)),
    ("tcp://192.0.2.1:65535", Endpoint("tcp", "192.0.2.1", 65535)),
    ("tcp://[fd00::1]", Endpoint("tcp", "fd00::1", 4795)),
    ("tcp://[fd00::1]:99/", Endpoint("tcp", "fd00::1", 99)),
    ("tcp://[fe80::1%eth0]:99", Endpoint("tcp", "fe80::1%eth0", 99)),
    ("tcp://h:", Endpoint("tcp", "h", 4795)),
    ("vxlan://h?vni=16777215", Endpoint("vxlan", "h", 4789, key=16777215)),
    ("vxlan://[2001:db8::1]:8472?vni=0", Endpoint("vxlan", "2001:db8::1", 8472, key=0)),
    ("geneve://192.0.2.1?vni=9&check=443", Endpoint("geneve", "192.0.2.1", 6081, key=9, check=443)),
    ("gre://h?key=4294967295", Endpoint("gre", "h", 0, key=4294967295)),
    ("erspan://[fd00::1]?session=1023", Endpoint("erspan", "fd00::1", 0, key=1023)),
    ("dir:captures", Endpoint("dir", path="captures")),
    ("dir:/var/lib/a b:c", Endpoint("dir", path="/var/lib/a b:c")),
]


@pytest.mark.parametrize("text, endpoint", ENDPOINTS)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    """Hosts, IPv4 and IPv6 addresses, ports and directories are understood, and written they mean the same."""
    assert endpoint == parse_endpoint(text, "--to")
    assert endpoint == parse_endpoint(str(endpoint), "--to")


BAD_ENDPOINTS = [
    ("", "is no address"),
    ("collector", "is no address"),
    ("collector:4795", "is no address"),
    ("udp://h", "is no address"),
    ("TCP://h", "is no address"),
    ("://h", "is no address"),
    ("tcp", "is no address"),
    ("tcp://", "names no host"),
    ("tcp://:4795", "names no host"),
    ("tcp:h", "is no address that this version knows"),
    ("tcp://h:0", "names port 0"),
    ("tcp://h:65536", "is no valid address"),
    ("tcp://h:-1", "is no valid address"),
    ("tcp://h:x", "is no valid address"),
    ("tcp://h:4795:1", "is no valid address"),
    ("tcp://fd00::1", "is no valid address"),
    ("tcp://[fd00::1", "is no valid address"),
    ("tcp://[x]", "is no valid address"),
    ("tcp://h/path", "has parts that mean nothing"),
    ("tcp://h?vni=1", "has parts that mean nothing"),
    ("tcp://h#x", "has parts that mean nothing"),
    ("tcp://user@h", "has parts that mean nothing"),
    ("dir:", "names no directory"),
    ("vxlan://h", "names no vni"),
    ("vxlan:h?vni=1", "has parts that mean nothing"),
    ("vxlan://?vni=1", "names no host"),
    ("vxlan://h?vni=16777216", "must have a vni from 0 to 16777215"),
    ("vxlan://h?vni=", "must have a vni"),
    ("vxlan://h?vni=-1", "must have a vni"),
    ("vxlan://h?vni=0x10", "must have a vni"),
    ("vxlan://h?vni=1&vni=2", "has vni= where it means nothing"),
    ("vxlan://h?key=1", "has key= where it means nothing"),
    ("vxlan://h:0?vni=1", "names a port that vxlan can't have"),
    ("vxlan://h:65536?vni=1", "is no valid address"),
    ("vxlan://h/x?vni=1", "has parts that mean nothing"),
    ("vxlan://h?vni=1&check=65536", "must have a check from 0 to 65535"),
    ("gre://h:47?key=1", "names a port that gre can't have"),
    ("gre://h?key=4294967296", "must have a key"),
    ("erspan://h?session=1024", "must have a session from 0 to 1023"),
]


@pytest.mark.parametrize("text, message", BAD_ENDPOINTS)
def test_bad_endpoints_are_one_sentence(text: str, message: str) -> None:
    """Each wrong address is refused with what it may be."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_endpoint(text, "--to")
    assert str(caught.value).startswith(f"--to: {text!r}")
    assert ": write " in str(caught.value)


@pytest.mark.parametrize("text", ["dir:x", "udp://:1", "tcp://h:99999", "tcp:h"])
def test_bad_listeners(text: str) -> None:
    """A listener is a TCP address."""
    with pytest.raises(ConfigError, match="write tls://HOST:PORT or tcp://HOST:PORT"):
        parse_endpoint(text, "--listen", passive=True)


def test_a_listener_may_name_all_addresses_and_any_port() -> None:
    """No host means all addresses, port 0 any free one."""
    assert Endpoint("tcp", "", 0) == parse_endpoint("tcp://:0", "--listen", passive=True)
    assert Endpoint("tcp", "::", 5) == parse_endpoint("tcp://[::]:5", "--listen", passive=True)


@given(
    st.text(max_size=30)
    | st.text(alphabet="tcp:/[]%.@?#0123456789abd", max_size=30).map("tcp://".__add__)
    | st.text(alphabet="vniky=:/[]%.@?#&0123456789ab", max_size=30).map("vxlan://h".__add__)
)
def test_any_text_is_an_endpoint_or_refused(text: str) -> None:
    """Any text is an address or a ConfigError."""
    for passive in (False, True):
        try:
            endpoint = parse_endpoint(text, "--to", passive=passive)
        except ConfigError:
            continue
        assert endpoint.scheme == "tcp" or endpoint.any_key is passive
        assert endpoint == parse_endpoint(str(endpoint), "--to", passive=passive)
        assert 0 <= endpoint.port <= 65535
