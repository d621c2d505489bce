"""TOML and flags become frozen dataclasses; what contradicts itself in them is an error with its key.

One table per verb says which parser reads a key (values.py); the dataclasses say what it means and its default.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from guestagent import values
from guestagent.endpoint import TUNNEL_FORMS, Endpoint
from guestagent.errors import ConfigError
from guestagent.settings import merge
from guestagent.trust import check_transport
from guestagent.values import FLOOR_NAMES, SHEDDING

MODES_OF = {"tunnels": ("balance", "replicate"), "collectors": ("failover", "spread", "replicate")}
MODES = tuple(dict.fromkeys(mode for modes in MODES_OF.values() for mode in modes))
MOST_COPIES = 3
"""Streams that the VM pays for, each with CPU and bandwidth; a collector relays to any number of sensors."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What `guestagent run` needs."""

    interface: tuple[str, ...] = ()
    """Names and globs; none: those of the default route."""
    to: tuple[Endpoint, ...] = (Endpoint("dir", path="captures"),)
    mode: str = ""
    """Of several tunnels: each flow to one that is well (`balance`, the default), or every copy to all (`replicate`).

    Of several collectors: the first that is well (`failover`, the default), each agent its own order (`spread`), or
    every copy to all (`replicate`).
    """
    tls_ca: str = ""
    """PEM file of the authorities that the other end's certificate must come from."""
    tls_cert: str = ""
    """PEM file of our certificate and what leads to the authority."""
    tls_key: str = ""
    """PEM file of its private key."""
    allow_cleartext: bool = False
    """Send copies that anybody on the way can read to an address that is not private."""
    oversize: str = "split"
    """What becomes of frames that are longer than a tunnel has room for: `split`, `truncate`, `drop`."""
    keys: dict[str, int] = field(default_factory=dict)
    """Tunnel keys by `INTERFACE`, `in`, `out`, `INTERFACE in`, `INTERFACE out`; the URL's for the rest."""
    filter: str = ""
    """A pcap-filter expression."""
    slice: str | int = "full"
    """`full`, `headers`, or bytes of each frame."""
    keep: float = 1.0
    """Fraction of the flows to copy, each whole in both directions or not at all."""
    seed: int | None = None
    """32 bits that choose the flows; the same in a fleet, or the ends of a flow disagree. None: random each time."""
    ring: int = 0
    """Bytes of each interface's ring; 0: 64 MB, or less on a small VM."""
    promiscuous: bool = False
    engine: str = "auto"
    wait: bool = False
    """For an interface that is not there yet, as at boot; without it that is an error."""
    cpu: float | None = None
    """Percent of the VM. None here and below: the default budget, or with `full` no bound."""
    rate: float | None = None
    """Bytes/s that may leave, headers of the packets that carry them included."""
    packets: float | None = None
    """Records/s that may leave."""
    yields: bool | None = None
    """Step back while the VM is under pressure."""
    full: bool = False
    """Copy everything, also what the collector can't take; budgets hold only where they are given."""
    shed: tuple[str, ...] = SHEDDING
    """What gives way first when a budget binds."""
    floor: tuple[str, ...] = ()
    """What never gives way."""
    dedupe: str = ""
    """The address domain (VPC) within which each packet is left to its sender's agent; empty: every end copies."""
    duration: float = 0.0
    """Seconds from the first capture; 0: until a signal."""
    report: str = ""
    metrics: tuple[str, int] | str = ""
    """Where Prometheus may ask: (loopback address, port) or the path of a UNIX socket; empty: nowhere."""
    log: str = "text"
    tags: dict[str, str] = field(default_factory=dict)
    """The operator's own words on this machine, for captures and reports of the collector."""
    agent_id: str = ""
    """Empty: the cloud's instance id, else the machine id."""
    metadata: bool = True
    """Ask the cloud's metadata service at the start, for the hello."""
    rotate_bytes: int = 256 << 20
    rotate_seconds: float = 0.0
    retain_bytes: int = 0
    wire_size: bool = False
    """With `dir:`, as in CollectConfig."""

    @property
    def streams(self) -> int:
        """How many collectors get every copy by streams of their own."""
        return len(self.to) if self.mode == "replicate" and self.to[0].is_stream else 1


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """What `guestagent collect` needs."""

    listen: tuple[Endpoint, ...] = ()
    tls_ca: str = ""
    """PEM file of the authorities that the other end's certificate must come from."""
    tls_cert: str = ""
    """PEM file of our certificate and what leads to the authority."""
    tls_key: str = ""
    """PEM file of its private key."""
    tls_allow: tuple[str, ...] = ()
    """Names of agents, `*` for any part; none: every agent that our authority vouches for."""
    allow_cleartext: bool = False
    """Take copies that anybody on the way can read on an address that is not private."""
    write: str = "captures"
    """Empty, nothing is written: the default where a TAP device or a relay takes the frames."""
    tap: str = ""
    """Name of a TAP device; with `%a` one for each agent."""
    relay: tuple[Endpoint, ...] = ()
    """Sensors that get every frame."""
    mode: str = "balance"
    """Of several sensors: each flow to one of them that is well (`balance`), or every copy to all (`replicate`)."""
    oversize: str = "split"
    """What becomes of frames that are longer than a tunnel has room for: `split`, `truncate`, `drop`."""
    keys: dict[str, int] = field(default_factory=dict)
    """Tunnel keys by `AGENT/INTERFACE`, `AGENT`, or `in` and `out`, alone or behind these; the URL's for the rest."""
    rotate_bytes: int = 256 << 20
    rotate_seconds: float = 0.0
    retain_bytes: int = 0
    wire_size: bool = False
    """Write super-packets as the frames that were on the wire; TAP device and relay always do."""
    fsync: bool = False
    """Acknowledge after fdatasync, so that a power loss takes nothing that was acknowledged."""
    workers: int = 1
    """Processes that share the agents among them."""
    duration: float = 0.0
    report: str = ""
    metrics: tuple[str, int] | str = ""
    """As in RunConfig."""
    log: str = "text"
    collector_id: str = ""


_COMMON: dict[str, Callable[[Any, str], Any]] = {
    "rotate_bytes": values.size,
    "rotate_seconds": values.seconds,
    "retain_bytes": values.size,
    "wire_size": values.switch,
    "duration": values.seconds,
    "report": values.text,
    "metrics": values.metrics_address,
    "log": values.one_of("text", "json"),
    "tls.ca": values.text,
    "tls.cert": values.text,
    "tls.key": values.text,
    "allow_cleartext": values.switch,
}
_TUNNELS: dict[str, Callable[[Any, str], Any]] = {
    "oversize": values.one_of("split", "truncate", "drop"),
    "keys": values.keys,
}
_RUN_KEYS: dict[str, Callable[[Any, str], Any]] = {
    **_COMMON,
    "interface": values.list_of(values.text),
    "to": values.list_of(values.destination),
    "mode": values.one_of(*MODES),
    **_TUNNELS,
    "filter": values.text,
    "slice": values.slice_,
    "keep": values.fraction,
    "seed": values.seed,
    "ring": values.size,
    "promiscuous": values.switch,
    "engine": values.one_of("auto", "ring", "portable"),
    "wait": values.switch,
    "cpu": values.percent,
    "rate": values.rate,
    "packets": values.packets,
    "yield": values.on_or_off,
    "full": values.switch,
    "shed": values.list_of(values.one_of(*SHEDDING)),
    "floor": values.list_of(values.one_of(*FLOOR_NAMES)),
    "dedupe": values.name,
    "tags": values.tags,
    "agent_id": values.name,
    "metadata": values.switch,
}
_COLLECT_KEYS: dict[str, Callable[[Any, str], Any]] = {
    **_COMMON,
    "listen": values.list_of(values.listener),
    **_TUNNELS,
    "mode": values.one_of(*MODES_OF["tunnels"]),
    "tls.allow": values.list_of(values.text),
    "write": values.text,
    "tap": values.tap,
    "relay": values.list_of(values.destination),
    "fsync": values.switch,
    "workers": values.workers,
    "collector_id": values.name,
}
KNOWN_KEYS = frozenset({*_RUN_KEYS, *_COLLECT_KEYS})


def load_run(path: str | None, flags: dict[str, Any]) -> RunConfig:
    """The config of `run` and `check`. Raises ConfigError."""
    config = RunConfig(**merge(path, flags, _RUN_KEYS))
    if not config.to:
        raise ConfigError(f'{path}: to: no destination: write for example to = "tls://10.0.0.9"')
    return _checked(config)


def _checked(config: RunConfig) -> RunConfig:
    if len(config.to) > 1 and not (_all(config, "is_tunnel") or _all(config, "is_stream")):
        raise ConfigError(
            "to: several destinations are all collectors, tls:// or tcp://, or all tunnels: name one kind"
        )
    _check_mode(config)
    check_transport(config, config.to)
    if len(set(config.to)) < len(config.to):
        raise ConfigError("to: the same destination is named twice: name each once")
    if config.keys:
        _check_keys(config.keys, config.to, "--to")
    return config


def _all(config: RunConfig, kind: str) -> bool:
    return all(getattr(one, kind) for one in config.to)


def _check_mode(config: RunConfig) -> None:
    kind = "tunnels" if config.to[0].is_tunnel else "collectors"
    if config.mode and config.mode not in MODES_OF[kind]:
        raise ConfigError(f"mode: {config.mode!r} is not for {kind}: choose among {', '.join(MODES_OF[kind])}")
    if config.mode != "replicate" or config.to[0].is_tunnel:
        return
    if len(config.to) == 1:
        raise ConfigError(
            "mode: 'replicate' copies to several collectors, and to names one: name more, or leave it out"
        )
    if config.streams > MOST_COPIES:
        raise ConfigError(
            f"to: {config.streams} collectors are more than the {MOST_COPIES} that mode = 'replicate' takes: "
            "name fewer, and have one of them relay"
        )
    if config.dedupe:
        raise ConfigError("mode: with 'replicate' one collector can't lease packets for another: leave dedupe out")


def _check_keys(keys: dict[str, int], endpoints: tuple[Endpoint, ...], flag: str) -> None:
    from guestagent.encap.tunnel import TUNNELS

    if not endpoints or not endpoints[0].is_tunnel:
        raise ConfigError(f"keys: only tunnels have keys: leave them out, or name a tunnel with {flag}")
    tunnel = min((TUNNELS[one.scheme] for one in endpoints), key=lambda one: one.most_key)
    for name, key in keys.items():
        if key > tunnel.most_key:
            raise ConfigError(f"keys.{name}: {key} is more than the {tunnel.most_key} that a {tunnel.key_name} can be")


def load_collect(path: str | None, flags: dict[str, Any]) -> CollectConfig:
    """The config of `collect`. Raises ConfigError."""
    merged = merge(path, flags, _COLLECT_KEYS)
    if merged.get("tap") or merged.get("relay"):
        merged.setdefault("write", "")
    config = CollectConfig(**merged)
    if not config.listen:
        raise ConfigError("no --listen: write for example --listen tcp://10.0.0.9:4795")
    for one in config.relay:
        if not one.is_tunnel:
            raise ConfigError(f"relay: {one} is no tunnel: write {', '.join(TUNNEL_FORMS.values())}")
    if len(set(config.relay)) < len(config.relay):
        raise ConfigError("relay: the same sensor is named twice: name each once")
    if config.keys:
        _check_keys(config.keys, config.relay, "--relay")
    check_transport(config, (*config.listen, *config.relay))
    if config.workers > 1:
        _check_workers(config)
    return config


def _check_workers(config: CollectConfig) -> None:
    """What only one process can have."""
    if config.write == "-" or config.write.endswith(".pcapng"):
        raise ConfigError("workers: one file has one writer: name a directory in --write")
    if config.tap:
        raise ConfigError("workers: a TAP device belongs to one process: leave --workers or --tap out")
    if tunnel := next((one for one in config.listen if one.is_tunnel), None):
        raise ConfigError(f"workers: {tunnel} is taken by one process: run another collector for it")
