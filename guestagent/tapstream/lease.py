"""The payload of a LEASE."""

from typing import Any, NamedTuple


class Lease(NamedTuple):
    """Addresses whose incoming packets are left to their own agents, and for how long."""

    peers: tuple[str, ...]
    seconds: float


def decode_lease(value: dict[str, Any]) -> Lease:
    """To be replaced."""
    return Lease(tuple(value.get("peers", ())), float(value.get("seconds", 0)))
