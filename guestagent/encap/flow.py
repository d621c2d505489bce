"""Which way a copied packet goes: both directions of a conversation the same one, without a table of flows. Pure.

The hash differs from the capture filter's (capture/flowhash.py) in purpose: that one samples flows in classic BPF under
a secret seed and exempts what has none; this one spreads every frame, is the same on all machines, so that both ends'
taps choose alike, and has to be cheap in Python.
"""

from collections.abc import Sequence

SOURCE_PORTS = 64
"""Enough to spread over a sensor's queues, few enough that a stateful firewall on the way keeps a small table."""


def flow_hash(frame: bytes | memoryview) -> int:
    """32 bits that both directions of the frame's conversation share; all that `headers` keeps of a frame is enough.

    TCP and UDP by addresses and ports, other IP and fragments by addresses, an ICMP error by the packet that it
    quotes, what is not IP by its two MAC addresses.
    """
    raise NotImplementedError


def source_port(value: int) -> int:
    """Which of SOURCE_PORTS sockets a flow leaves through."""
    return value >> 26


def name_hash(name: str) -> int:
    """A hash for `pick` of what is no flow: an agent, which stays with its collector."""
    raise NotImplementedError


def pick(value: int, destinations: Sequence[str]) -> str:
    """The destination of a flow hash, one at least to choose from: losing one moves its flows alone (rendezvous)."""
    raise NotImplementedError
