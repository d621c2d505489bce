"""Logs on standard error: plain lines, or journald's priority prefix where systemd reads; repeats are damped."""

import logging
import os
import sys
import time

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""sd-daemon(3): a line that begins with <N> has the syslog priority N."""
DAMPING_SECONDS = 30.0
"""The same sentence is said once in so long; an outage must not fill the journal."""
_MOST_REMEMBERED = 256


class _Damper(logging.Filter):
    """Lets a sentence through once per DAMPING_SECONDS and says how often it was held back."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text, now = record.getMessage(), time.monotonic()
        said_at, held = self._said.get(text, (-DAMPING_SECONDS, 0))
        if now - said_at < DAMPING_SECONDS:
            self._said[text] = (said_at, held + 1)
            return False
        if held:
            record.msg, record.args = f"{text} ({held} times more in {now - said_at:.0f} s)", ()
        if len(self._said) >= _MOST_REMEMBERED:
            self._said.pop(next(iter(self._said)))
        self._said[text] = (now, 0)
        return True


class _Formatter(logging.Formatter):
    def __init__(self, *, is_journal: bool) -> None:
        super().__init__("%(message)s" if is_journal else "%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        self._is_journal = is_journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", " ")
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{text}" if self._is_journal else text


def start(level: int = logging.INFO) -> None:
    """Send the logs of all rooms to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(is_journal="JOURNAL_STREAM" in os.environ))
    handler.addFilter(_Damper())
    root = logging.getLogger("guestagent")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
