"""The payload of a LEASE: whose packets the agent may leave to their senders' agents, and for how long. Pure."""

from ipaddress import IPv6Address, ip_address
from typing import Any, NamedTuple

from guestagent.tapstream.frames import ProtocolError

MOST_PEERS = 16
"""Each is a compare in the capture filter: 3 instructions for IPv4, 12 for IPv6 of other networks; with the largest
program of the governor, 699 and 843. Where the kernel's memory for filters is too small for that, the agent does
without."""
MOST_SECONDS = 10.0


class Lease(NamedTuple):
    """Addresses whose incoming packets are left to their own agents; no address revokes the lease before."""

    peers: tuple[str, ...]
    seconds: float


def leasable(text: str) -> str | None:
    """An address as a lease may name it, in its usual form; None for one that says nothing about who sent a packet."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    is_mapped = isinstance(address, IPv6Address) and address.ipv4_mapped is not None
    is_shared = address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local
    return None if is_shared or is_mapped else str(address)


def encode_lease(lease: Lease) -> dict[str, Any]:
    """The JSON object."""
    return {"peers": list(lease.peers), "seconds": lease.seconds}


def decode_lease(value: dict[str, Any]) -> Lease:
    """Raises ProtocolError with what is wrong."""
    peers, seconds = value.get("peers"), value.get("seconds")
    if not isinstance(peers, list) or len(peers) > MOST_PEERS:
        raise ProtocolError(f"lease: peers must be a list of at most {MOST_PEERS}")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_SECONDS:
        raise ProtocolError(f"lease: seconds must be a number up to {MOST_SECONDS:.0f}")
    if not all(isinstance(peer, str) and leasable(peer) == peer for peer in peers):
        raise ProtocolError("lease: peers must be addresses of one host each")
    return Lease(tuple(peers), float(seconds))
