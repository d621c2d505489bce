"""The agent stands back for the application, on the scheduler's terms."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from guestagent.lab.hosts import Host
from guestagent.standback import SLICE_NS
from tests.lab.rig import wait_for


@pytest.mark.parametrize("given, kept", [(0, 10), (5, 10), (15, 15)])
def test_the_application_goes_first(pair: tuple[Host, Host], tmp_path: Path, given: int, kept: int) -> None:
    """The agent is at nice 10, SCHED_BATCH, its slice is 10 ms; a higher niceness that it was started with stays."""
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run")}
    agent = [sys.executable, "-m", "guestagent", "run", "-i", "eth0", "--to", "dir:captures"]
    command = ["nice", "-n", str(given), *agent]
    process = pair[0].popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("captures/*/*.pcapng")), "the capture file")
    found = os.getpriority(os.PRIO_PROCESS, process.pid), os.sched_getscheduler(process.pid)
    assert found == (kept, os.SCHED_BATCH)
    slices = re.findall(r"se\.slice +: +(\d+)", Path(f"/proc/{process.pid}/sched").read_text())
    assert slices in ([str(SLICE_NS)], [])  # kernels before 6.12 have none to choose
    process.terminate()
    assert process.wait(5) == 0
