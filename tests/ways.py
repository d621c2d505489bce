"""A way to a sensor whose socket takes what the test says, and frames for it."""

import errno
from collections import Counter
from collections.abc import Sequence

from guestagent.encap.segment import NO_OFFLOAD
from guestagent.encap.tunnel import TUNNELS
from guestagent.links.way import Way
from tests.frames import IPV4, UDP, ethernet, ipv4, udp


class FakeSender:
    """Takes datagrams as a script says: how many, and the errno of the next."""

    def __init__(self, room_bytes: int, script: Sequence[tuple[int, int]] = ()) -> None:
        self.room_bytes, self.script, self.lanes, self.outer_bytes = room_bytes, list(script), 64, 42
        self.calls, self.mtu_changes, self.segmentation = 0, 0, "on"
        self.is_astray = False
        self.faults: Counter[str] = Counter()
        self.sent: list[bytes] = []

    def send(self, lane: int, datagrams: Sequence[Sequence[bytes]], sizes: Sequence[int]) -> tuple[int, int]:
        """See Sender.send."""
        taken, number = self.script.pop(0) if self.script else (len(datagrams), 0)
        if number == errno.EMSGSIZE:
            self.room_bytes = 1000
        self.sent += [b"".join(one) for one in datagrams[:taken]]
        assert all(len(b"".join(one)) == size for one, size in zip(datagrams, sizes, strict=True))
        return taken, number


def way_of(sender: FakeSender, policy: str = "split", scheme: str = "vxlan") -> Way:
    """A way through it."""
    return Way(TUNNELS[scheme], sender, policy)  # type: ignore[arg-type]


def add(way: Way, *frames: bytes, lane: int = 3) -> None:
    """Queue plain frames."""
    for frame in frames:
        way.add((memoryview(frame), NO_OFFLOAD, len(frame), None), way.lanes[lane], 7)


FRAMES = [ethernet(IPV4, ipv4(UDP, udp(bytes([n]) * 100))) for n in range(5)]
