"""Where encoded bytes go: a file that can fill its disk, or standard output that can be slow. Neither loses a byte."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from guestagent.errors import ConfigError, RunError

_WAIT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EAGAIN}
_MOST_VECTORS = 512
"""Below IOV_MAX, 1024."""
_FILE_MODE, _DIRECTORY_MODE = 0o640, 0o750
"""Captures hold what users typed; nobody else on the collector may read them."""


class Output:
    """Bytes wait in memory until `flush` got them out; what is not out is not acknowledged."""

    def __init__(self, descriptor: int, *, size: int, is_file: bool, fsync: bool = False) -> None:
        self._descriptor = descriptor
        self._pending: list[bytes | memoryview] = []
        self._is_file, self._fsync = is_file, fsync
        self.size = size
        """Bytes of the file, those that wait included."""
        self.blocked_by = ""
        """Why the last flush could not write, empty where it could."""
        self._lost = ""
        """Why some of what was written may be lost: the kernel tells each failure of fdatasync(2) once."""

    @property
    def waiting_bytes(self) -> int:
        """What `flush` has not got out."""
        return sum(map(len, self._pending))

    def write(self, data: bytes) -> None:
        """Queue whole blocks."""
        self._pending.append(data)
        self.size += len(data)

    def flush(self) -> bool:
        """Write what waits; False where the disk is full or the reader slow: try again later.

        Raises RunError where the output is broken for good.
        """
        if self._lost:
            raise RunError(self._lost)
        while self._pending:
            batch = self._pending[:_MOST_VECTORS]
            try:
                count = os.writev(self._descriptor, batch)
            except OSError as error:
                if error.errno in _WAIT_ERRORS:
                    self.blocked_by = error.strerror or str(error)
                    return False
                raise RunError(f"the capture can't be written: {error.strerror}; it ends here") from error
            self._forget(count)
        self.blocked_by = ""
        if self._fsync and self._is_file:
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                self._lost = f"the capture can't be written: {error.strerror}; it ends here"
                raise RunError(self._lost) from error
        return True

    def _forget(self, count: int) -> None:
        done = 0
        for data in self._pending:
            if count < len(data):
                break
            count -= len(data)
            done += 1
        del self._pending[:done]
        if count:
            self._pending[0] = memoryview(self._pending[0])[count:]

    def close(self) -> bool:
        """Flush what can be flushed, then close; False where bytes were left."""
        done = True
        with contextlib.suppress(RunError):
            done = self.flush()
        if self._is_file:
            os.close(self._descriptor)
        return done


def make_directory(path: Path) -> None:
    """Create a directory for captures. Raises ConfigError with the reason."""
    try:
        path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"captures can't be written to {path}: {error.strerror}; choose another --write") from error


def open_file(path: Path, *, exclusive: bool, fsync: bool = False, whole_bytes: int | None = None) -> Output:
    """Open a capture for appending; `whole_bytes` cuts off a torn end first. Raises ConfigError, FileExistsError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_EXCL if exclusive else 0)
    descriptor = -1
    try:
        descriptor = os.open(path, flags, _FILE_MODE)
        if whole_bytes is not None:
            os.ftruncate(descriptor, whole_bytes)
    except FileExistsError:
        raise
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise ConfigError(f"{path} can't be written: {error.strerror}; choose another --write") from error
    return Output(descriptor, size=os.fstat(descriptor).st_size, is_file=True, fsync=fsync)


def lock(path: Path) -> int:
    """Hold `path` for this process alone until the descriptor is closed. Raises ConfigError where another holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
    except OSError as error:
        where = path.parent
        raise ConfigError(f"captures can't be written to {where}: {error.strerror}; choose another --write") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        place = path.parent if path.name.startswith(".") else path
        raise ConfigError(f"another collector writes to {place}: stop it or choose another --write") from None
    return descriptor
