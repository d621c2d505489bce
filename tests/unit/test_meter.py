"""The meter: what psutil and /proc say, and what is missing."""

import os
import time
from pathlib import Path

import psutil
import pytest

from guestagent.governor.meter import Meter, interface_traffic
from guestagent.governor.pressure import Yielding


def proc(root: Path, pressure: str | None, loadavg: str | None) -> str:
    """A /proc with these files or without."""
    (root / "pressure").mkdir()
    for name, text in (("pressure/cpu", pressure), ("loadavg", loadavg)):
        if text is not None:
            (root / name).write_text(text, encoding="ascii")
    return str(root)


def test_the_meter_reads_what_there_is(tmp_path: Path) -> None:
    """Stall time in seconds and running tasks without ours; the link's count is passed on; own time grows."""
    stalls = "some avg10=8.21 avg60=30.81 avg300=22.13 total=396986905\nfull avg10=0.00 avg60=0.00 total=0\n"
    meter = Meter(proc(tmp_path, stalls, "0.20 0.18 0.12 3/345 11206\n"))
    first, second = meter.read(7), meter.read()
    meter.close()
    meter.close()

    assert (first.stalled_seconds, first.running, first.retransmitted) == (396.986905, 2, 7)
    assert first.cores == psutil.cpu_count()
    assert first.own_seconds is not None
    assert second.own_seconds is not None
    assert second.own_seconds >= first.own_seconds > 0


@pytest.mark.parametrize(
    "pressure, loadavg",
    [(None, None), ("", ""), ("nonsense", "nonsense"), ("some total=x\n", "1 2 3 x/y 4\n"), ("full total=5\n", "0.2")],
)
def test_the_meter_survives_what_is_missing(tmp_path: Path, pressure: str | None, loadavg: str | None) -> None:
    """A kernel without pressure information, or files in another form, leave None."""
    meter = Meter(proc(tmp_path, pressure, loadavg))
    usage = meter.read()
    meter.close()

    assert usage.stalled_seconds is usage.running is None
    assert not Yielding().step(0.0, usage)


def test_a_reading_costs_less_than_a_millisecond() -> None:
    """Of this process's own CPU time, median of 50."""
    meter, costs = Meter(), []
    for _ in range(50):
        before = time.process_time()
        meter.read()
        interface_traffic(["lo"])
        costs.append(time.process_time() - before)
    meter.close()

    assert sorted(costs)[25] < 0.001


def test_interfaces_are_counted_by_direction() -> None:
    """lo exists and receives what it sends; of an unknown name nothing is known."""
    traffic = interface_traffic(["lo", "no-such-device"])

    assert traffic is not None
    assert traffic.packets_in == traffic.packets_out
    assert interface_traffic(["no-such-device"]) is None


def test_the_meter_leaks_no_descriptor() -> None:
    """Close gives back what was opened."""
    before = len(os.listdir("/proc/self/fd"))
    Meter().close()

    assert len(os.listdir("/proc/self/fd")) == before
