"""`guestagent demo`: two hosts on this machine, real traffic between them, an agent, a collector, and what came of it.

The agent and the collector are the commands that a user runs, each in a process of its own, on hosts whose networks
and status sockets vanish with us. What stays is the capture.
"""

import mmap
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestagent.collector.sinks import reader
from guestagent.collector.summary import WELL_KNOWN_PORTS, Summary, summarize
from guestagent.errors import ConfigError, HostError, RunError
from guestagent.lab.hosts import Host, Lab
from guestagent.lab.traffic import BULK_PORT, DNS_PORT, HTTP_PORT, mixed, ping, serve_all
from guestagent.observe.status import ask
from guestagent.observe.words import LiveLine, scaled

AGENT_ID = "demo-vm"
PEER4, PEER6 = "10.9.0.1", "fd00:9::1"
COLLECTOR_URL = f"tcp://{PEER4}:4795"
RUN = Path("/run")
"""Each lab host gets an empty one of its own, so that status sockets leave nothing behind, even after a kill -9."""
MOST_SECONDS = 600.0
"""The mix copies about 35 MB/s here: that long fills 20 GB."""
READY_SECONDS = 10.0
"""An interpreter starts in 0.2 s; a small VM that is busy may need twenty times that."""
END_SECONDS = 10.0
"""The agent drains and ends in under 2 s, the collector at once."""
LOOK_SECONDS, LIVE_SECONDS = 0.02, 0.5
MOST_CONVERSATIONS = 6
SERVICES = {**WELL_KNOWN_PORTS, BULK_PORT: "bulk stream"}


def demo(seconds: float) -> int:
    """Play the demo with `seconds` of traffic and print its result. Raises GuestagentError where it can't or fails."""
    if not 0 < seconds <= MOST_SECONDS:
        raise ConfigError(f"--seconds: {seconds} must be more than 0 and at most {MOST_SECONDS:.0f}")
    # A shell starts what stands before `&` with SIGINT ignored; the demo ends tidily by it there as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = _Steps()
    steps.say("making two hosts and a cable")
    with Lab() as lab:
        folder = _new_folder()
        try:
            outcome = _play(lab, folder, seconds, steps)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rest takes a moment and shall not be interrupted
            lab.kill()
            shutil.rmtree(folder, ignore_errors=True)
            sys.stderr.write("guestagent: the demo was interrupted; hosts, processes and its capture are gone\n")
            return 130
        finally:
            steps.clear()
    sys.stdout.write(_page(outcome))
    if trouble := outcome.trouble():
        raise RunError(f"the ledger does not close: {trouble}; logs and reports are in {folder}")
    return 0
