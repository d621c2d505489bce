"""Which cloud this VM runs in, for the hello: asked by a one-shot child, as the agent itself loads no HTTP client.

The capture runs before the child starts. The first hello waits for the answer a moment at most, a later one has it.
"""

import json
import os
import select
import signal
import sys
from collections.abc import Callable

from guestagent.loop import READABLE, Loop

MODULE = "guestagent.mirror.metadata"
PATIENCE_SECONDS = 0.3
"""From the child's start to the first hello. It takes about 0.2 s in a cloud; the ring holds what comes meanwhile."""
MOST_LABEL_CHARACTERS = 256
"""What a hello takes (tapstream.hello)."""
MOST_ANSWER_BYTES = 65_536
"""A pipe's worth, so that the child never waits for us."""


class CloudChild:
    """The question under way."""

    def __init__(self) -> None:
        self.label = ""
        self._answer = b""
        self._reader, writer = os.pipe()
        # -P: what lies in the current directory is not imported.
        command = [sys.executable, "-P", "-m", MODULE]
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, writer, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        try:
            self._pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        finally:
            os.close(writer)

    def fileno(self) -> int:
        """Of the pipe; -1 when the child has answered."""
        return self._reader

    def follow(self, loop: Loop, tell: Callable[[str], None]) -> None:
        """Tell the label after a moment at most, or where the service is slow from the loop."""

        def more(_events: int) -> None:
            if self._read():
                loop.forget(self)
                self.close()
                tell(self.label)

        while select.select([self], [], [], PATIENCE_SECONDS)[0]:
            if self._read():
                self.close()
                return tell(self.label)
        return loop.watch(self, READABLE, more)

    def _read(self) -> bool:
        """Take what is there; whether that was the end of it, and time for `close`."""
        part = os.read(self._reader, MOST_ANSWER_BYTES)
        self._answer += part
        if part and len(self._answer) < MOST_ANSWER_BYTES:
            return False
        self.label = _label_of(self._answer)
        return True

    def close(self) -> None:
        """End the child, whatever it does; may be called twice."""
        if self._reader >= 0:
            os.close(self._reader)
            self._reader = -1
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _label_of(answer: bytes) -> str:
    try:
        found = json.loads(answer or b"null")
        return str(found["label"])[:MOST_LABEL_CHARACTERS] if found else ""
    except (ValueError, KeyError, TypeError):
        return ""
