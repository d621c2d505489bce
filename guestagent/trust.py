"""Whom a config lets copies go to, and which of its files may be believed. No address is looked up here."""

import os
import stat
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Protocol

from guestagent.endpoint import Endpoint
from guestagent.errors import ConfigError

PRIVATE = tuple(
    ip_network(text)
    for text in (
        # RFC 1918, RFC 6598 (carriers and clouds), loopback, link-local; RFC 4193, loopback, link-local
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("fc00::/7", "::1/128", "fe80::/10"),
    )
)
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_SECRET = _WRITABLE | stat.S_IROTH
"""A key may be read by a group of its own, as a service's user needs."""


class Transport(Protocol):
    """What both configs say of the way."""

    @property
    def tls_ca(self) -> str: ...
    @property
    def tls_cert(self) -> str: ...
    @property
    def tls_key(self) -> str: ...
    @property
    def allow_cleartext(self) -> bool: ...


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_private(text: str) -> bool:
    """Does the address lead nowhere beyond the site? False for a name, too."""
    address = _parsed(text)
    return address is not None and any(address in network for network in PRIVATE)


def is_exposed(endpoint: Endpoint, addresses: Iterable[str] = ()) -> bool:
    """Would copies be readable on the way to, or on, an address known to be public?

    A name is judged once it is resolved. `addresses` are this machine's, for a listener on all of them.
    """
    if endpoint.is_secure:
        return False
    address = _parsed(endpoint.host)
    if not endpoint.host or (address is not None and address.is_unspecified):
        is_ipv4 = address is not None and address.version == 4
        return any(not is_private(one) for one in addresses if not (is_ipv4 and ":" in one))
    return address is not None and not is_private(endpoint.host)


def cleartext_sentence(endpoint: Endpoint | str) -> str:
    """Why an endpoint is refused, and what to do."""
    return (
        f"{endpoint} is not a private address, and copies would be readable on the way: "
        "use tls://, or set allow_cleartext (--allow-cleartext)"
    )


def check_transport(config: Transport, endpoints: Sequence[Endpoint]) -> None:
    """Raises ConfigError for an endpoint in clear text that is not private, and for tls:// without its three files."""
    for endpoint in endpoints:
        if not config.allow_cleartext and is_exposed(endpoint):
            raise ConfigError(cleartext_sentence(endpoint))
        if endpoint.scheme == "tls":
            for name in ("ca", "cert", "key"):
                if not getattr(config, f"tls_{name}"):
                    raise ConfigError(f"{endpoint} needs --tls-{name}: `guestagent pki` makes what TLS needs")


def refuse_writable(path: str) -> None:
    """Raises ConfigError where others could write what we obey; OSError where the file is not there."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        return  # a pipe from the shell is the caller's own
    if found.st_mode & _WRITABLE:
        raise ConfigError(f"{path} can be written by others than its owner: chmod go-w {path}")
    if _is_strangers(found):
        raise ConfigError(f"{path} belongs to user {found.st_uid}, who can write it: chown root {path}")


def refuse_readable(path: str) -> None:
    """Raises ConfigError where others could read or write a private key; OSError where the file is not there."""
    found = os.stat(path)
    if found.st_mode & _SECRET:
        raise ConfigError(f"the key {path} can be read or written by others: chmod 600 {path}")
    if _is_strangers(found):
        raise ConfigError(f"the key {path} belongs to user {found.st_uid}, who can read and swap it: chown root {path}")


def _is_strangers(found: os.stat_result) -> bool:
    """Does a file belong to somebody who is neither root nor us, nor called sudo?"""
    return found.st_uid not in {0, os.geteuid(), int(os.environ.get("SUDO_UID") or 0)}
