"""The collector inside the agent, for `--to dir:PATH`: a registry over a directory, without sockets."""

from pathlib import Path

from guestagent import __version__
from guestagent.collector.registry import Registry
from guestagent.collector.run import Run
from guestagent.collector.sinks.directory import DirectorySink, Rotation
from guestagent.tapstream.hello import AgentHello, CollectorHello


class EmbeddedCollector:
    """One run into one directory."""

    def __init__(
        self, path: str, rotate_bytes: int, rotate_seconds: float, retain_bytes: int, *, wire_size: bool = False
    ) -> None:
        rotation = Rotation(rotate_bytes, rotate_seconds, retain_bytes)
        self._registry = Registry(DirectorySink(Path(path), rotation, wire_size=wire_size), "embedded", __version__)
        self._run: Run | None = None

    def open(self, hello: AgentHello) -> tuple[Run, CollectorHello]:
        """Begin the run."""
        self._run, answer = self._registry.open(hello)
        return self._run, answer

    def close(self) -> None:
        """End the run and close its file; idempotent."""
        if self._run is not None and not self._run.ended:
            self._registry.said_goodbye(self._run, "the agent ended")
            self._registry.close()
