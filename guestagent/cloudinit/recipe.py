"""What a new machine gets, by family of package managers: files before and after the installation, commands. Pure.

Every process on a VM may read its user-data from the metadata service: no lasting secret goes into it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CONFIG_PATH = "/etc/guestagent/guestagent.toml"
CA_PATH = "/etc/guestagent/ca.crt"
CERT_PATH = "/etc/guestagent/agent.crt"
KEY_PATH = "/etc/guestagent/agent.key"
TOKEN_PATH = "/etc/guestagent/enrol.token"
OWN = "root:guestagent"
"""The package makes the group, so a file with this owner is written after the installation."""


@dataclass(frozen=True, slots=True)
class File:
    """One file; `mode` in octal digits."""

    path: str
    text: str
    mode: str = "0644"
    owner: str = "root:root"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Whose packages, and the agent's settings as the keys of its config; empty texts: not wanted."""

    repository: str
    """URL of what `make repo` made."""
    repository_key: str
    """Its public key, in ASCII armour (RFC 9580, section 6)."""
    settings: Mapping[str, Any]
    pin: str = ""
    """The version to stay at."""
    proxy: str = ""
    """URL of the proxy to the repository."""
    ca: str = ""
    """PEM of the authority that vouches for collectors."""
    enrol: str = ""
    """HOST:PORT of `guestagent pki serve`."""
    token: str = ""
    """What it asks for. In user-data everybody on the VM can read it, so it is short-lived and counted."""


@dataclass(frozen=True, slots=True)
class Family:
    """One family of package managers."""

    files: Callable[[Recipe], list[File]]
    install: str
    """A shell line for those who can't ask cloud-init for packages."""


def _apt_files(recipe: Recipe) -> list[File]:
    key = "/etc/apt/keyrings/guestagent.asc"
    source = f"Types: deb\nURIs: {recipe.repository}/apt\nSuites: stable\nComponents: main\nSigned-By: {key}\n"
    files = [File(key, recipe.repository_key), File("/etc/apt/sources.list.d/guestagent.sources", source)]
    if recipe.pin:
        pin = f"Package: guestagent*\nPin: version {recipe.pin}*\nPin-Priority: 1001\n"
        files.append(File("/etc/apt/preferences.d/guestagent", pin))
    if recipe.proxy:
        url = urlsplit(recipe.repository)
        proxy = f'Acquire::{url.scheme}::Proxy::{url.hostname} "{recipe.proxy}";\n'
        files.append(File("/etc/apt/apt.conf.d/90guestagent-proxy", proxy))
    return files


def _dnf_files(recipe: Recipe) -> list[File]:
    key = "/etc/pki/rpm-gpg/RPM-GPG-KEY-guestagent"
    lines = [
        "[guestagent]",
        "name=guestagent",
        f"baseurl={recipe.repository}/rpm",
        f"gpgkey=file://{key}",
        "gpgcheck=1",
        "repo_gpgcheck=1",
        "enabled=1",
    ]
    if recipe.pin:
        lines.append(f"includepkgs=guestagent*-{recipe.pin}-*")
    if recipe.proxy:
        lines.append(f"proxy={recipe.proxy}")
    return [
        File(key, recipe.repository_key),
        File("/etc/yum.repos.d/guestagent.repo", "".join(f"{line}\n" for line in lines)),
    ]


FAMILIES = {
    "apt": Family(
        _apt_files,
        "export DEBIAN_FRONTEND=noninteractive\n"
        "apt-get -q -o DPkg::Lock::Timeout=300 update\n"
        "apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install -y guestagent\n",
    ),
    "dnf": Family(_dnf_files, "dnf -q -y install guestagent\n"),
}


def own_files(recipe: Recipe) -> list[File]:
    """The agent's settings, for after the installation."""
    files = [File(CONFIG_PATH, toml(recipe.settings), "0640", OWN)]
    if recipe.ca:
        files.insert(0, File(CA_PATH, recipe.ca, "0644", OWN))
    if recipe.token:
        files.append(File(TOKEN_PATH, f"{recipe.token}\n", "0600"))
    return files


def commands(recipe: Recipe) -> list[list[str]]:
    """What is run at the end."""
    start = ["systemctl", "enable", "--now", "guestagent"]
    if not recipe.enrol:
        return [start]
    return [["guestagent", "enrol", recipe.enrol, "--token-file", TOKEN_PATH, "--config", CONFIG_PATH], start]


def toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML, tables last; values are texts, numbers, truths and lists of them."""
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    text = "".join(f"{key} = {_value(value)}\n" for key, value in plain.items())
    for name, table in settings.items():
        if isinstance(table, Mapping):
            text += f"\n[{name}]\n" + "".join(f"{_key(key)} = {_value(value)}\n" for key, value in table.items())
    return text


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:
    """A JSON text is a basic string of TOML, but for DEL, which no value of ours may hold."""
    return json.dumps(value, ensure_ascii=False)
