"""Open vSwitch: where copies go, as text of the spec and as what the database takes. Pure."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import NamedTuple

from guestagent.encap.tunnel import TUNNELS, Tunnel
from guestagent.endpoint import TUNNEL_FORMS, Endpoint, parse_endpoint
from guestagent.errors import ConfigError
from guestagent.mirror.spec import Spec

MOST_VLAN = 4095
ETHERNET_BYTES = 14
_MTU = 1500
ERSPAN = {"erspan_ver": "1", "erspan_idx": "0"}
"""Version 1 of the protocol is type II, which every sensor reads."""


class Target(NamedTuple):
    """One of three: a port of the bridge, a VLAN of it, or a tunnel to a sensor."""

    port: str = ""
    vlan: int | None = None
    tunnel: Endpoint | None = None

    def __str__(self) -> str:
        if self.tunnel:
            return str(self.tunnel)
        return f"port:{self.port}" if self.port else f"vlan:{self.vlan}"

    @property
    def overhead_bytes(self) -> int:
        """What a tunnel adds to the longest frame, beyond the MTU of its source."""
        if not self.tunnel:
            return 0
        kind: Tunnel = TUNNELS[self.tunnel.scheme]
        return _MTU + ETHERNET_BYTES - kind.room(_MTU, ip_address(self.tunnel.host).version)


def parse_target(spec: Spec) -> Target:
    """Raises ConfigError."""
    scheme, _, rest = spec.target.partition(":")
    if scheme in TUNNEL_FORMS:
        return Target(tunnel=_tunnel(spec, scheme))
    if spec.vni is not None:
        raise ConfigError(f"vni: {spec.target} is no tunnel, and only tunnels have one")
    if scheme == "port":
        return Target(port=rest)
    if not 1 <= int(rest) <= MOST_VLAN:
        raise ConfigError(f"target: {spec.target}: a VLAN is from 1 to {MOST_VLAN}")
    return Target(vlan=int(rest))


def _tunnel(spec: Spec, scheme: str) -> Endpoint:
    url = spec.target
    if spec.vni is not None:
        if "?" in url:
            raise ConfigError(f"vni: {url} has its own {TUNNELS[scheme].key_name}: leave one of them out")
        url = f"{url}?{TUNNELS[scheme].key_name}={spec.vni}"
    endpoint = parse_endpoint(url, "target")
    if endpoint.check:
        raise ConfigError(f"target: {url}: a switch checks no port: leave check= out")
    try:
        ip_address(endpoint.host)
    except ValueError:
        raise ConfigError(f"target: {url}: a switch asks no resolver: write the address of {endpoint.host}") from None
    return endpoint


def interface_of(endpoint: Endpoint) -> tuple[str, dict[str, str]]:
    """Type and options of the tunnel's interface (ovs-vswitchd.conf.db(5), Tunnel Options)."""
    options = {"remote_ip": endpoint.host, "key": str(endpoint.key)}
    if endpoint.port:
        options["dst_port"] = str(endpoint.port)
    return endpoint.scheme, options | (ERSPAN if endpoint.scheme == "erspan" else {})


def is_same_tunnel(one: tuple[str, Mapping[str, str]], other: tuple[str, Mapping[str, str]]) -> bool:
    """Whether the switch would refuse the second: equal in all that it tells packets of one from the other by."""
    return one[0] == other[0] and _lane(*one) == _lane(*other)


def _lane(kind: str, options: Mapping[str, str]) -> tuple[str, ...]:
    port = str(TUNNELS[kind].port) if kind in TUNNELS else ""
    defaults = {"remote_ip": "", "local_ip": "", "key": options.get("in_key", "0"), "dst_port": port}
    return tuple(options.get(name, default) for name, default in defaults.items())
