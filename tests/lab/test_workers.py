"""Several workers under load: whichever dies at whatever moment, the files hold each packet once."""

import os
import random
import signal
import time

from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_send
from tests.lab.rig import Rig, udp_indexes, wait_for

PACE = 5000
PAYLOAD_BYTES = 258
KILLS = 12


def test_workers_killed_at_random_moments_cost_nothing(rig: Rig, pair: tuple[Host, Host]) -> None:
    """12 times kill -9 of a worker within writes, handovers and acknowledgements: nothing missing, nothing twice."""
    vm, peer = pair
    moments = random.Random(4795)
    collector = rig.collect(peer, "--workers", "3")
    agent = rig.agent(vm)
    count = 8 * PACE
    sender = vm.start(udp_send, "10.9.0.1", 9000, count, PACE, PAYLOAD_BYTES)
    for number in range(KILLS):
        time.sleep(moments.uniform(0.05, 0.6))
        workers = [one["pid"] for one in collector.status()["workers"]]
        os.kill(moments.choice([pid for pid in workers if pid]), signal.SIGKILL)
        wait_for(
            lambda number=number: sum(one["restarts"] for one in collector.status()["workers"]) == number + 1,
            "another worker in its place",
        )
    sender.result(30)
    wait_for(lambda: agent.status()["link"]["connected"], "the agent to be back", 10)
    ledger, report = agent.stop(), collector.stop()

    assert ledger["dropped_by_ring"] == ledger["lost_on_link"] == ledger["in_flight"] == 0
    assert sorted(udp_indexes(rig.frames(), 9000, PAYLOAD_BYTES)) == list(range(count))
    assert KILLS == sum(one["restarts"] for one in report["workers"])
    assert 1 == len(rig.files()), "the run went on in the file of the killed worker"
