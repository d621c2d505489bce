"""The sink of a collector without `--write`: runs are checked and counted, and what is kept of them is nothing."""

from guestagent.capture.block import walk
from guestagent.collector.sinks.directory import Rotation
from guestagent.collector.sinks.output import Output
from guestagent.collector.sinks.track import Described, Track
from guestagent.tapstream.hello import AgentHello


class _Nowhere(Output):
    def __init__(self) -> None:
        super().__init__(-1, size=0, is_file=False)

    def write(self, data: bytes) -> None:
        """Forget it."""


class _Counted(Track):
    """A track that makes no packets of its records."""

    def records(self, interface_id: int, records: memoryview, count: int) -> tuple[int, int]:
        """(packets, stale records). Raises MalformedBlock."""
        stale = sum(record is None for record in walk(records, count))
        return count - stale, stale


class NothingSink:
    """Keeps nothing."""

    def open_run(self, hello: AgentHello) -> tuple[Track, None]:
        """A track for a run, which no earlier process can have known."""
        return _Counted(hello, _Nowhere(), Described()), None

    def blocked_by(self) -> str:
        """Nothing blocks."""
        return ""

    def renew(self, rotation: Rotation) -> None:
        """Nothing is bounded."""

    def close(self) -> None:
        """Nothing to do."""
