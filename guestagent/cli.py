"""The `guestagent` command: a table of verbs. Each verb imports its rooms inside, so `--help` costs nothing."""

import argparse
import errno
import os
import resource
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from guestagent import __version__
from guestagent.errors import ConfigError, GuestagentError, HostError
from guestagent.flags import (
    CHECK_OPTIONS,
    CLOUD_INIT_OPTIONS,
    COLLECT_OPTIONS,
    ENROL_OPTIONS,
    MIRROR_OPTIONS,
    PKI_OPTIONS,
    RUN_OPTIONS,
    SWITCH,
    Option,
    option,
)

Flags = dict[str, Any]


def _run(flags: Flags) -> int:
    from guestagent.config import load_run
    from guestagent.observe import logs
    from guestagent.start import begin

    reread = partial(load_run, flags.pop("config"), flags)
    config = reread()
    logs.start(as_json=config.log == "json")
    capture = begin(config)
    cloud = None
    if config.metadata:
        from guestagent.cloud import CloudChild

        cloud = CloudChild()
    from guestagent.agent import run_agent

    return run_agent(config, capture, reread, cloud)


def _collect(flags: Flags) -> int:
    from guestagent.collect import collect
    from guestagent.config import load_collect
    from guestagent.observe import logs

    reread = partial(load_collect, flags.pop("config"), flags)
    config = reread()
    logs.start(as_json=config.log == "json")
    return collect(config, reread)


def _status(flags: Flags) -> int:
    from guestagent.observe.show import show_status

    return show_status(as_json=bool(flags["json"]))


def _check(flags: Flags) -> int:
    from guestagent.config import load_collect, load_run
    from guestagent.settings import names_key

    path = flags.pop("config")
    if names_key(path, flags, "listen"):
        from guestagent.checkcollect import check_collect

        return check_collect(load_collect(path, flags))
    from guestagent.check import check

    return check(load_run(path, flags))


def _pki(flags: Flags) -> int:
    from guestagent.enrol.command import make_token, serve_authority
    from guestagent.pki import make

    if served := {"token": make_token, "serve": serve_authority}.get(flags["what"]):
        return served(flags)
    print(make(flags["what"], flags["name"] or "", flags["host"] or (), flags["dir"]))
    return 0


def _enrol(flags: Flags) -> int:
    from guestagent.enrol.command import enrol_here

    return enrol_here(flags)


def _merge(flags: Flags) -> int:
    from guestagent.merge import merge

    print(merge(flags["files"], flags["output"]))
    return 0


def _demo(flags: Flags) -> int:
    from guestagent.demo import demo

    return demo(flags["seconds"])


def _cloud_init(flags: Flags) -> int:
    from guestagent.cloudinit.command import render

    return render(flags)


def _support_bundle(flags: Flags) -> int:
    from pathlib import Path

    from guestagent.bundle import CONFIGS, write_bundle

    configs = [Path(one) for one in flags["config"] or ()] or sorted(CONFIGS.glob("*.toml"))
    print(write_bundle(flags["output"] or "", configs))
    return 0


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
        RUN_OPTIONS,
        "examples:\n  guestagent run\n  guestagent run -i eth0 --to tcp://10.0.0.9 --filter 'not port 22' --slice 256",
    ),
    "collect": Verb(
        _collect,
        "receive from agents and write pcapng",
        COLLECT_OPTIONS,
        "examples:\n  guestagent collect --listen tcp://0.0.0.0:4795 --write /var/captures\n"
        "  guestagent collect --listen tcp://127.0.0.1:4795 --write - | tshark -r -",
    ),
    "status": Verb(
        _status,
        "what runs here, the ledger, limits and why",
        (option("--json", **SWITCH, help="the snapshots as JSON"),),
    ),
    "check": Verb(
        _check, "try everything that run, or with --listen collect, would need, and exit with its code", CHECK_OPTIONS
    ),
    "pki": Verb(
        _pki,
        "make a small private CA for TLS, and certificates from it",
        PKI_OPTIONS,
        "token, serve: VMs make their own keys and get certificates with `guestagent enrol`\n\n"
        "examples:\n  guestagent pki init\n  guestagent pki collector collector-1 --host 10.0.0.9\n"
        "  guestagent pki agent web-1\n  guestagent pki token 'web-*' --minutes 30 --uses 20\n"
        "  guestagent pki serve collector-1 --listen 10.0.0.9:4796",
    ),
    "enrol": Verb(
        _enrol,
        "make this VM's key, and get its certificate from `guestagent pki serve`",
        ENROL_OPTIONS,
    ),
    "merge": Verb(
        _merge,
        "join the files of several collectors: each packet once",
        (
            option("files", nargs="+", metavar="FILE", help="pcapng files of guestagent collect"),
            option("-o", "--output", required=True, metavar="OUT", help="the pcapng file to make"),
        ),
    ),
    "demo": Verb(
        _demo,
        "two hosts in network namespaces: traffic, agent, collector, result",
        (option("--seconds", type=float, default=8.0, metavar="N", help="how long traffic runs; default: 8"),),
    ),
    "cloud-init": Verb(
        _cloud_init,
        "what brings the agent to a new VM, as user-data or vendor-data",
        CLOUD_INIT_OPTIONS,
        "example:\n  guestagent cloud-init render --family apt --repository https://packages.example/guestagent \\\n"
        "      --repository-key guestagent.asc --to tls://collector.example --ca ca.crt -o user-data",
    ),
    "support-bundle": Verb(
        _support_bundle,
        "status, logs, versions and config in one file, without secrets or payload",
        (
            option("-c", "--config", action="append", metavar="FILE", help="default: all in /etc/guestagent"),
            option("-o", "--output", metavar="FILE", help="default: guestagent-support-HOST-TIME.tar.gz"),
        ),
    ),
    "mirror": Verb(
        _mirror,
        "the provider's own mirroring, or the agent: choose, plan, set up, remove",
        MIRROR_OPTIONS,
        "plan: what create would do, exit 4 where it would do anything. create: bring it about; run again, it changes\n"
        "nothing. list: all mirrors of ours. status: one, exit 1 where it is broken. delete: what bears our mark and\n"
        "this name. policy: the least that a role needs.\n\n"
        "examples:\n  guestagent mirror aws plan --vpc vpc-0a1b2c3d --tag role=web\n"
        "  guestagent mirror aws create --name web --source tag:role=web --target eni-0a1b2c3d --filter tcp/443\n"
        "  guestagent mirror aws plan -f mirror.toml --dry-run --json\n"
        "  guestagent mirror aws delete --name web\n"
        "  guestagent mirror gcp create --name web --source subnet:web --target sensors --region europe-west3\n"
        "  guestagent mirror ovs create --name web --source tag:role=web --target 'vxlan://10.0.0.9?vni=7'",
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
        for one in verb.options:
            sub.add_argument(*one.names, help=one.help, **one.more)
    return parser


_SHORT_OF = {
    errno.EMFILE: "this process may open no more files: raise its limit (ulimit -n, LimitNOFILE)",
    errno.ENFILE: "this host may open no more files: close some or raise fs.file-max",
    errno.ENOMEM: "memory ran out: free some, or raise the limit of this process (ulimit -v, LimitAS)",
}


def _lack(error: Exception) -> str:
    """What this host ran out of or never had; empty where it is neither.

    The loader tells of memory in words alone. CPython itself may fail in disorder where it gets none (SystemError).
    """
    if isinstance(error, ModuleNotFoundError) and (module := (error.name or "").partition(".")[0]) != __package__:
        if module in sys.stdlib_module_names:
            return f"{sys.executable} lacks the module {module} of Python's own library: install all of Python"
        return f"{sys.executable} lacks the module {module}: install its package (psutil: python3-psutil, or by pip)"
    is_disorder = isinstance(error, SystemError) and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    is_unmapped = isinstance(error, ImportError) and "failed to map" in str(error)
    if isinstance(error, MemoryError) or is_disorder or is_unmapped:
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
        if lack := _lack(error):
            sys.stderr.write(f"guestagent: {lack}\n")
            return HostError.exit_code
        if os.environ.get("GUESTAGENT_TRACEBACK"):
            raise
        sys.stderr.write(
            f"guestagent: a bug of ours, {type(error).__name__}: {error}; "
            "run again with GUESTAGENT_TRACEBACK=1 and report what it prints\n"
        )
        return 1
