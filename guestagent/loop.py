"""The one loop: epoll, callbacks, signals as events. Time comes from here and goes to everyone else as an argument."""

import select
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
EDGE = select.EPOLLET

_MOST_EVENTS = 64
_REST_STEP_SECONDS = 0.004
"""A burst at 20 Gbit/s brings 10 MB meanwhile, a sixth of the default ring."""


class HasFileno(Protocol):
    """Anything that epoll can watch."""

    def fileno(self) -> int:
        """Its descriptor."""


class Loop:
    """Calls back with the ready events of each watched descriptor; a signal wakes it and is handled between events."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._old_handlers: dict[int, object] = {}
        self._old_wakeup = -1
        self.watch(self._wake_read, READABLE, self._drain_wake)

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def watch(self, watched: HasFileno, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` when `watched` is ready."""
        self._callbacks[watched.fileno()] = callback
        self._epoll.register(watched.fileno(), events)

    def change(self, watched: HasFileno, events: int) -> None:
        """Watch for other events."""
        self._epoll.modify(watched.fileno(), events)

    def forget(self, watched: HasFileno) -> None:
        """Stop watching; before the descriptor is closed. Harmless where it was not watched."""
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

    def run_once(
        self, timeout_seconds: float, rest_until: float = 0.0, is_enough: Callable[[], bool] = lambda: True
    ) -> None:
        """Wait at most so long, then call back everyone who is ready.

        That is not before `rest_until`, to do more at once, unless `is_enough` says that enough has gathered.
        """
        ready = dict(self._epoll.poll(max(0.0, timeout_seconds), _MOST_EVENTS))
        rested = False
        while ready and not is_enough() and (rest_seconds := rest_until - time.monotonic()) > 0:
            time.sleep(min(rest_seconds, _REST_STEP_SECONDS))
            rested = True
        if rested:
            # An edge is told once, a level again: what was ready still counts.
            for descriptor, events in self._epoll.poll(0, _MOST_EVENTS):
                ready[descriptor] = ready.get(descriptor, 0) | events
        for descriptor, events in ready.items():
            callback = self._callbacks.get(descriptor)
            if callback:
                callback(events)

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
