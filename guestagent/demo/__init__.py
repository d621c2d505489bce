"""`guestagent demo`: two hosts on this machine, real traffic between them, an agent, a collector, and what came of it.

Agent and collector are the commands that a user runs. Hosts, processes and status sockets vanish with us, however we
end; what stays is the capture, with the reports and logs of both beside it.
"""

import os
import signal
import sys
from pathlib import Path

from guestagent.demo.page import page
from guestagent.demo.stage import Stage
from guestagent.errors import ConfigError, GuestagentError, RunError
from guestagent.lab.hosts import Lab

MOST_SECONDS = 600.0
"""The mix moves about 35 MB/s here, so that long fills 20 GB."""
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def demo(seconds: float) -> int:
    """Play the demo with `seconds` of traffic and print what came of it. Raises GuestagentError where that fails."""
    if not 0 < seconds <= MOST_SECONDS:
        raise ConfigError(f"--seconds: {seconds:g} must be more than 0 and at most {MOST_SECONDS:.0f}")
    # A shell starts what stands before `&` with SIGINT ignored; the demo shall end tidily there as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    here = _current_directory()
    os.chdir("/")  # the user's directory may be closed to the processes that we start
    with Lab() as lab:
        stage = Stage(lab, here)
        try:
            outcome = stage.play(seconds)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left takes a moment and shall not be cut short
            stage.discard()
            sys.stderr.write("guestagent: the demo was interrupted; hosts, processes and its capture are gone\n")
            return INTERRUPTED
        except GuestagentError:
            if not stage.has_daemons:  # else the logs say more
                stage.discard()
            raise
        finally:
            stage.steps.clear()
    sys.stdout.writelines(f"{line}\n" for line in page(outcome, here))
    sys.stdout.flush()
    beside = f"see reports and logs in {outcome.capture.parent}"
    if not outcome.summary.packets:
        raise RunError(f"the demo captured nothing: {beside}")
    if trouble := outcome.trouble():
        raise RunError(f"the ledger does not close ({trouble}): {beside}")
    return 0


def _current_directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it has been deleted
        return Path("/")
