"""Where copies go to or come from: a URL in, an Endpoint out, or ConfigError with what the URL may be."""

from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit

from guestagent.errors import ConfigError

DEFAULT_PORT = 4795
MOST_PORT = 65_535
STREAMS = ("tcp", "tls")
TUNNEL_FORMS = {
    "vxlan": "vxlan://HOST[:4789]?vni=N",
    "geneve": "geneve://HOST[:6081]?vni=N",
    "gre": "gre://HOST?key=N",
    "erspan": "erspan://HOST?session=N",
}
"""The schemes of encap.tunnel.TUNNELS; each takes check=PORT, too."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A parsed `--to` or `--listen`."""

    scheme: str
    host: str = ""
    port: int = 0
    """0 where the scheme has none."""
    path: str = ""
    key: int = 0
    """Of a tunnel: VNI, key or session."""
    check: int = 0
    """Of a tunnel: a TCP port that accepts connections while the sensor is well; 0: none."""

    any_key: bool = False
    """Of a tunnel that is listened to: copies of any key are taken."""

    @property
    def is_secure(self) -> bool:
        """Is nothing of the copies readable on the way?"""
        return self.scheme in ("tls", "dir")

    @property
    def is_stream(self) -> bool:
        """Is it a collector that acknowledges?"""
        return self.scheme in STREAMS

    @property
    def is_raw(self) -> bool:
        """Does it go over raw sockets, which take a capability to open?"""
        return self.scheme in ("gre", "erspan")

    @property
    def is_tunnel(self) -> bool:
        """Is it a one-way tunnel to a sensor?"""
        return self.scheme in TUNNEL_FORMS

    def __str__(self) -> str:
        if self.scheme == "dir":
            return f"dir:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = f"?{_key_name(self.scheme)}={self.key}" if self.is_tunnel and not self.any_key else ""
        if self.check:
            query += f"&check={self.check}"
        return f"{self.scheme}://{host}{f':{self.port}' if self.port or not self.is_tunnel else ''}{query}"


def _key_name(scheme: str) -> str:
    return TUNNEL_FORMS[scheme].partition("?")[2].removesuffix("=N")


def parse_endpoint(url: str, where: str, *, passive: bool = False) -> Endpoint:
    """Read a `--to`, or with `passive` a `--listen`. Raises ConfigError with what the URL may be."""
    usable = "tls://HOST:PORT or tcp://HOST:PORT" if passive else "tls://HOST[:PORT], tcp://HOST[:PORT] or dir:PATH"
    scheme, _, rest = url.partition(":")
    if scheme == "dir" and not passive:
        if not rest:
            raise ConfigError(f"{where}: {url!r} names no directory: write dir:PATH")
        return Endpoint("dir", path=rest)
    if scheme in TUNNEL_FORMS:
        return _tunnel_listener(url, scheme, where) if passive else _tunnel(url, scheme, where)
    if scheme not in STREAMS or not rest.startswith("//"):
        also = "or a tunnel, vxlan:// geneve:// gre:// erspan://"
        raise ConfigError(f"{where}: {url!r} is no address that this version knows: write {usable}, {also}")
    parts, port = _split(url, where, usable)
    if parts.query:
        raise ConfigError(f"{where}: {url!r} has parts that mean nothing here: write {usable}")
    if not parts.hostname and not passive:
        raise ConfigError(f"{where}: {url!r} names no host: write {usable}")
    if not passive and port == 0:
        raise ConfigError(f"{where}: {url!r} names port 0: write {usable}")
    return Endpoint(scheme, parts.hostname or "", DEFAULT_PORT if port is None else port)


def _split(url: str, where: str, usable: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{where}: {url!r} is no valid address ({error}): write {usable}") from error
    if parts.path not in ("", "/") or parts.fragment or parts.username is not None:
        raise ConfigError(f"{where}: {url!r} has parts that mean nothing here: write {usable}")
    return parts, port


def _tunnel_listener(url: str, scheme: str, where: str) -> Endpoint:
    """Where copies of any key are taken; the host may be left out."""
    from guestagent.encap.tunnel import TUNNELS

    tunnel, usable = TUNNELS[scheme], TUNNEL_FORMS[scheme].partition("?")[0]
    parts, port = _split(url, where, usable)
    if parts.query:
        raise ConfigError(f"{where}: {url!r} has parts that mean nothing here, copies of any key are taken: {usable}")
    if not url.startswith(f"{scheme}://") or port == 0 or (port and not tunnel.port):
        raise ConfigError(f"{where}: {url!r} is no address that {scheme} can have: write {usable}")
    return Endpoint(scheme, parts.hostname or "", port or tunnel.port, any_key=True)


def _tunnel(url: str, scheme: str, where: str) -> Endpoint:
    from guestagent.encap.tunnel import TUNNELS

    tunnel, usable = TUNNELS[scheme], TUNNEL_FORMS[scheme]
    parts, port = _split(url, where, usable)
    if not parts.hostname:
        raise ConfigError(f"{where}: {url!r} names no host: write {usable}")
    if port == 0 or (port and not tunnel.port):
        raise ConfigError(f"{where}: {url!r} names a port that {scheme} can't have: write {usable}")
    most = {tunnel.key_name: tunnel.most_key, "check": MOST_PORT}
    numbers = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in most or name in numbers:
            raise ConfigError(f"{where}: {url!r} has {name}= where it means nothing: write {usable}")
        if not (value.isdecimal() and len(value) <= len(str(most[name])) and int(value) <= most[name]):
            raise ConfigError(f"{where}: {url!r} must have a {name} from 0 to {most[name]}: write {usable}")
        numbers[name] = int(value)
    if tunnel.key_name not in numbers:
        raise ConfigError(f"{where}: {url!r} names no {tunnel.key_name}: write {usable}")
    return Endpoint(
        scheme, parts.hostname, port or tunnel.port, key=numbers[tunnel.key_name], check=numbers.get("check", 0)
    )
