"""The sinks behind `--write FILE.pcapng` and `--write -`: every run into one output."""

import os
from collections.abc import Callable
from pathlib import Path

from guestagent.collector.sinks import reader
from guestagent.collector.sinks.directory import ALL, DirectorySink, Rotation, Share
from guestagent.collector.sinks.nothing import NothingSink
from guestagent.collector.sinks.output import Output, lock, make_directory, open_file
from guestagent.collector.sinks.track import Described, Resume, Track, recover_file, resume_of, section_of
from guestagent.errors import ConfigError, RunError
from guestagent.tapstream.hello import AgentHello

MOST_WAITING_BYTES = 16_000_000
"""While a disk is full or a reader away: who greets again and again with another run adds what describes it."""


class SharedSink:
    """Every run into one output."""

    def __init__(
        self, output: Output, found: reader.Recovered | None = None, hold: int = -1, *, wire_size: bool = False
    ) -> None:
        self._output, self._wire_size = output, wire_size
        self._hold = hold
        """The lock of the file, -1 where there is none."""
        self._runs = found.runs if found else {}
        self._described = Described(found.described if found else 0)
        if output.size == 0:
            output.write(section_of("the agents are named with their interfaces"))

    def open_run(self, hello: AgentHello) -> tuple[Track, Resume | None]:
        """A track for a run, and how far it came in an earlier process. Raises RunError where too much waits."""
        if self._output.waiting_bytes > MOST_WAITING_BYTES:
            raise RunError(f"nothing can be written ({self._output.blocked_by}), so no further run is taken")
        place = self._runs.pop(bytes.fromhex(hello.run_id), None)
        track = Track(hello, self._output, self._described, place, wire_size=self._wire_size)
        return track, resume_of(place)

    def blocked_by(self) -> str:
        """Why nothing can be written, empty where it can."""
        return self._output.blocked_by

    def renew(self, rotation: Rotation) -> None:
        """One output is never changed."""

    def close(self) -> None:
        """Flush and close."""
        self._output.close()
        if self._hold >= 0:
            os.close(self._hold)


def standard_output(descriptor: int, *, wire_size: bool = False) -> SharedSink:
    """The sink behind `--write -`."""
    return SharedSink(Output(descriptor, size=0, is_file=False), wire_size=wire_size)


def single_file(path: Path, *, fsync: bool = False, wire_size: bool = False) -> SharedSink:
    """The sink behind `--write NAME.pcapng`; goes on in a file of our own. Raises ConfigError for a foreign one."""
    make_directory(path.parent)
    hold = lock(path)
    found = recover_file(path, from_last_mark=False)
    if found is None:
        os.close(hold)
        raise ConfigError(f"{path} exists and is no capture of guestagent: choose another --write")
    output = open_file(path, exclusive=False, fsync=fsync, whole_bytes=found.whole_bytes)
    return SharedSink(output, found, hold, wire_size=wire_size)


def open_sink(
    write: str,
    rotation: Rotation,
    *,
    fsync: bool,
    wire_size: bool,
    stdout: Callable[[], int],
    share: Share = ALL,
) -> SharedSink | DirectorySink | NothingSink:
    """The sink that `--write` names; none where it is empty."""
    if not write:
        return NothingSink()
    if write == "-":
        return standard_output(stdout(), wire_size=wire_size)
    if write.endswith(".pcapng"):
        return single_file(Path(write), fsync=fsync, wire_size=wire_size)
    return DirectorySink(Path(write), rotation, fsync=fsync, wire_size=wire_size, share=share)
