"""The meter: what psutil and /proc say, and what is missing."""

import os
import socket
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from guestagent.governor.limits import Traffic
from guestagent.governor.meter import Meter
from guestagent.governor.pressure import Yielding

LO = socket.if_nametoindex("lo")
NO_DEVICE = 2**31 - 1


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
        meter.traffic([LO])
        costs.append(time.process_time() - before)
    meter.close()

    assert sorted(costs)[25] < 0.001


def test_interfaces_are_counted_by_direction() -> None:
    """lo receives what it sends, and as much as psutil says; of a device that is not there nothing is known."""
    with closing(Meter()) as meter:
        assert meter.traffic([NO_DEVICE]) is None
        before = psutil.net_io_counters(pernic=True)["lo"]
        traffic = meter.traffic([LO, NO_DEVICE])
        after = psutil.net_io_counters(pernic=True)["lo"]

    assert traffic is not None
    assert traffic.packets_in == traffic.packets_out
    assert before.packets_recv <= traffic.packets_in <= after.packets_recv
    assert before.bytes_sent <= traffic.bytes_out <= after.bytes_sent


def test_what_a_lost_device_counted_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is gone, and one that took its place, which had seen much before: the sum never falls, nor jumps."""
    answers = {1: Traffic(5, 6, 500, 600), 2: Traffic(10**8, 10**8, 10**11, 10**11)}
    with closing(Meter()) as meter:
        monkeypatch.setattr(meter, "_ask", answers.get)
        found = [meter.traffic([1])]
        answers[1] = None  # type: ignore[assignment]
        found.append(meter.traffic([1]))
        found.append(meter.traffic([2]))
        answers[2] = Traffic(10**8 + 1, 10**8, 10**11 + 100, 10**11)
        found += [meter.traffic([2]), meter.traffic([2])]

    assert found == [Traffic(5, 6, 500, 600)] * 3 + [Traffic(6, 6, 600, 600)] * 2


def test_all_devices_of_the_start_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that each has seen so far."""
    with closing(Meter()) as meter:
        monkeypatch.setattr(meter, "_ask", lambda index: Traffic(index, 0, 100, 0))

        assert meter.traffic([1, 2, 3]) == Traffic(6, 0, 300, 0)


def test_a_device_that_comes_back_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back under its index it goes on from what it had counted, whoever was there meanwhile."""
    answers = {1: Traffic(5, 6, 500, 600), 2: Traffic(1, 0, 100, 0)}
    with closing(Meter()) as meter:
        monkeypatch.setattr(meter, "_ask", answers.get)
        found = [meter.traffic([1]), meter.traffic([2])]
        answers |= {1: Traffic(7, 6, 700, 600), 2: Traffic(4, 0, 400, 0)}
        found += [meter.traffic([2]), meter.traffic([1])]

    assert found == [Traffic(5, 6, 500, 600)] * 2 + [Traffic(8, 6, 800, 600), Traffic(10, 6, 1000, 600)]


def test_devices_that_come_and_go_for_ever_are_all_counted_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand that see one packet each the sum is a thousand."""
    counted = Traffic()
    with closing(Meter()) as meter:
        monkeypatch.setattr(meter, "_ask", lambda _: counted)
        for index in range(1000):
            counted = Traffic(7, 0, 700, 0)
            meter.traffic([index])
            counted = Traffic(8, 0, 800, 0)
            last = meter.traffic([index])

        assert last == Traffic(1000 + 7, 0, 100_700, 0)
        assert len(meter._counted) < 100


def test_the_meter_leaks_no_descriptor() -> None:
    """Close gives back what was opened."""
    before = len(os.listdir("/proc/self/fd"))
    Meter().close()

    assert len(os.listdir("/proc/self/fd")) == before
