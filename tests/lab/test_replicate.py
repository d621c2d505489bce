"""`mode = "replicate"` with two collectors: each gets every packet, and what one misses costs the other nothing."""

import signal
import time
from pathlib import Path
from typing import Any

from guestagent.lab.hosts import Lab
from guestagent.lab.packets import udp_send
from guestagent.merge import merge
from tests.lab.rig import Process, Rig, assert_ledger_closes, frames_of, udp_indexes, wait_for

PACE = 5000
PAYLOAD_BYTES = 258
RING = "4MiB"
"""16 blocks, of which eight may wait for a collector that lags: 0.8 s at this pace."""


class Pair:
    """Two collectors and an agent that copies to both."""

    def __init__(self, rig: Rig, lab: Lab, *arguments: str) -> None:
        self.rig = rig
        self.hosts = [lab.host("one"), lab.host("two")]
        self.vm = lab.host("vm")
        lab.bridge(*self.hosts, self.vm)
        self.collectors = [self.collect(0), self.collect(1)]
        config = rig.directory / "agent.toml"
        config.write_text("mode = 'replicate'\n")
        config.chmod(0o600)
        self.agent = rig.agent(self.vm, "-c", str(config), "--to", "tcp://10.9.0.1", *arguments, to="tcp://10.9.0.2")
        wait_for(lambda: all(one["serves"] for one in self.books()), "both collectors to be connected")

    def collect(self, at: int) -> Process:
        """Start a collector of its own name, though this machine has one id."""
        host = self.hosts[at]
        config = self.rig.directory / f"{host.name}.toml"
        config.write_text(f"collector_id = '{host.name}'\n")
        config.chmod(0o600)
        where = str(self.rig.captures / host.name)
        report = f"{host.name}.json"
        return self.rig.collect(host, "-c", str(config), write=where, listen=f"10.9.0.{at + 1}", report=report)

    def send(self, seconds: float) -> Any:
        """Number so many datagrams to nobody's port."""
        return self.vm.start(udp_send, "10.9.0.1", 9000, int(seconds * PACE), PACE, PAYLOAD_BYTES)

    def books(self) -> list[dict[str, Any]]:
        """What the agent says of each collector."""
        return self.agent.status()["link"].get("destinations", [{"serves": False}])

    def files(self, at: int) -> list[str]:
        """The capture files of one collector."""
        return sorted(map(str, (self.rig.captures / self.hosts[at].name).rglob("*.pcapng")))

    def frames(self, at: int) -> list[tuple[int, bytes]]:
        """Time and bytes of every packet in them."""
        return [(one.time_ns, one.data) for path in self.files(at) for one in frames_of(Path(path))]

    def indexes(self, at: int) -> list[int]:
        """The datagrams among them."""
        frames = (one for path in self.files(at) for one in frames_of(Path(path)))
        return udp_indexes(frames, 9000, PAYLOAD_BYTES)

    def stop(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """End everything; the agent's report and those of the collectors."""
        ledger = self.agent.stop()
        return ledger, [one.stop() for one in self.collectors]


def test_both_have_every_packet_byte_exact(rig: Rig, lab: Lab) -> None:
    """Two collectors write the same packets, byte for byte and in the same order; both ledgers close."""
    pair = Pair(rig, lab)
    count = 2 * PACE
    pair.send(2).result(30)
    ledger, reports = pair.stop()

    assert pair.indexes(0) == list(range(count))
    assert pair.frames(0) == pair.frames(1)
    for report in reports:
        assert_ledger_closes(ledger, report)
    for books in ledger["link"]["destinations"]:
        assert books["delivered"] == ledger["captured"]
        assert not any(books["lost_records"].values())


def test_one_that_is_killed_costs_the_other_nothing(rig: Rig, lab: Lab) -> None:
    """kill -9 and a restart under load: one misses nothing; what the other misses is counted, told and marked."""
    pair = Pair(rig, lab, "--ring", RING)
    sender = pair.send(4)
    time.sleep(0.5)
    pair.collectors[1].kill()
    wait_for(lambda: pair.books()[1]["lost_records"]["collector_away"] > 0, "the loss to be counted", 5)
    assert [True, False] == [one["serves"] for one in pair.books()]
    pair.collectors[1] = pair.collect(1)
    wait_for(lambda: pair.books()[1]["serves"], "the killed collector to be served again")
    sender.result(30)
    ledger, reports = pair.stop()
    whole, broken = ledger["link"]["destinations"]
    lost = broken["lost_records"]["collector_away"]

    assert pair.indexes(0) == list(range(4 * PACE))
    assert_ledger_closes(ledger, reports[0])
    assert whole["delivered"] == ledger["captured"]
    assert broken["delivered"] == ledger["captured"] - lost
    assert set(pair.frames(1)) < set(pair.frames(0))
    assert len(pair.frames(1)) == len(set(pair.frames(1))) == broken["delivered"]
    assert (0, True) == (reports[1]["agents"]["vm"]["gaps"], reports[1]["agents"]["vm"]["elsewhere"] > 0)
    assert " 0 frames of the runs" not in merge(pair.files(1), str(rig.directory / "one.pcapng"))
    assert " 0 frames of the runs" in merge(pair.files(0) + pair.files(1), str(rig.directory / "both.pcapng"))


def test_one_that_stands_still_does_not_hold_up_the_other(rig: Rig, lab: Lab) -> None:
    """SIGSTOP of one under load: the other misses nothing, nothing is shed; what the first missed is counted."""
    pair = Pair(rig, lab, "--ring", RING)
    sender = pair.send(5)
    time.sleep(0.5)
    before = pair.agent.memory_bytes()
    pair.collectors[1].process.send_signal(signal.SIGSTOP)
    wait_for(lambda: "left behind" in pair.agent.log_text(), "it to be left behind", 5)
    wait_for(lambda: pair.books()[1]["lost_records"]["collector_away"] > 0, "its loss to be counted", 5)
    status = pair.agent.status()
    during = pair.agent.memory_bytes()
    pair.collectors[1].process.send_signal(signal.SIGCONT)
    wait_for(lambda: pair.books()[1]["serves"], "it to be served again")
    sender.result(30)
    ledger, reports = pair.stop()
    whole, broken = ledger["link"]["destinations"]

    assert "one" in status["link"]["text"]
    assert status["ring_held_fraction"] < 0.75
    assert not status["limits"]["reduced"]
    assert during - before < 4_000_000
    assert pair.indexes(0) == list(range(5 * PACE))
    assert_ledger_closes(ledger, reports[0])
    assert whole["delivered"] == ledger["captured"]
    assert broken["delivered"] + sum(broken["lost_records"].values()) == ledger["captured"]
    assert len(pair.frames(1)) == len(set(pair.frames(1))) == broken["delivered"]
    assert reports[1]["agents"]["vm"]["gaps"] == 0
