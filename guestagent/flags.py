"""The flags of the larger verbs, as tables; values.py checks what they are given."""

from typing import Any, NamedTuple


class Option(NamedTuple):
    """One flag: names, help, and what argparse needs beyond a plain text."""

    names: tuple[str, ...]
    help: str
    more: dict[str, Any]


def option(*names: str, help: str, **more: Any) -> Option:  # noqa: A002
    """A row; `more` is argparse's."""
    return Option(names, help, more)


SWITCH = {"action": "store_true", "default": None}
CONFIG = option("-c", "--config", metavar="FILE", help="TOML with the names of these flags as keys")
DURATION = option("--duration", type=float, metavar="S", help="stop after S seconds")
REPORT = option("--report", metavar="FILE", help="write the ledger as JSON at the end")
METRICS = option("--metrics", metavar="ADDRESS", help="serve Prometheus at 127.0.0.1:9795 or unix:PATH; default: no")
LOG = option("--log", metavar="text|json", help="form of the log lines on standard error; default: text")

_TO_HELP = (
    "tls://HOST[:4795], tcp://HOST[:4795], dir:PATH, or a tunnel to a sensor: vxlan://HOST?vni=N, "
    "geneve://HOST?vni=N, gre://HOST?key=N, "
    "erspan://HOST?session=N; default: dir:captures"
)

_TLS = (
    option("--tls-ca", metavar="FILE", help="PEM: authorities that the other end's certificate must come from"),
    option("--tls-cert", metavar="FILE", help="PEM: our certificate"),
    option("--tls-key", metavar="FILE", help="PEM: its private key"),
)
_TRANSPORT = (
    *_TLS,
    option("--allow-cleartext", **SWITCH, help="copies readable on the way, also to or on a public address"),
)

RUN_OPTIONS = (
    CONFIG,
    option(
        "-i",
        "--interface",
        action="append",
        metavar="IFACE",
        help="interface or glob; default: those of the default route",
    ),
    option("--to", action="append", metavar="URL", help=_TO_HELP),
    option("--filter", metavar="EXPR", help="pcap-filter expression, decided in the kernel"),
    option("--slice", metavar="N|headers|full", help="bytes of each frame to keep; default: full"),
    option("--keep", type=float, metavar="FRACTION", help="copy this fraction of the flows, each whole or not at all"),
    option("--cpu", type=float, metavar="PCT", help="of the whole VM, kernel's share included; default: 5"),
    option("--rate", metavar="100mbit", help="what may leave; default: 10 %% of the link's speed, else 200mbit"),
    option("--packets", type=int, metavar="N", help="packets per second that may leave; default: no cap"),
    option("--yield", metavar="on|off", help="step back while the VM is under pressure; default: on"),
    option("--full", **SWITCH, help="copy everything: no default budgets; those given beside it hold"),
    option("--ring", metavar="SIZE", help="ring of each interface; default: 64MB, at most 5 %% of free memory"),
    option("--promiscuous", **SWITCH, help="also frames for other hosts"),
    option("--engine", metavar="ring|portable", help="default: ring where the kernel has it"),
    option("--wait", **SWITCH, help="for an interface that is not there yet, rather than exit 2"),
    option("--agent-id", metavar="NAME", help="default: the cloud's instance id, else the machine id"),
    *_TRANSPORT,
    DURATION,
    REPORT,
    METRICS,
    LOG,
)
_FLEET_FLAGS = {
    *("--interface", "--to", "--filter", "--slice", "--keep", "--cpu", "--rate", "--packets", "--yield", "--full"),
    *("--ring", "--metrics", "--allow-cleartext"),
}
"""What may be the same on many VMs."""
COLLECT_OPTIONS = (
    CONFIG,
    option(
        "--listen",
        action="append",
        metavar="URL",
        help="tls://HOST:4795, tcp://HOST:4795, or vxlan:// geneve:// gre:// erspan://HOST",
    ),
    option("--write", metavar="PATH|-", help="directory, NAME.pcapng, or - for standard output; default: captures"),
    option("--wire-size", **SWITCH, help="write super-packets cut to the frames that were on the wire"),
    option("--tap", metavar="NAME", help="TAP device with every frame; tap-%%a: one for each agent"),
    option(
        "--relay", action="append", metavar="URL", help="sensor that gets every frame, vxlan://HOST?vni=N and so on"
    ),
    option("--workers", type=int, metavar="N", help="processes that share the agents; default: 1"),
    *_TRANSPORT,
    DURATION,
    REPORT,
    METRICS,
    LOG,
)
_OF_RUN = {one.names for one in RUN_OPTIONS}
CHECK_OPTIONS = (*RUN_OPTIONS, *(one for one in COLLECT_OPTIONS if one.names not in _OF_RUN))
MIRROR_OPTIONS = (
    option("provider", choices=("aws", "gcp", "ovs"), help="whose mirroring"),
    option("action", choices=("plan", "create", "list", "status", "delete", "policy"), help="see above"),
    option("-f", "--file", metavar="FILE", help="mirror.toml: TOML with the names of the flags up to --db, and [tls]"),
    option("--name", help="of the mirror; it marks all that is made"),
    option(
        "--source",
        action="append",
        metavar="ID",
        help="machine, subnet, tag:KEY=VALUE or self, as the provider names them",
    ),
    option("--vpc", metavar="ID", help="only machines of this network or bridge"),
    option("--tag", action="append", metavar="KEY=VALUE", help="only machines that bear it"),
    option("--target", metavar="ID", help="what takes the copies, as the provider names it"),
    option(
        "--filter",
        action="append",
        metavar="RULE",
        help="[not] PROTOCOL[/PORT[-PORT]] [local|remote] [CIDR]; the first that fits decides; default: all",
    ),
    option("--direction", metavar="both|ingress|egress", help="as the machine sees it; default: both"),
    option("--dns", **SWITCH, help="also questions to the provider's own resolver (aws)"),
    option("--vni", type=int, metavar="N", help="VXLAN network identifier; default: the provider picks one (aws, ovs)"),
    option("--packet-length", type=int, metavar="N", help="bytes of each packet; default: whole (aws, ovs)"),
    option("--region", help="default: as the provider's own tools are configured, else that of this VM"),
    option("--collector", metavar="URL", help="where the agents of machines without native mirroring send to"),
    option(
        "--db", metavar="ADDRESS", help="ovs: unix:PATH, tcp:HOST:PORT or ssl:HOST:PORT; default: this host's socket"
    ),
    *_TLS,
    option("--user-data", metavar="FILE", help="write the cloud-init for those machines"),
    option("--family", choices=("apt", "dnf"), help="of their packages, for --user-data"),
    option("--repository", metavar="URL", help="of guestagent's packages, for --user-data"),
    option("--repository-key", metavar="FILE", help="its public key, for --user-data"),
    option("--adopt", action="append", metavar="ID", help="take over this object that somebody else made"),
    option("--dry-run", **SWITCH, help="change nothing, and ask the provider whether each step is permitted"),
    option("--yes", **SWITCH, help="delete without asking"),
    option("--json", **SWITCH, help="one JSON document, schema guestagent.mirror/1"),
)
CLOUD_INIT_OPTIONS = (
    option("action", choices=("render",), help="write it"),
    option("--form", choices=("user-data", "vendor-data", "openstack"), default="user-data", help="default: user-data"),
    option("--family", choices=("apt", "dnf"), required=True, help="Debian and Ubuntu, or RHEL, Fedora and Amazon"),
    option("--repository", metavar="URL", required=True, help="where what `make repo` made is served"),
    option("--repository-key", metavar="FILE", required=True, help="its public key"),
    option("--pin", metavar="VERSION", help="stay at this version"),
    option("--proxy", metavar="URL", help="to the repository"),
    option("--tag", action="append", metavar="NAME=TEXT", help="a word of yours on the VMs, for the captures"),
    option("--ca", metavar="FILE", help="PEM: the authority of the collectors, for tls://"),
    option("--enrol", metavar="HOST[:4796]", help="where `guestagent pki serve` gives each VM its certificate"),
    option("--token-file", metavar="FILE", help="what `guestagent pki token` printed, for --enrol"),
    *(one for one in RUN_OPTIONS if one.names[-1] in _FLEET_FLAGS),
    option("-o", "--output", metavar="FILE", help="default: standard output"),
)
PKI_OPTIONS = (
    option("what", choices=("init", "agent", "collector", "token", "serve"), help="the authority, or what it gives"),
    option("name", nargs="?", help="the agent's id or names as 'web-*', or the collector's host name"),
    option("--host", action="append", metavar="NAME|IP", help="another name of a collector in --to"),
    option("--dir", default="pki", metavar="PATH", help="where everything lies; default: pki"),
    option("--minutes", type=int, default=60, metavar="N", help="how long a token holds; default: 60"),
    option("--uses", type=int, default=1, metavar="N", help="certificates that a token is good for; default: 1"),
    option("--listen", metavar="HOST[:4796]", help="where to serve"),
)
ENROL_OPTIONS = (
    option("authority", metavar="HOST[:4796]", help="where `guestagent pki serve` listens"),
    option("-c", "--config", required=True, metavar="FILE", help="of the agent; its [tls] says what lies where"),
    option("--token-file", required=True, metavar="FILE", help="what `guestagent pki token` printed; removed after"),
)
