"""perf(1), which looks at stacks at even distances of time."""

import subprocess

from guestagent.errors import HostError


def perf(*words: str) -> str:
    """What one call of it says; HostError where it is missing or fails."""
    try:
        done = subprocess.run(["perf", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise HostError("it needs perf: apt-get install linux-perf") from error
    if done.returncode != 0:
        raise HostError(f"`perf {words[0]}` failed: {done.stderr.strip()}")
    return done.stdout


def report(recorded: str, *words: str) -> str:
    """`perf report` of a recording as text, without stacks."""
    return perf("report", "--stdio", "-g", "none", "-i", recorded, *words)
