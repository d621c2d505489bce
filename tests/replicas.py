"""Collectors that each get every copy of one desk, without sockets: what they hold, and a ring that forgets."""

from collections import deque
from typing import Any

from guestagent.capture.engine import Capture, Wish
from guestagent.capture.source import RetiredBlock
from guestagent.desk import Desk
from guestagent.sharing import Share, Sharing
from guestagent.tapstream.hello import CollectorHello
from guestagent.tapstream.session import Pending
from tests.fakes import EPOCH_NS, FakeSource

BLOCKS = 8


class WatchedRing(FakeSource):
    """Ends like a ring: what was given back is written over at once. Remembers how many stale records a block has."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stale_of: list[int] = []

    def fill(self, packets: int, stale: int, first_ns: int = EPOCH_NS) -> None:
        """A block, or a drop where there is no room."""
        if len(self.taken) + len(self.waiting) >= self.block_count:
            self.refuse(packets)
            return
        self.retire([bytes(60)] * packets, first_ns, stale)
        self.waiting[-1] = self.waiting[-1]._replace(number=len(self.stale_of))
        self.stale_of.append(stale)

    def release(self, block: RetiredBlock) -> None:
        """The kernel has it again."""
        super().release(block)
        block.memory[:] = bytes(len(block.memory))
        block.memory.release()


def desk_of(*sources: FakeSource) -> Desk:
    """A desk without filters."""
    return Desk(Capture(list(sources), {}, {}, Wish(), "ring", ""), "vm-1")


class FileCollector:
    """A collector that writes files: what it took it has, also after kill -9; it tells when it is asked."""

    def __init__(self, share: Share, name: str) -> None:
        self.share, self.name = share, name
        self.is_connected = False
        self.on_the_way: deque[tuple[Pending, bytes]] = deque()
        self.frames: dict[int, tuple[int, int]] = {}
        """(records, stale ones) by sequence."""
        self.held = self.place = 0
        """The last frame that it has, and the last that has passed it."""
        self.told = 0
        """The last frame that the agent knows it has."""

    def stale(self) -> dict[int, int]:
        """As an ACK tells it; interface 0 has them all."""
        return {0: sum(stale for _, stale in self.frames.values())}

    def connect(self) -> None:
        """Greet, as the collector's Run does."""
        hello = self.share.hello()
        answer = CollectorHello(self.name, "", self.held or None, self.stale())
        assert hello.acknowledged.get(self.name, 0) == self.told
        self.place = max(self.place, hello.first_sequence - 1)
        self.told = self.held
        self.on_the_way.clear()
        self.is_connected = True
        self.share.resumed(answer)

    def send(self) -> bool:
        """The agent writes one more frame into the connection."""
        pending = self.share.next_frame(0.0)
        if pending is not None:
            self.on_the_way.append((pending, bytes(pending.frame)))
        return pending is not None

    def receive(self) -> None:
        """Take one frame: it is the next one, and its memory is still what it was."""
        pending, sent = self.on_the_way.popleft()
        assert bytes(pending.frame) == sent, "a frame went back while it was being sent"
        assert pending.sequence == self.place + 1
        self.held = self.place = pending.sequence
        loan = pending.loan
        stale = loan.source.stale_of[loan.block.number] if loan else 0
        self.frames[pending.sequence] = (loan.records if loan else 0, stale)

    def acknowledge(self) -> None:
        """Say how far it has everything."""
        self.told = max(self.told, self.held)
        self.share.acknowledged(self.place, self.name, {"unsupported_gso": {"0": self.stale()[0]}})

    def lose_connection(self) -> bool:
        """What is on the way is lost."""
        was_connected, self.is_connected = self.is_connected, False
        self.on_the_way.clear()
        return was_connected

    def known(self) -> int:
        """Packets that the agent knows it has."""
        return sum(records - stale for at, (records, stale) in self.frames.items() if at <= self.told)


def sharing_of(ring: WatchedRing, count: int = 2) -> tuple[Sharing, list[FileCollector]]:
    """A desk over this ring, and collectors that are connected."""
    sharing = Sharing(desk_of(ring), count)
    collectors = [FileCollector(share, f"c{at}") for at, share in enumerate(sharing.shares)]
    for one in collectors:
        one.connect()
    return sharing, collectors


def copy(one: FileCollector) -> None:
    """Everything that there is goes to a collector and is acknowledged."""
    while one.send():
        one.receive()
    one.acknowledge()
