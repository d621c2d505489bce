"""A filter that would not fit any more once flows are shed."""

import sys
from pathlib import Path

from guestagent.lab.hosts import Host
from tests.lab.rig import Rig, assert_one_sentence


def test_a_filter_that_leaves_no_room_for_shedding_is_refused_at_the_start(
    pair: tuple[Host, Host], rig: Rig, tmp_path: Path
) -> None:
    """Under load it would end the run: so where filters get 20 KB, 120 hosts are too many, unless all is kept."""
    vm, peer = pair
    vm.run(["sysctl", "-w", "net.core.optmem_max=20480"])
    expression = " or ".join(f"host 10.9.0.{number}" for number in range(1, 121))
    arguments = ["-i", "eth0", "--to", f"dir:{tmp_path}", "--filter", expression]
    words = ["instructions", "--filter shorter", "optmem_max"]
    assert_one_sentence(vm.run([sys.executable, "-m", "guestagent", "run", *arguments], check=False), 2, words)
    checked = vm.run([sys.executable, "-m", "guestagent", "check", *arguments], check=False)
    assert checked.returncode == 2
    assert all(word in checked.stdout for word in words), checked.stdout

    rig.collect(peer)
    agent = rig.agent(vm, "--filter", expression)
    assert agent.status()["limits"]["filter"] == expression
    agent.stop()
