"""The two hellos and the INFO facts: JSON, strictly checked, every size bounded.

Names that will become file names come from here alone, so a hostile one ends here.
"""

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from guestagent.model import LINK_TYPE_ETHERNET, MOST_ADDRESSES, MOST_INTERFACES, Interface
from guestagent.tapstream.frames import ProtocolError, printable

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MAC = re.compile(r"(?:[0-9a-f]{2}(?::[0-9a-f]{2}){5})?")
MOST_TAGS = 16
MOST_TAG_CHARACTERS = 64
MOST_COLLECTORS = 16
"""That took a run in turn; of more, the agent names the last ones."""
MOST_TEXT_CHARACTERS = 256
_MOST_INTEGER = 2**63 - 1
_MOST_SPEED_MBIT = 2**32 - 1
"""The pcapng option wants bit/s in 64 bits."""


def is_name(text: str) -> bool:
    """May `text` name an agent, a host or a file of ours? Dots alone may not."""
    return bool(NAME.fullmatch(text)) and text.strip(".") != ""


@dataclass(frozen=True, slots=True)
class AgentHello:
    """What an agent says first. `first_sequence` is the oldest frame it still holds, or would send next."""

    agent_id: str
    run_id: str
    host: str
    version: str
    layout: str
    ring_bytes: int
    started_ns: int
    first_sequence: int
    interfaces: tuple[Interface, ...]
    cloud: str = ""
    dedupe: str = ""
    """The address domain within which this agent takes leases; empty: none."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    """The last sequence that each collector acknowledged, by collector id: what it lacks up to there, it lost."""
    tags: dict[str, str] = field(default_factory=dict)
    """The operator's own words on this machine."""
    copy: int = 0
    """Which of several collectors this is that each get the whole run, from 1; 0 where it is the only one."""


@dataclass(frozen=True, slots=True)
class CollectorHello:
    """What a collector answers. `held_sequence` is the last frame of this run that it holds, None for an unknown run.

    `unsupported_gso` are its counts of stale records in this run up to there, by interface id.
    """

    collector_id: str
    version: str
    held_sequence: int | None
    unsupported_gso: dict[int, int]
    taken_sequence: int = 0
    """The last frame that it took: beyond `held_sequence` where it has no room to write it, and may still do so."""


def _field(
    value: dict[str, Any], key: str, kind: type, where: str, *, least: int = 0, most: int = _MOST_INTEGER
) -> Any:
    """A whole number in its range, or a text that is fit to be shown and encoded: the rest of it is escaped.

    Lengths are those of what is shown: another worker, to whom the hello is handed over, finds the same.
    """
    found: Any = value.get(key)
    if found.__class__ is not kind:
        raise ProtocolError(f"{where}: {key} is {'missing' if found is None else 'no ' + kind.__name__}")
    if isinstance(found, str):
        shown = printable(found)
        if len(shown) > MOST_TEXT_CHARACTERS:
            raise ProtocolError(f"{where}: {key} is longer than {MOST_TEXT_CHARACTERS} characters")
        return shown
    if isinstance(found, int) and not least <= found <= most:
        raise ProtocolError(f"{where}: {key} is out of range")
    return found


def _name(value: dict[str, Any], key: str, where: str) -> str:
    found: str = _field(value, key, str, where)
    if not is_name(found):
        raise ProtocolError(f"{where}: {key} must be 1 to 64 of A-Z a-z 0-9 . _ -, not {found!r:.80}")
    return found


def _run_id(value: dict[str, Any]) -> str:
    found: str = _field(value, "run_id", str, "hello")
    if not _RUN_ID.fullmatch(found):
        raise ProtocolError("hello: run_id must be 32 hexadecimal digits")
    return found


def decode_interface(value: Any) -> Interface:
    """One interface of a hello or an INFO. Raises ProtocolError."""
    where = "interface"
    if not isinstance(value, dict):
        raise ProtocolError("interface: no JSON object")
    mac = _field(value, "mac", str, where)
    addresses = value.get("addresses", [])
    if not _MAC.fullmatch(mac):
        raise ProtocolError(f"{where}: mac must be six hexadecimal pairs")
    if not isinstance(addresses, list) or len(addresses) > MOST_ADDRESSES:
        raise ProtocolError(f"{where}: addresses must be a list of at most {MOST_ADDRESSES}")
    if not all(isinstance(address, str) and len(address) <= MOST_TEXT_CHARACTERS for address in addresses):
        raise ProtocolError(f"{where}: addresses must be texts")
    if _field(value, "link_type", int, where) != LINK_TYPE_ETHERNET:
        raise ProtocolError(f"{where}: link_type must be {LINK_TYPE_ETHERNET}, Ethernet")
    identifier = _field(value, "id", int, where)
    if identifier > 0xFFFF:
        raise ProtocolError(f"{where}: id must fit 16 bits")
    return Interface(
        id=identifier,
        name=_field(value, "name", str, where),
        mac=mac,
        mtu=_field(value, "mtu", int, where),
        addresses=tuple(addresses),
        speed_mbit=_field(value, "speed_mbit", int, where, most=_MOST_SPEED_MBIT),
    )


def encode_interface(interface: Interface) -> dict[str, Any]:
    """The JSON object of an INFO frame."""
    return {"interface": asdict(interface)}


def encode_agent_hello(hello: AgentHello) -> dict[str, Any]:
    """The JSON object of an agent's hello."""
    return asdict(hello)


def decode_agent_hello(value: dict[str, Any], layouts: tuple[str, ...]) -> AgentHello:
    """Raises ProtocolError with the field that is wrong. `layouts` are the record layouts that we can read."""
    interfaces = value.get("interfaces")
    if not isinstance(interfaces, list) or not 1 <= len(interfaces) <= MOST_INTERFACES:
        raise ProtocolError(f"hello: interfaces must be a list of 1 to {MOST_INTERFACES}")
    layout = _field(value, "layout", str, "hello")
    if layout not in layouts:
        raise ProtocolError(f"hello: record layout {layout!r:.80} is not known here, only {', '.join(layouts)}")
    return AgentHello(
        agent_id=_name(value, "agent_id", "hello"),
        run_id=_run_id(value),
        host=_name(value, "host", "hello"),
        version=_field(value, "version", str, "hello"),
        layout=layout,
        ring_bytes=_field(value, "ring_bytes", int, "hello"),
        started_ns=_field(value, "started_ns", int, "hello"),
        first_sequence=_field(value, "first_sequence", int, "hello", least=1),
        interfaces=tuple(decode_interface(one) for one in interfaces),
        cloud=_field(value, "cloud", str, "hello"),
        dedupe=_name(value, "dedupe", "hello") if value.get("dedupe") else "",
        acknowledged=_acknowledged(value.get("acknowledged", {})),
        tags=_tags(value.get("tags", {})),
        copy=_field(value, "copy", int, "hello") if "copy" in value else 0,
    )


def _tags(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > MOST_TAGS:
        raise ProtocolError(f"hello: tags must be a JSON object of at most {MOST_TAGS}")
    shown = {name: printable(text) for name, text in value.items() if is_name(name) and isinstance(text, str)}
    if len(shown) < len(value) or any(len(text) > MOST_TAG_CHARACTERS for text in shown.values()):
        raise ProtocolError(f"hello: tags must be texts of at most {MOST_TAG_CHARACTERS} characters by name")
    return shown


def _acknowledged(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > MOST_COLLECTORS:
        raise ProtocolError(f"hello: acknowledged must be a JSON object of at most {MOST_COLLECTORS}")
    if not all(
        is_name(name) and type(sequence) is int and 0 <= sequence <= _MOST_INTEGER for name, sequence in value.items()
    ):
        raise ProtocolError("hello: acknowledged must be sequences by collector")
    return dict(value)


def encode_collector_hello(hello: CollectorHello) -> dict[str, Any]:
    """The JSON object of a collector's answer."""
    return {**asdict(hello), "unsupported_gso": {str(key): count for key, count in hello.unsupported_gso.items()}}


def decode_counts(value: Any) -> dict[int, int]:
    """Counts by interface id, as ACK and hello carry them. Raises ProtocolError."""
    if not isinstance(value, dict) or len(value) > MOST_INTERFACES:
        raise ProtocolError("counts by interface must be a JSON object")
    counts = {}
    for key, count in value.items():
        if not key.isdecimal() or len(key) > 5 or type(count) is not int or count < 0:
            raise ProtocolError("counts by interface must be whole numbers")
        counts[int(key)] = count
    return counts


def decode_collector_hello(value: dict[str, Any]) -> CollectorHello:
    """Raises ProtocolError with the field that is wrong."""
    held = value.get("held_sequence")
    return CollectorHello(
        collector_id=_name(value, "collector_id", "collector's hello"),
        version=_field(value, "version", str, "collector's hello"),
        held_sequence=None if held is None else _field(value, "held_sequence", int, "collector's hello"),
        unsupported_gso=decode_counts(value.get("unsupported_gso", {})),
        taken_sequence=_field(value, "taken_sequence", int, "collector's hello") if "taken_sequence" in value else 0,
    )
