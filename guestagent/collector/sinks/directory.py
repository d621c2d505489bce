"""The sink behind `--write DIRECTORY`: PATH/AGENT/START-N.pcapng, rotated, retained, mended after a crash."""

import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from guestagent.collector.sinks import reader
from guestagent.collector.sinks.output import Output, lock, make_directory, open_file
from guestagent.collector.sinks.track import Described, Resume, Track, recover_file, resume_of, section_of
from guestagent.errors import ConfigError
from guestagent.rlimits import largest_file_bytes
from guestagent.tapstream.hello import AgentHello

log = logging.getLogger("guestagent.collector")

_FILES_TO_MEND = 2
"""A crash can tear the file being written and, at a change of files, the one before."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a directory's files change, and how much of them is kept. 0 means no limit."""

    rotate_bytes: int = 256 << 20
    rotate_seconds: float = 0.0
    retain_bytes: int = 0


def _everybody(_agent_id: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's part of a directory; without arguments all of it."""

    is_ours: Callable[[str], bool] = _everybody
    """By name of the agent: nobody else writes, or mends, its files."""
    hold: int = -1
    """The lock of the directory, where all workers hold it together."""


ALL = Share()


class DirectorySink:
    """PATH/AGENT/START-N.pcapng: a file per agent and run, complete under its final name from the first byte."""

    def __init__(
        self,
        root: Path,
        rotation: Rotation,
        *,
        fsync: bool = False,
        wire_size: bool = False,
        share: Share = ALL,
    ) -> None:
        self._root, self._rotation = root, _within_limit(rotation, largest_file_bytes())
        self._fsync, self._wire_size = fsync, wire_size
        self._hold = lock_directory(root) if share.hold < 0 else share.hold
        self._tracks: list[_FileTrack] = []
        self._left: dict[bytes, tuple[Path, reader.Recovered]] = {}
        for folder in sorted(path for path in root.iterdir() if path.is_dir() and share.is_ours(path.name)):
            self._mend(folder)

    def renew(self, rotation: Rotation) -> None:
        """Other bounds from now on, also for the files that are open."""
        self._rotation = _within_limit(rotation, largest_file_bytes())
        for track in self._tracks:
            track.renew(self._rotation)

    def _mend(self, folder: Path) -> None:
        """Cut torn ends off the files that a killed collector was writing, and remember how far their runs came."""
        for facts, path in _files(folder)[-_FILES_TO_MEND:]:
            try:
                found = recover_file(path, from_last_mark=True)
            except OSError as error:
                raise ConfigError(f"{path} can't be read: {error.strerror}; choose another --write") from error
            if found is None:
                continue
            if found.whole_bytes < facts.st_size:
                open_file(path, exclusive=False, whole_bytes=found.whole_bytes).close()
            for run_id, place in found.runs.items():
                _, other = self._left.get(run_id, (path, found))
                if place.sequence >= other.runs[run_id].sequence:
                    self._left[run_id] = (path, found)

    def open_run(self, hello: AgentHello) -> tuple[Track, Resume | None]:
        """A track for a run, and how far it came in an earlier process."""
        folder = self._root / hello.agent_id
        make_directory(folder)
        run_id = bytes.fromhex(hello.run_id)
        path, found = self._left.get(run_id, (None, None))
        if path is not None and not (path.parent == folder and path.exists()):
            path = found = None  # retention took it, or it is another agent's
        pages = _Pages(folder, hello.started_ns, self._rotation, self._fsync, self._written)
        track = _FileTrack(hello, pages, path, found, wire_size=self._wire_size)
        self._left.pop(run_id, None)  # not before: where a file could not be opened, the agent comes back for it
        self._tracks = [one for one in self._tracks if not one.closed] + [track]
        pages.enforce_retention()  # runs that end before their file is full change none
        return track, resume_of(found.runs[run_id] if found else None)

    def _written(self) -> set[Path | None]:
        """The files that are being written now."""
        return {track.path for track in self._tracks if not track.closed}

    def blocked_by(self) -> str:
        """Why nothing can be written, empty where it can."""
        reasons = (track.output.blocked_by for track in self._tracks if not track.closed)
        return next(filter(None, reasons), "")

    def close(self) -> None:
        """Close every file and let the directory go."""
        for track in self._tracks:
            track.close()
        os.close(self._hold)


def lock_directory(root: Path) -> int:
    """Make a directory for captures and hold it; the descriptor. Raises ConfigError where another collector does."""
    make_directory(root)
    return lock(root / ".guestagent.lock")


def _within_limit(rotation: Rotation, largest_bytes: float) -> Rotation:
    """The same, with files that stay clear of what this process may write."""
    if largest_bytes == inf:
        return rotation
    return replace(rotation, rotate_bytes=int(min(rotation.rotate_bytes or inf, largest_bytes / 2)))


def _files(folder: Path) -> list[tuple[os.stat_result, Path]]:
    """The captures in a folder, oldest first; not what else has such a name, or is gone by now."""
    found = []
    for path in folder.glob("*.pcapng"):
        with suppress(OSError):
            facts = path.lstat()
            if stat.S_ISREG(facts.st_mode):
                found.append((facts, path))
    return sorted(found, key=_age)


def _age(file: tuple[os.stat_result, Path]) -> tuple[int, int, str]:
    """Files of one tick of the kernel's clock are told apart by their number."""
    facts, path = file
    return facts.st_mtime_ns, len(path.name), path.name


class _Pages:
    """The files of one run, one after the other."""

    def __init__(
        self, folder: Path, started_ns: int, rotation: Rotation, fsync: bool, written: Callable[[], set[Path | None]]
    ) -> None:
        self.folder, self.rotation, self.fsync, self._written = folder, rotation, fsync, written
        seconds, nanoseconds = divmod(started_ns, 1_000_000_000)
        self._start = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds)) + f".{nanoseconds // 1_000_000:03d}Z"
        self._number = 0
        self.current: Path | None = None

    def reopen(self, path: Path, whole_bytes: int) -> Output:
        """Go on in a file of an earlier process."""
        self.current = path
        return open_file(path, exclusive=False, fsync=self.fsync, whole_bytes=whole_bytes)

    def next(self) -> Output:
        """Open the next file that does not exist yet."""
        while True:
            path = self.folder / f"{self._start}-{self._number}.pcapng"
            self._number += 1
            try:
                output = open_file(path, exclusive=True, fsync=self.fsync)
            except FileExistsError:
                continue
            self.current = path
            return output

    def enforce_retention(self) -> None:
        """Delete the oldest files while the folder holds more than is to be kept; never one that is being written.

        Another run may have one open beside ours: of a machine with the same name, or with a connection that broke.
        """
        if not self.rotation.retain_bytes:
            return
        files = _files(self.folder)
        excess = sum(facts.st_size for facts, _ in files) - self.rotation.retain_bytes
        written = self._written()
        for facts, path in files:
            if excess <= 0:
                return
            if path not in written:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    log.warning("%s can't be deleted, more than retain_bytes is kept: %s", path, error.strerror)
                else:
                    excess -= facts.st_size


class _FileTrack(Track):
    """A track with files of its own."""

    def __init__(
        self, hello: AgentHello, pages: _Pages, path: Path | None, found: reader.Recovered | None, *, wire_size: bool
    ) -> None:
        self._pages = pages
        self.closed = False
        self._opened_at: float | None = None
        if path is None or found is None:
            super().__init__(hello, self._begin(hello), Described(), wire_size=wire_size)
        else:
            output = pages.reopen(path, found.whole_bytes)
            place = found.runs[bytes.fromhex(hello.run_id)]
            super().__init__(hello, output, Described(found.described), place, wire_size=wire_size)

    @property
    def path(self) -> Path | None:
        """The file that is being written."""
        return self._pages.current

    def renew(self, rotation: Rotation) -> None:
        """Other bounds from now on; a smaller one makes room on a full disk."""
        self._pages.rotation = rotation
        self._pages.enforce_retention()

    def _begin(self, hello: AgentHello) -> Output:
        output = self._pages.next()
        comment = f"agent {hello.agent_id} on {hello.host}, run {hello.run_id}"
        tags = ", ".join(f"{name} {text}" for name, text in hello.tags.items())
        output.write(section_of(comment + (f", cloud {hello.cloud}" if hello.cloud else "") + (tags and f", {tags}")))
        return output

    def turn_page(self, now: float) -> None:
        """Change the file where it is big or old enough."""
        rotation = self._pages.rotation
        if self._opened_at is None:
            self._opened_at = now
        big = rotation.rotate_bytes and self.output.size >= rotation.rotate_bytes
        old = rotation.rotate_seconds and now - self._opened_at >= rotation.rotate_seconds
        if (big or old) and self.output.flush():
            try:
                following = self._begin(self.hello)
            except ConfigError as error:
                log.warning("the capture goes on in its last file: %s", error)
                return
            self.statistics("goes on in the next file")
            self.output.close()
            self.output, self._described = following, Described()
            self._opened_at, self._written, self._indexes = now, {}, {}
            for facts in self._facts.values():
                self.interface(facts)
            self.remark(self._remark, lasts=True)
            self.mark(*self._last_mark)
            self.output.flush()
            self._pages.enforce_retention()

    def end(self, reason: str) -> None:
        """Statistics, then the file is closed."""
        try:
            super().end(reason)
        finally:
            self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        if not self.closed:
            self.closed = True
            self.output.close()
