"""Logs on standard error, as text or JSON, with journald's priority prefix where systemd reads; repeats are damped."""

import json
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


class _Text(logging.Formatter):
    def __init__(self, *, is_journal: bool) -> None:
        super().__init__("%(message)s" if is_journal else "%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " ")


class _Json(logging.Formatter):
    """One object for each line: time (RFC 3339, UTC), level, logger, message."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(line)


class _Journal(logging.Formatter):
    """Another form behind the priority that journald takes off again."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{self._inner.format(record)}"


def start(level: int = logging.INFO, *, as_json: bool = False) -> None:
    """Send the logs of all rooms to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    is_journal = "JOURNAL_STREAM" in os.environ
    form = _Json() if as_json else _Text(is_journal=is_journal)
    handler.setFormatter(_Journal(form) if is_journal else form)
    handler.addFilter(_Damper())
    root = logging.getLogger("guestagent")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
