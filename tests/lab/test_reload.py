"""SIGHUP under load: what changes, what stays, and that no record is lost on the way."""

import signal
import time

from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_send
from tests.lab.rig import Rig, assert_ledger_closes, udp_copies, wait_for

SIZE = 200
COUNT = 20_000


def test_a_reload_under_load_loses_no_record(rig: Rig, pair: tuple[Host, Host]) -> None:
    """Filter, slice and budget change on SIGHUP, a bad file changes nothing; what all filters select is there once."""
    vm, peer = pair
    config = rig.directory / "run.toml"
    config.write_text('filter = "udp"\nfull = true\n')
    collector, agent = rig.collect(peer), rig.agent(vm, "-c", str(config), full=False)
    sender = vm.start(udp_send, "10.9.0.1", 9000, COUNT, 4000, SIZE)
    steps = [
        ('filter = "udp port 9000"\nfull = true\nslice = "headers"\n', "read again: filter, slice"),
        ('filter = "no such word"\nfull = true\n', "the old one stays in force"),
        ('filter = "udp port 9000"\nfull = true\ncpu = 50\nring = "1MiB"\n', "what is read at the start alone: ring"),
    ]
    for text, said in steps:
        time.sleep(0.7)
        config.write_text(text)
        agent.process.send_signal(signal.SIGHUP)
        wait_for(lambda said=said: said in agent.log_text(), said)
    assert agent.status()["limits"]["filter"] == "udp port 9000"
    assert agent.status()["budgets"]["cpu_percent"] == 50
    sender.result(30)
    ledger, report = agent.stop(), collector.stop()

    assert ledger["dropped_by_ring"] == ledger["capped"] == 0
    assert_ledger_closes(ledger, report)
    whole, cut = udp_copies(rig.frames(), 9000, SIZE)
    assert cut, "the slice was in force"
    assert len(whole) == len(set(whole))
    assert len(cut) == len({frame.time_ns for frame in cut}), "a copy was written twice"
    assert len(whole) + len(cut) == COUNT
