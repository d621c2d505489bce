"""`guestagent check`: try for real everything that `run` would need, say each result, exit with the code of `run`."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guestagent.backstops import warnings
from guestagent.capture.engine import open_capture
from guestagent.capture.probes import PROBES
from guestagent.capture.tap import Tap
from guestagent.config import RunConfig
from guestagent.endpoint import Endpoint
from guestagent.errors import AbsentError, ConfigError, GuestagentError
from guestagent.governor.limits import DEFAULT_CPU_PERCENT, OWN_CORES
from guestagent.links.keyring import credentials
from guestagent.links.resolve import Address, look_up
from guestagent.observe import reports
from guestagent.rlimits import refuse_small
from guestagent.route import refuse_tunnel_loop
from guestagent.start import wish_of
from guestagent.tapstream.frames import ProtocolError

if TYPE_CHECKING:
    from guestagent.links.secure import Credentials


def check(config: RunConfig) -> int:
    """Print a line for each step; the exit code is that of the first step that would stop `run`."""
    for probe in PROBES:
        result = probe()
        _say(result.name, result.ok, result.detail)
    code = take_steps(_STEPS, config)
    for warning in warnings(_budget_cores(config)):
        sys.stdout.write(f"warn backstops: {warning}\n")
    for warning in one_of_two_names(config.to if config.streams > 1 else ()):
        sys.stdout.write(f"warn collector: {warning}\n")
    return code


def take_steps(steps: dict[str, Callable[[Any], str]], config: Any) -> int:
    """Print a line for each; the exit code of the first that fails, or 0."""
    code = 0
    for name, step in steps.items():
        try:
            _say(name, True, step(config))
        except GuestagentError as error:
            _say(name, False, str(error))
            code = code or error.exit_code
    return code


def _budget_cores(config: RunConfig) -> float:
    """Cores that the budget allows the agent itself; it is one thread."""
    percent = config.cpu if config.cpu is not None else 100.0 if config.full else DEFAULT_CPU_PERCENT
    return min(OWN_CORES, percent / 100 * (os.cpu_count() or 1))


def _say(name: str, ok: bool, detail: str) -> None:
    sys.stdout.write(f"{'ok  ' if ok else 'FAIL'} {name}: {detail}\n")


def _unless_awaited(step: Callable[[RunConfig], str], config: RunConfig) -> str:
    """With `wait` an interface that is not there yet is no reason for `run` to stop."""
    try:
        return step(config)
    except AbsentError as absent:
        if not config.wait:
            raise
        return f"not known yet: {absent}; run would wait for it"


def _capture(config: RunConfig) -> str:
    capture = open_capture(wish_of(config))
    tap = Tap(capture.sources)
    try:
        parts = [
            f"{source.interface.name} (MTU {source.interface.mtu}, {len(capture.program(source.interface.id, ()))} "
            "filter instructions)"
            for source in tap.sources
        ]
        return f"{', '.join(parts)} with the {capture.engine} engine, {tap.ring_bytes >> 20} MB of ring"
    finally:
        tap.close()


def _collector(config: RunConfig) -> str:
    """A collector that is not there, or refuses us, is no reason for `run` to stop: it waits."""
    first = config.to[0]
    if first.scheme == "dir":
        return f"none; the agent writes to {first.path}"
    if first.is_tunnel:
        return f"{', '.join(map(str, config.to))}: a tunnel has no answers; status tells what the network says of it"
    tls = credentials(config, config.to, server_side=False)
    return "; ".join(_answer(one, tls, config.allow_cleartext) for one in config.to)


def _answer(endpoint: Endpoint, tls: "Credentials | None", allow_cleartext: bool) -> str:
    from guestagent.answer import ask_collector

    try:
        said = ask_collector(endpoint, tls if endpoint.is_secure else None, allow_cleartext=allow_cleartext)
    except (OSError, ProtocolError) as error:
        return f"{endpoint} does not answer now ({getattr(error, 'strerror', None) or error}); run would wait for it"
    return f"{endpoint} {said}"


def one_of_two_names(collectors: Sequence[Endpoint]) -> Iterator[str]:
    """A sentence for each of them that an earlier one leads to, too: `run` starts, and that copy is refused."""
    found: dict[Address, Endpoint] = {}
    for endpoint in collectors:
        try:
            addresses = look_up(endpoint.host, endpoint.port)
        except (OSError, UnicodeError):
            continue  # `_answer` says so
        if other := next(filter(None, map(found.get, addresses)), None):
            yield f"{endpoint} and {other} lead to one collector, which takes one copy: name each collector once"
        found |= dict.fromkeys(addresses, endpoint)


def _route(config: RunConfig) -> str:
    for endpoint in config.to:
        refuse_tunnel_loop(endpoint, config.interface)
    return "copies do not come back into the capture"


def _limits(config: RunConfig) -> str:
    refuse_small(writes_captures=config.to[0].scheme == "dir")
    return "files, address space and file size are enough"


def _files(config: RunConfig) -> str:
    reports.check_writable(config.report)
    endpoint = config.to[0]
    if endpoint.scheme == "dir":
        place = Path(endpoint.path)
        there = next(one for one in (place, *place.absolute().parents) if one.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"captures can't be written to {place}: choose another dir:")
    return "can be written"


_STEPS: dict[str, Callable[[RunConfig], str]] = {
    "limits": _limits,
    "files": _files,
    "route": partial(_unless_awaited, _route),
    "capture": partial(_unless_awaited, _capture),
    "collector": _collector,
}
