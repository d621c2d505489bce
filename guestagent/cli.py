"""The `guestagent` command: a table of verbs. Each verb imports its rooms inside, so `--help` costs nothing."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from guestagent import __version__
from guestagent.errors import ConfigError, GuestagentError

Flags = dict[str, Any]


class Option(NamedTuple):
    """One flag: names, help, and what argparse needs beyond a plain text."""

    names: tuple[str, ...]
    help: str
    more: dict[str, Any]


def _option(*names: str, help: str, **more: Any) -> Option:  # noqa: A002
    return Option(names, help, more)


_SWITCH = {"action": "store_true", "default": None}
_CONFIG = _option("-c", "--config", metavar="FILE", help="TOML with the names of these flags as keys")
_DURATION = _option("--duration", type=float, metavar="S", help="stop after S seconds")
_REPORT = _option("--report", metavar="FILE", help="write the ledger as JSON at the end")

_RUN_OPTIONS = (
    _CONFIG,
    _option(
        "-i", "--interface", action="append", metavar="IFACE", help="interface or glob; default: the default route's"
    ),
    _option("--to", action="append", metavar="URL", help="tcp://HOST[:4795] or dir:PATH; default: dir:captures"),
    _option("--filter", metavar="EXPR", help="pcap-filter expression, decided in the kernel"),
    _option("--slice", metavar="N|headers|full", help="bytes of each frame to keep; default: full"),
    _option("--keep", type=float, metavar="FRACTION", help="copy this fraction of the flows, each whole or not at all"),
    _option("--cpu", type=float, metavar="PCT", help="of the whole VM, kernel's share included; default: 5"),
    _option("--rate", metavar="100mbit", help="what may leave; default: 10 %% of the link's speed, else 200mbit"),
    _option("--packets", type=int, metavar="N", help="packets per second that may leave; default: no cap"),
    _option("--yield", metavar="on|off", help="step back while the VM is under pressure; default: on"),
    _option("--full", **_SWITCH, help="copy everything: no default budgets; those given beside it hold"),
    _option("--ring", metavar="SIZE", help="ring of each interface; default: 64MB, at most 5 %% of free memory"),
    _option("--promiscuous", **_SWITCH, help="also frames for other hosts"),
    _option("--engine", metavar="ring|portable", help="default: ring where the kernel has it"),
    _option("--agent-id", metavar="NAME", help="default: the cloud's instance id, else the machine id"),
    _DURATION,
    _REPORT,
)
_COLLECT_OPTIONS = (
    _CONFIG,
    _option("--listen", action="append", metavar="URL", help="tcp://HOST:4795"),
    _option("--write", metavar="PATH|-", help="directory, NAME.pcapng, or - for standard output; default: captures"),
    _DURATION,
    _REPORT,
)
_MIRROR_OPTIONS = (
    _option("provider", choices=("aws",), help="whose mirroring"),
    _option("action", choices=("plan", "create", "list", "status", "delete", "policy"), help="see above"),
    _option("-f", "--file", metavar="FILE", help="mirror.toml: TOML with the names of the flags up to --collector"),
    _option("--name", help="of the mirror; it marks all that is made"),
    _option("--source", action="append", metavar="ID", help="instance, interface, subnet, tag:KEY=VALUE or self"),
    _option("--vpc", metavar="ID", help="only machines of this network"),
    _option("--tag", action="append", metavar="KEY=VALUE", help="only machines that bear it"),
    _option("--target", metavar="ID", help="interface, network load balancer, or endpoint that takes the copies"),
    _option(
        "--filter",
        action="append",
        metavar="RULE",
        help="[not] PROTOCOL[/PORT[-PORT]] [local|remote] [CIDR]; the first that fits decides; default: all",
    ),
    _option("--direction", metavar="both|ingress|egress", help="as the machine sees it; default: both"),
    _option("--dns", **_SWITCH, help="also questions to the provider's own resolver"),
    _option("--vni", type=int, metavar="N", help="VXLAN network identifier; default: the provider picks one"),
    _option("--packet-length", type=int, metavar="N", help="bytes of each packet; default: whole"),
    _option("--region", help="default: as the provider's own tools are configured"),
    _option("--collector", metavar="URL", help="where the agents of machines without native mirroring send to"),
    _option("--user-data", metavar="FILE", help="write the cloud-init for those machines"),
    _option("--adopt", action="append", metavar="ID", help="take over this object that somebody else made"),
    _option("--dry-run", **_SWITCH, help="change nothing, and ask the provider whether each step is permitted"),
    _option("--yes", **_SWITCH, help="delete without asking"),
    _option("--json", **_SWITCH, help="one JSON document, schema guestagent.mirror/1"),
)


def _run(flags: Flags) -> int:
    from guestagent.config import load_run
    from guestagent.observe import logs
    from guestagent.start import begin

    reread = partial(load_run, flags.pop("config"), flags)
    config = reread()
    logs.start()
    capture = begin(config)
    cloud = None
    if config.metadata:
        from guestagent.cloud import CloudChild

        cloud = CloudChild()
    from guestagent.agent import run_agent

    return run_agent(config, capture, reread, cloud)


def _collect(flags: Flags) -> int:
    from guestagent.collect import Collector
    from guestagent.config import load_collect
    from guestagent.observe import logs

    config = load_collect(flags.pop("config"), flags)
    logs.start()
    return Collector(config).run()


def _status(flags: Flags) -> int:
    from guestagent.observe.show import show_status

    return show_status(as_json=bool(flags["json"]))


def _check(flags: Flags) -> int:
    from guestagent.check import check
    from guestagent.config import load_run

    return check(load_run(flags.pop("config"), flags))


def _demo(flags: Flags) -> int:
    from guestagent.demo import demo

    return demo(flags["seconds"])


def _mirror(flags: Flags) -> int:
    from guestagent.mirror.command import mirror

    return mirror(flags)


class Verb(NamedTuple):
    """One sub-command."""

    run: Callable[[Flags], int]
    help: str
    options: tuple[Option, ...]
    epilog: str = ""


VERBS: dict[str, Verb] = {
    "run": Verb(
        _run,
        "capture this host's interface and send the copies",
        _RUN_OPTIONS,
        "examples:\n  guestagent run\n  guestagent run -i eth0 --to tcp://10.0.0.9 --filter 'not port 22' --slice 256",
    ),
    "collect": Verb(
        _collect,
        "receive from agents and write pcapng",
        _COLLECT_OPTIONS,
        "examples:\n  guestagent collect --listen tcp://0.0.0.0:4795 --write /var/captures\n"
        "  guestagent collect --listen tcp://127.0.0.1:4795 --write - | tshark -r -",
    ),
    "status": Verb(
        _status,
        "what runs here, the ledger, limits and why",
        (_option("--json", **_SWITCH, help="the snapshots as JSON"),),
    ),
    "check": Verb(_check, "try everything that run would need, and exit with its code", _RUN_OPTIONS),
    "demo": Verb(
        _demo,
        "two hosts in network namespaces: traffic, agent, collector, result",
        (_option("--seconds", type=float, default=8.0, metavar="N", help="how long traffic runs; default: 8"),),
    ),
    "mirror": Verb(
        _mirror,
        "the provider's own mirroring, or the agent: choose, plan, set up, remove",
        _MIRROR_OPTIONS,
        "plan: what create would do, exit 4 where it would do anything. create: bring it about; run again, it changes\n"
        "nothing. list: all mirrors of ours. status: one, exit 1 where it is broken. delete: what bears our mark and\n"
        "this name. policy: the least that a role needs.\n\n"
        "examples:\n  guestagent mirror aws plan --vpc vpc-0a1b2c3d --tag role=web\n"
        "  guestagent mirror aws create --name web --source tag:role=web --target eni-0a1b2c3d --filter tcp/443\n"
        "  guestagent mirror aws plan -f mirror.toml --dry-run --json\n"
        "  guestagent mirror aws delete --name web",
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """One sentence, exit 2."""
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the verb table."""
    parser = _Parser(
        prog="guestagent",
        description="Copies the traffic of a VM's own NIC to a collector and accounts for every packet.",
    )
    parser.add_argument("--version", action="version", version=f"guestagent {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=verb.help,
            description=verb.help,
            epilog=verb.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for option in verb.options:
            sub.add_argument(*option.names, help=option.help, **option.more)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; every failure is one sentence on standard error and an exit code."""
    try:
        flags = vars(build_parser().parse_args(argv))
        return VERBS[flags.pop("verb")].run(flags)
    except GuestagentError as error:
        sys.stderr.write(f"guestagent: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        if os.environ.get("GUESTAGENT_TRACEBACK"):
            raise
        sys.stderr.write(
            f"guestagent: a bug of ours, {type(error).__name__}: {error}; "
            "run again with GUESTAGENT_TRACEBACK=1 and report what it prints\n"
        )
        return 1
