"""A Python function in a forked child: started, awaited, its result or its traceback handed back."""

import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Generic, NoReturn, TypeVar, cast

from guestagent.errors import RunError

T = TypeVar("T")

RESULT_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.002


class Task(Generic[T]):
    """A function at work in a child process."""

    def __init__(self, title: str, pid: int, outcome: Connection) -> None:
        self.title = title
        self.pid = pid
        self._outcome = outcome
        self._message: bytes | None = None
        self._exit_code: int | None = None

    def result(self, timeout: float = RESULT_TIMEOUT_SECONDS) -> T:
        """What the function returned; RunError with the child's traceback where it raised or was killed."""
        if not self._receive(timeout):
            raise TimeoutError(f"{self.title} did not end within {timeout} s")
        exit_code = self.wait()
        if not self._message:
            raise RunError(f"{self.title} ended without a result (exit code {exit_code})")
        succeeded, value = pickle.loads(self._message)  # noqa: S301 - our own child's words
        if not succeeded:
            raise RunError(f"{self.title} failed:\n{value}")
        return cast(T, value)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end; False when it has not come in time."""
        if not self._receive(timeout):
            return False
        self.wait()
        return True

    def poll(self) -> int | None:
        """The exit code, a signal as its negative number, or None while it runs."""
        if self._exit_code is None:
            self._receive(0)  # a child with a large result ends only when somebody reads it
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._exit_code = os.waitstatus_to_exitcode(status)
        return self._exit_code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended; TimeoutError when it has not in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (exit_code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.title} did not end within {timeout} s")
            time.sleep(POLL_SECONDS)
        return exit_code

    def terminate(self) -> None:
        """Ask it to end; its result is lost."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:  # a reaped number may belong to a stranger
            os.kill(self.pid, number)

    def _receive(self, timeout: float | None) -> bool:
        """Whether the child has spoken or gone; keeps its words, empty when it went without any."""
        if self._message is None and self._outcome.poll(timeout):
            try:
                self._message = self._outcome.recv_bytes()
            except (EOFError, ConnectionResetError):
                self._message = b""
            self._outcome.close()
        return self._message is not None


def fork(title: str, enter: Callable[[], None], function: Callable[[], T]) -> Task[T]:
    """Run `enter`, then `function`, in a child."""
    ours, theirs = Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        _work(theirs, enter, function)
    theirs.close()
    return Task(title, pid, ours)


def _work(outcome: Connection, enter: Callable[[], None], function: Callable[[], object]) -> NoReturn:
    """The child's whole life. It must never return into the parent's frames: their `finally` would close the lab."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends us
        enter()
        outcome.send_bytes(pickle.dumps((True, function())))
    except BaseException:  # noqa: BLE001 - whatever it was, the parent shall read it
        outcome.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        os._exit(0)
