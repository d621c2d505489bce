"""The command as a user runs it, killed where a fake says so."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Protocol


class Fake(Protocol):
    """What tells of each write that it has taken."""

    after_write: Callable[[], None]


def killed_after(fake: Fake, writes: int, words: tuple[str, ...]) -> None:
    """Run `guestagent mirror`, and SIGKILL it when so many writes were taken and the last is not answered."""
    process: list[subprocess.Popen[bytes]] = []
    left = [writes]

    def strike() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(process[0].pid, signal.SIGKILL)

    fake.after_write = strike
    command = [sys.executable, "-m", "guestagent", "mirror", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        process.append(child)
    fake.after_write = lambda: None
    assert child.returncode == -signal.SIGKILL
