"""Collectors that each get every copy of one desk, without sockets: what they hold, and a ring that forgets."""

from collections import Counter, deque
from typing import Any, NamedTuple

from guestagent.capture.engine import Capture, Wish
from guestagent.capture.source import RetiredBlock
from guestagent.collector.registry import Registry
from guestagent.collector.run import Run
from guestagent.collector.sinks.nothing import NothingSink
from guestagent.collector.sinks.track import Resume, Track
from guestagent.desk import Desk
from guestagent.sharing import Share, Sharing
from guestagent.tapstream.hello import AgentHello, CollectorHello
from guestagent.tapstream.session import Pending
from tests.fakes import EPOCH_NS, FakeSource, parsed

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


class Disk(NothingSink):
    """Remembers what an earlier process left; takes no more while it is full."""

    def __init__(self, left: Resume | None = None) -> None:
        self._left = left
        self.is_full = False

    def open_run(self, hello: AgentHello) -> tuple[Track, Resume | None]:  # type: ignore[override]
        """A track that waits for room."""
        track, _ = super().open_run(hello)
        track.output.flush = lambda: self._flush(track)  # type: ignore[method-assign]
        return track, self._left

    def _flush(self, track: Track) -> bool:
        track.output.blocked_by = "No space left on device" if self.is_full else ""
        return not self.is_full


class Took(NamedTuple):
    """What a frame brought."""

    records: int
    stale: int
    interface: int


class FileCollector:
    """A collector that writes files: what it wrote it has, also after kill -9; it tells when it is asked.

    What it says comes from its own books (collector.run); `frames` is what it really has.
    """

    def __init__(self, share: Share, name: str) -> None:
        self.share, self.name = share, name
        self.is_connected = False
        self.on_the_way: deque[tuple[Pending, bytes]] = deque()
        self.frames: dict[int, Took] = {}
        """By sequence."""
        self.waiting: dict[int, Took] = {}
        """Those that it took and has no room for."""
        self.told = 0
        """The last frame that the agent knows it has."""
        self._begin(None)

    def _begin(self, left: Resume | None) -> None:
        self.disk = Disk(left)
        self._registry = Registry(self.disk, self.name, "0.1")
        self._run: Run | None = None

    def restart(self, *, forgets: bool = False) -> None:
        """kill -9, and another process with the files of this one, or without."""
        self.lose_connection()
        self.waiting.clear()
        stale = Counter[int]()
        for one in self.frames.values():
            stale[one.interface] += one.stale
        self._begin(None if forgets or not self.frames else Resume(self._held, dict(stale)))

    @property
    def run(self) -> Run:
        """Its side of the agent's run."""
        assert self._run is not None
        return self._run

    @property
    def _held(self) -> int:
        return max(self.frames, default=0)

    def hear(self) -> CollectorHello:
        """An agent's hello, on a new connection; the answer, which may never reach the agent."""
        hello = self.share.hello()
        assert hello.acknowledged.get(self.name, 0) == self.told
        self.lose_connection()
        self._run, answer = self._registry.open(hello)
        self._wrote()
        return answer

    def connect(self) -> None:
        """Greet, and go on with the run."""
        answer = self.hear()
        self.told = self._held
        self.is_connected = True
        self.share.resumed(answer)

    def send(self) -> bool:
        """The agent writes one more frame into the connection."""
        pending = self.share.next_frame(0.0)
        if pending is not None:
            self.on_the_way.append((pending, _bytes_of(pending)))
        return pending is not None

    def receive(self, most: int = 1) -> None:
        """One turn: take frames, which are the next ones, and their memory is still what it was; then write them.

        While what an earlier turn brought waits for room, no more is taken.
        """
        for _ in range(0 if self.run.track.output.blocked_by else min(most, len(self.on_the_way))):
            pending, sent = self.on_the_way.popleft()
            assert _bytes_of(pending) == sent, "a frame went back while it was being sent"
            repeated = self.run.place.duplicates
            self.run.frame(parsed(sent), 0.0)
            assert self.run.place.gaps == 0
            took = _took(pending)
            if self.run.place.duplicates > repeated:
                assert took == self.waiting[pending.sequence], "a frame came again that was written"
            self.waiting[pending.sequence] = took
        if self.run.flush(0.0):
            self._wrote()

    def _wrote(self) -> None:
        if not self.run.track.output.blocked_by:
            self.frames |= self.waiting
            self.waiting.clear()

    def acknowledge(self) -> None:
        """Say how far it has everything."""
        self.told = self._held
        self.share.acknowledged(self.run.acknowledged_sequence, self.name, self.run.notes())

    def lose_connection(self) -> bool:
        """What is on the way is lost."""
        was_connected, self.is_connected = self.is_connected, False
        self.on_the_way.clear()
        return was_connected

    def known(self) -> int:
        """Packets that the agent knows it has."""
        return sum(one.records - one.stale for at, one in self.frames.items() if at <= self.told)


def _took(pending: Pending) -> Took:
    if (loan := pending.loan) is None:
        return Took(0, 0, 0)
    return Took(loan.records, loan.source.stale_of[loan.block.number], loan.source.interface.id)


def _bytes_of(pending: Pending) -> bytes:
    return bytes(pending.frame) + bytes(pending.body or b"")


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
