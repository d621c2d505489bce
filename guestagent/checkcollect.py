"""`guestagent check` of a collector's config: try what `collect` would need, exit with its code, keep nothing open."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from guestagent.check import take_steps
from guestagent.collect import check_exposure
from guestagent.collector.intake import open_intakes
from guestagent.collector.listeners import open_listeners
from guestagent.collector.sinks.directory import lock_directory
from guestagent.collector.sinks.tapdevice import TapDevice
from guestagent.config import CollectConfig
from guestagent.endpoint import Endpoint
from guestagent.errors import ConfigError
from guestagent.links.keyring import credentials
from guestagent.observe import reports
from guestagent.observe.status import everything
from guestagent.rlimits import refuse_small


def check_collect(config: CollectConfig) -> int:
    """Print a line for each step; the exit code is that of the first step that would stop `collect`."""
    return take_steps(_STEPS, config)


def _limits(config: CollectConfig) -> str:
    refuse_small(writes_captures=config.write != "-")
    return "files, address space and file size are enough"


def _tls(config: CollectConfig) -> str:
    if credentials(config, config.listen, server_side=True) is None:
        return "not asked for"
    who = ", ".join(config.tls_allow) or "whoever our authority vouches for"
    return f"{config.tls_cert} and its key are of use; agents: {who}"


def _exposure(config: CollectConfig) -> str:
    check_exposure(config)
    return "no copy comes in clear text over a public address, or that is allowed"


def _files(config: CollectConfig) -> str:
    reports.check_writable(config.report)
    if not config.write or config.write == "-":
        return "none but the report"
    place = Path(config.write)
    folder = place.parent if config.write.endswith(".pcapng") else place
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"captures can't be written to {folder}: choose another --write")
    if folder is place and place.exists():
        try:
            os.close(lock_directory(place))
        except ConfigError:
            return f"{place} is written to by {_running() or _refuse(place)}"
    return f"{config.write} can be written"


def _refuse(place: Path) -> str:
    raise ConfigError(f"another collector writes to {place}: stop it or choose another --write")


def _running() -> str:
    """The collector that runs here already, as where a config is checked before a reload; empty where none does."""
    found = everything()
    names = [name for name in (*found.running, *found.silent) if name.startswith("collector-")]
    return f"the collector that runs now ({', '.join(names)})" if names else ""


def _doors(config: CollectConfig) -> str:
    return ", ".join(_door(one, config.workers) for one in config.listen)


def _door(endpoint: Endpoint, workers: int) -> str:
    try:
        if endpoint.is_tunnel:
            for intake in open_intakes(endpoint):
                intake.close()
        else:
            for listener in open_listeners(endpoint.host, endpoint.port, workers):
                listener.close()
    except ConfigError as error:
        in_use = getattr(error.__cause__, "errno", None) == errno.EADDRINUSE
        if in_use and (who := _running()):
            return f"{endpoint} is taken by {who}"
        raise
    return f"{endpoint} can be listened to"


def _outlets(config: CollectConfig) -> str:
    said = []
    if config.tap:
        TapDevice(config.tap.replace("%a", "check")).close()
        said.append("TAP devices can be made")
    if config.relay:
        said.append(f"copies go on to {', '.join(map(str, config.relay))}; a tunnel has no answers")
    return "; ".join(said) or "none"


_STEPS: dict[str, Callable[[CollectConfig], str]] = {
    "limits": _limits,
    "tls": _tls,
    "exposure": _exposure,
    "files": _files,
    "listen": _doors,
    "outlets": _outlets,
}
