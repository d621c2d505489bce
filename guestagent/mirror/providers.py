"""The table of providers: where each lives, where its SDK comes from, and the words of its sources and targets."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, cast

from guestagent.endpoint import TUNNEL_FORMS
from guestagent.errors import ConfigError, HostError
from guestagent.mirror.spec import Spec
from guestagent.mirror.survey import Provider

PACKAGED, LOCAL = Path("/usr/lib/guestagent"), Path("/usr/local/lib/guestagent")
"""Where deb and rpm have their code, and where their command looks for more (packaging/command.sh)."""


class Row(NamedTuple):
    """One provider. Its module has `connect(spec) -> Provider` and `policy(spec) -> str`."""

    module: str
    sources: dict[str, str]
    """What a source may look like, and the pattern of it."""
    targets: dict[str, str]
    most_packet_bytes: int
    unsupported: tuple[str, ...] = ()
    """Keys of the spec that mean nothing there."""
    wheels: str = ""
    """What pip has to bring where the package guestagent-cloud does not: grpcio has other bytes for each Python."""


_ID = r"[0-9a-f]{8,17}"
_NAME = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
"""RFC 1035, as Google names things."""
_OVSDB = ("db", "tls_ca", "tls_cert", "tls_key")
"""Keys of a server that a cloud's API is not."""

PROVIDERS: dict[str, Row] = {
    "aws": Row(
        module="guestagent.mirror.aws.provider",
        sources={
            "i-ID": rf"i-{_ID}",
            "eni-ID": rf"eni-{_ID}",
            "subnet-ID": rf"subnet-{_ID}",
            "tag:KEY=VALUE": r"tag:[^=]{1,128}=.{0,256}",
            "self": "self",
        },
        targets={
            "eni-ID": rf"eni-{_ID}",
            "the ARN of a network load balancer": r"arn:aws[a-z-]*:elasticloadbalancing:[a-z0-9-]+:\d{12}:"
            r"loadbalancer/net/[\w/-]+",
            "vpce-ID of a gateway load balancer endpoint": rf"vpce-{_ID}",
            "tmt-ID of a mirror target that exists": rf"tmt-{_ID}",
        },
        most_packet_bytes=8500,
        unsupported=_OVSDB,
    ),
    "gcp": Row(
        module="guestagent.mirror.gcp.provider",
        sources={
            "ZONE/NAME of a VM": rf"[a-z]+-[a-z]+\d+-[a-z]/{_NAME}",
            "subnet:NAME": rf"subnet:{_NAME}",
            "nettag:NETWORK-TAG": rf"nettag:{_NAME}",
            "tag:LABEL=VALUE": r"tag:[^=]{1,63}=.{0,63}",
            "self": "self",
        },
        targets={
            "the name of a forwarding rule": _NAME,
            "projects/PROJECT/regions/REGION/forwardingRules/NAME": rf"projects/[a-z0-9:.-]+/regions/[a-z0-9-]+/"
            rf"forwardingRules/{_NAME}",
        },
        most_packet_bytes=0,
        unsupported=("dns", "vni", "packet_length", *_OVSDB),
        wheels="'google-cloud-compute>=1.30' 'requests>=2.31' 'tenacity>=8.2'",
    ),
    "ovs": Row(
        module="guestagent.mirror.ovs.provider",
        sources={
            "port:NAME": r"port:[^/]+",
            "tag:KEY=VALUE of an interface's external_ids": r"tag:[^=]{1,128}=.{0,256}",
            "bridge:NAME": r"bridge:[^/]+",
            "bridge:NAME/VLAN": r"bridge:[^/]+/\d{1,4}",
        },
        targets={
            "port:NAME": r"port:[^/]+",
            "vlan:N": r"vlan:\d{1,4}",
            **{form: rf"{scheme}://.+" for scheme, form in TUNNEL_FORMS.items()},
        },
        most_packet_bytes=65_535,
        unsupported=("filter", "dns", "region"),
    ),
}


def check(provider: str, spec: Spec) -> None:
    """Whether the spec speaks this provider's words. Raises ConfigError."""
    row = PROVIDERS[provider]
    for one in spec.source:
        if not _fits(one, row.sources):
            raise ConfigError(f"source: {one!r} is none that {provider} knows: write {', '.join(row.sources)}")
    if spec.target and not _fits(spec.target, row.targets):
        raise ConfigError(f"target: {spec.target!r} is none that {provider} knows: write {', '.join(row.targets)}")
    empty = Spec()
    for key in row.unsupported:
        if getattr(spec, key) != getattr(empty, key):
            raise ConfigError(f"{key}: it means nothing to {provider}: leave it out")
    if (spec.packet_length or 0) > row.most_packet_bytes:
        raise ConfigError(f"packet_length: {spec.packet_length} is more than {provider}'s {row.most_packet_bytes}")


def _fits(text: str, forms: dict[str, str]) -> bool:
    return any(re.fullmatch(pattern, text) for pattern in forms.values())


def connect(provider: str, spec: Spec) -> Provider:
    """The provider's own API, with the credentials of its own configuration. Raises HostError, RunError."""
    row = PROVIDERS[provider]
    try:
        return cast(Provider, import_module(row.module).connect(spec))
    except ModuleNotFoundError as error:
        raise HostError(f"mirror {provider} needs the module {error.name}: {_remedy(provider)}") from error


def _remedy(provider: str, here: Path = Path(__file__)) -> str:
    """How this installation gets what it lacks."""
    if not here.is_relative_to(PACKAGED):
        return f"pip install 'guestagent[{provider}]'"
    if wheels := PROVIDERS[provider].wheels:
        return f"{sys.executable} -m pip install --target {LOCAL} {wheels}"
    return "install the package guestagent-cloud"


def policy(provider: str, spec: Spec) -> str:
    """The least that a role needs for all that `mirror` does there, as the provider takes it."""
    return str(import_module(PROVIDERS[provider].module).policy(spec))
