"""The one loop: epoll, callbacks, signals as events. Time comes from here and goes to everyone else as an argument."""

import errno
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from types import FrameType
from typing import Protocol

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
EDGE = select.EPOLLET

OUT_OF_FILES = frozenset((errno.EMFILE, errno.ENFILE))
"""No descriptor is left, of this process or of this host: what needs one has to wait."""

_MOST_EVENTS = 64
_PAUSE_SECONDS = 0.1
_REST_STEP_SECONDS = 0.004
"""A burst at 20 Gbit/s brings 10 MB meanwhile, a sixth of the default ring."""


@dataclass(frozen=True, slots=True)
class Rest:
    """How long the ready ones wait for others, so that more is done at once, unless enough has gathered."""

    seconds: float
    """Since the last turn, for everyone."""
    patience_seconds: float
    """The same where none but patient ones are ready; the timeout ends it."""
    is_enough: Callable[[], object]
    """Asked after each wake-up, so it should cost little."""


NO_REST = Rest(0.0, 0.0, lambda: True)


class HasFileno(Protocol):
    """Anything that epoll can watch."""

    def fileno(self) -> int:
        """Its descriptor."""


class Loop:
    """Calls back with the ready events of each watched descriptor; a signal wakes it and is handled between events.

    A callback that raises OSError because it was out of files is not ready for a while: its listener stays readable,
    and would turn the loop round and round.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._events: dict[int, int] = {}
        self._patient: set[int] = set()
        self._paused: dict[int, float] = {}
        """When to look at it again, by descriptor."""
        self._turned_at = -inf
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._old_handlers: dict[int, object] = {}
        self._old_wakeup = -1
        self.watch(self._wake_read, READABLE, self._drain_wake)

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def watch(
        self, watched: HasFileno, events: int, callback: Callable[[int], None], *, is_patient: bool = False
    ) -> None:
        """Call `callback(events)` when `watched` is ready; a patient one, watched by EDGE, may wait for others (Rest).

        Raises PermissionError for a regular file.
        """
        self._epoll.register(watched.fileno(), events)
        self._callbacks[watched.fileno()] = callback
        self._events[watched.fileno()] = events
        (self._patient.add if is_patient else self._patient.discard)(watched.fileno())

    def change(self, watched: HasFileno, events: int) -> None:
        """Watch for other events."""
        self._events[watched.fileno()] = events
        self._epoll.modify(watched.fileno(), events)

    def forget(self, watched: HasFileno) -> None:
        """Stop watching; before the descriptor is closed. Harmless where it was not watched."""
        self._paused.pop(watched.fileno(), None)
        self._patient.discard(watched.fileno())
        self._events.pop(watched.fileno(), None)
        if self._callbacks.pop(watched.fileno(), None):
            self._epoll.unregister(watched.fileno())

    def on_signals(self, handlers: dict[signal.Signals, Callable[[], None]]) -> None:
        """Call these between events when the signals come; `close` restores the old handlers."""
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self._signal_handlers = handlers
        for number in handlers:
            self._old_handlers[number] = signal.signal(number, _ignore_in_handler)

    def _drain_wake(self, _events: int) -> None:
        for number in self._wake_read.recv(64):
            if handler := self._signal_handlers.get(signal.Signals(number)):
                handler()

    def run_once(self, timeout_seconds: float, rest: Rest = NO_REST) -> None:
        """Wait at most so long, then call back everyone who is ready, when they have rested."""
        if self._paused:
            timeout_seconds = min(timeout_seconds, self._resume())
        rested_at = self._turned_at + rest.seconds
        patient_until = max(rested_at, min(self._turned_at + rest.patience_seconds, time.monotonic() + timeout_seconds))
        ready: dict[int, int] = {}
        is_impatient = self._gather(ready, timeout_seconds)
        looked_at = -inf
        while ready and not rest.is_enough():
            now = time.monotonic()
            seconds = (rested_at if is_impatient else patient_until) - now
            if seconds <= 0:
                break
            # Each wake-up is paid for, so who comes alone ends none but its own wait, and who comes in a crowd a step.
            if now - looked_at < _REST_STEP_SECONDS:
                time.sleep(min(seconds, _REST_STEP_SECONDS))
                seconds = 0.0
            looked_at = now
            is_impatient |= self._gather(ready, seconds)
        self._call(ready)
        self._turned_at = time.monotonic()

    def _gather(self, ready: dict[int, int], seconds: float) -> bool:
        """Wait at most so long for somebody to be ready, and add them; was anyone of them impatient?

        An edge is told once, a level again: what was ready still counts.
        """
        is_impatient = False
        for descriptor, events in self._epoll.poll(seconds if seconds > 0 else 0.0, _MOST_EVENTS):
            ready[descriptor] = ready.get(descriptor, 0) | events
            is_impatient |= descriptor not in self._patient
        return is_impatient

    def _call(self, ready: dict[int, int]) -> None:
        for descriptor, events in ready.items():
            callback = self._callbacks.get(descriptor)
            if callback:
                try:
                    callback(events)
                except OSError as error:
                    if error.errno not in OUT_OF_FILES:
                        raise
                    self._pause(descriptor)

    def _pause(self, descriptor: int) -> None:
        if descriptor in self._callbacks:
            self._paused[descriptor] = time.monotonic() + _PAUSE_SECONDS
            self._epoll.modify(descriptor, 0)

    def _resume(self) -> float:
        """Watch again what was paused long enough; the seconds until the next is."""
        now = time.monotonic()
        for descriptor in [one for one, until in self._paused.items() if until <= now]:
            del self._paused[descriptor]
            self._epoll.modify(descriptor, self._events[descriptor])
        return min(self._paused.values(), default=inf) - now

    def close(self) -> None:
        """Restore the signals, close what is ours."""
        if self._old_handlers:
            signal.set_wakeup_fd(self._old_wakeup)
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            self._old_handlers.clear()
        self._epoll.close()
        self._wake_read.close()
        self._wake_write.close()


def _ignore_in_handler(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor carries the signal; Python only needs a handler to be there."""
