"""The `guestagent` command: a table of verbs. Each verb imports its rooms inside, so `--help` costs nothing."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from guestagent import __version__
from guestagent.errors import ConfigError, GuestagentError, HostError

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
_METRICS = _option("--metrics", metavar="ADDRESS", help="serve Prometheus at 127.0.0.1:9795 or unix:PATH; default: no")
_LOG = _option("--log", metavar="text|json", help="form of the log lines on standard error; default: text")

_TO_HELP = (
    "tls://HOST[:4795], tcp://HOST[:4795], dir:PATH, or a tunnel to a sensor: vxlan://HOST?vni=N, "
    "geneve://HOST?vni=N, gre://HOST?key=N, "
    "erspan://HOST?session=N; default: dir:captures"
)

_TRANSPORT = (
    _option("--tls-ca", metavar="FILE", help="PEM: authorities that the other end's certificate must come from"),
    _option("--tls-cert", metavar="FILE", help="PEM: our certificate"),
    _option("--tls-key", metavar="FILE", help="PEM: its private key"),
    _option("--allow-cleartext", **_SWITCH, help="copies readable on the way, also to or on a public address"),
)

_RUN_OPTIONS = (
    _CONFIG,
    _option(
        "-i", "--interface", action="append", metavar="IFACE", help="interface or glob; default: the default route's"
    ),
    _option("--to", action="append", metavar="URL", help=_TO_HELP),
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
    _option("--wait", **_SWITCH, help="for an interface that is not there yet, rather than exit 2"),
    _option("--agent-id", metavar="NAME", help="default: the cloud's instance id, else the machine id"),
    *_TRANSPORT,
    _DURATION,
    _REPORT,
    _METRICS,
    _LOG,
)
_COLLECT_OPTIONS = (
    _CONFIG,
    _option(
        "--listen",
        action="append",
        metavar="URL",
        help="tls://HOST:4795, tcp://HOST:4795, or vxlan:// geneve:// gre:// erspan://HOST",
    ),
    _option("--write", metavar="PATH|-", help="directory, NAME.pcapng, or - for standard output; default: captures"),
    _option("--tap", metavar="NAME", help="TAP device with every frame; tap-%%a: one for each agent"),
    _option(
        "--relay", action="append", metavar="URL", help="sensor that gets every frame, vxlan://HOST?vni=N and so on"
    ),
    *_TRANSPORT,
    _DURATION,
    _REPORT,
    _METRICS,
    _LOG,
)


def _run(flags: Flags) -> int:
    from guestagent.config import load_run
    from guestagent.observe import logs
    from guestagent.start import begin

    reread = partial(load_run, flags.pop("config"), flags)
    config = reread()
    logs.start(as_json=config.log == "json")
    capture = begin(config)
    from guestagent.agent import run_agent

    return run_agent(config, capture, reread)


def _collect(flags: Flags) -> int:
    from guestagent.collect import Collector
    from guestagent.config import load_collect
    from guestagent.observe import logs

    config = load_collect(flags.pop("config"), flags)
    logs.start(as_json=config.log == "json")
    return Collector(config).run()


def _status(flags: Flags) -> int:
    from guestagent.observe.show import show_status

    return show_status(as_json=bool(flags["json"]))


def _check(flags: Flags) -> int:
    from guestagent.check import check
    from guestagent.config import load_run

    return check(load_run(flags.pop("config"), flags))


def _pki(flags: Flags) -> int:
    from guestagent.pki import make

    print(make(flags["what"], flags["name"] or "", flags["host"] or (), flags["dir"]))
    return 0


def _merge(flags: Flags) -> int:
    from guestagent.merge import merge

    print(merge(flags["files"], flags["output"]))
    return 0


def _demo(flags: Flags) -> int:
    from guestagent.demo import demo

    return demo(flags["seconds"])


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
    "pki": Verb(
        _pki,
        "make a small private CA for TLS, and certificates from it",
        (
            _option("what", choices=("init", "agent", "collector"), help="the authority, or a certificate from it"),
            _option("name", nargs="?", help="the agent's id, or the collector's host name"),
            _option("--host", action="append", metavar="NAME|IP", help="another name of a collector in --to"),
            _option("--dir", default="pki", metavar="PATH", help="where everything lies; default: pki"),
        ),
        "examples:\n  guestagent pki init\n  guestagent pki collector collector-1 --host 10.0.0.9\n"
        "  guestagent pki agent web-1",
    ),
    "merge": Verb(
        _merge,
        "join the files of several collectors: each packet once",
        (
            _option("files", nargs="+", metavar="FILE", help="pcapng files of guestagent collect"),
            _option("-o", "--output", required=True, metavar="OUT", help="the pcapng file to make"),
        ),
    ),
    "demo": Verb(
        _demo,
        "two hosts in network namespaces: traffic, agent, collector, result",
        (_option("--seconds", type=float, default=8.0, metavar="N", help="how long traffic runs; default: 8"),),
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


_SHORT_OF = {
    errno.EMFILE: "this process may open no more files: raise its limit (ulimit -n, LimitNOFILE)",
    errno.ENFILE: "this host may open no more files: close some or raise fs.file-max",
    errno.ENOMEM: "memory ran out: free some, or raise the limit of this process (ulimit -v, LimitAS)",
}


def _shortage(error: Exception) -> str:
    """What this host ran out of, empty where that is not what happened; the loader tells it in words alone."""
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and "failed to map" in str(error)):
        return _SHORT_OF[errno.ENOMEM]
    return _SHORT_OF.get(error.errno or 0, "") if isinstance(error, OSError) else ""


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
        if shortage := _shortage(error):
            sys.stderr.write(f"guestagent: {shortage}\n")
            return HostError.exit_code
        if os.environ.get("GUESTAGENT_TRACEBACK"):
            raise
        sys.stderr.write(
            f"guestagent: a bug of ours, {type(error).__name__}: {error}; "
            "run again with GUESTAGENT_TRACEBACK=1 and report what it prints\n"
        )
        return 1
