"""The pure parts of tests/bench/harm: intervals, counts of copies, promises and tables."""

import fcntl
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.capture.block import BlockWriter
from guestagent.errors import RunError
from tests.bench.cores import bitmap
from tests.bench.group import own_group, reader
from tests.bench.harm import figures, report, windows
from tests.bench.harm.figures import Table, figure, interval_ranks, promises
from tests.bench.harm.loads import LOADS
from tests.bench.harm.meters import Counted, Worked
from tests.bench.harm.rounds import Cell, Run, plan
from tests.bench.harm.sensors import PcapCounter, count_run
from tests.bench.harm.shares import share_of
from tests.bench.harm.taps import BUDGET, OFF, ROOMY
from tests.bench.harm.tidy import MARK, remove_if_dead
from tests.bench.harm.windows import Window


def test_no_tap_is_always_first() -> None:
    """Every tap meets every load in each round, in an order that moves on."""
    taps = [OFF, BUDGET, "tcpdump to nc"]
    loads = [one for one in LOADS if one.name in ("ask 1k", "bulk out")]
    rows = plan(3, taps, loads)
    assert [(at, name) for at in range(3) for name in ("ask 1k", "bulk out")] == [
        (number, load.name) for number, load, _ in rows
    ]
    assert all(sorted(taps) == sorted(names) for _, _, names in rows)
    assert set(taps) == {names[0] for _, _, names in rows}


def test_no_tap_always_follows_the_same() -> None:
    """In eight rounds of four each has every place twice, and comes as often after one as before it."""
    taps = ["a", "b", "c", "d"]
    orders = [names for _, _, names in plan(8, taps, LOADS[:1])]
    assert all(sorted(places) == sorted(taps * 2) for places in zip(*orders, strict=True))
    follows = Counter(pair for names in orders for pair in pairwise(names))
    assert len(follows) > len(taps)
    assert all(count == follows[after, before] for (before, after), count in follows.items())


def test_moderate_loads_are_judged_together() -> None:
    """Three loads of one pair each make a figure of three pairs."""
    names = ("udp 20k", "bulk in 30 %", "bulk out 30 %")
    cells = [cell(OFF, load=name) for name in names]
    cells += [cell(BUDGET, load=name, p99_us=200.0 * by) for name, by in zip(names, (0.9, 1.0, 1.3), strict=True)]
    found = {one.name: one for one in figures.promises(Table(cells))}
    one = found["moderate loads together: p99, times that without a tap"]
    assert (one.figure.low, one.figure.median, one.figure.high, one.verdict) == pytest.approx((0.9, 1.0, 1.3, "met"))


@pytest.mark.parametrize(
    "count, rank, percent", [(1, 1, 0.0), (2, 1, 50.0), (5, 1, 93.75), (6, 1, 96.875), (8, 1, 99.22), (15, 4, 96.48)]
)
def test_the_interval_of_a_median_is_that_of_the_tables(count: int, rank: int, percent: float) -> None:
    """Ranks and coverage are those of the sign test; below six values no rank reaches 95 %."""
    k, coverage = interval_ranks(count)
    assert rank == k
    assert pytest.approx(percent, abs=0.01) == 100 * coverage


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_the_median_lies_inside_its_interval(values: list[float]) -> None:
    """Whatever the values; and both ends were measured."""
    found = figure(values)
    assert found.low <= found.median <= found.high
    assert {found.low, found.high} <= set(values)


@given(st.lists(st.integers(0, 70), max_size=20), st.lists(st.integers(1, 40), max_size=60))
def test_pcap_is_counted_however_it_is_cut(sizes: list[int], cuts: list[int]) -> None:
    """Packets and bytes of a file do not depend on the pieces in which it comes."""
    file = bytes(24) + b"".join(pack("<IIII", 0, 0, size, 1500) + bytes(size) for size in sizes)
    counter, found = PcapCounter(), (0, 0)
    for size in [*cuts, len(file)]:
        piece, file = file[:size], file[size:]
        more = counter.feed(piece)
        found = found[0] + more[0], found[1] + more[1]
    assert (len(sizes), sum(sizes)) == found


def test_records_are_counted_by_walking() -> None:
    """The sensor follows the kernel's chain of records; it takes nobody's word for their number."""
    memory = bytearray(1 << 16)
    writer = BlockWriter(memory, 64)
    for size in (60, 512, 1514):
        assert writer.add(bytes(size), 0)
    assert (3, 60 + 512 + 1514) == count_run(memoryview(memory)[writer.start : writer.end])
    assert (0, 0) == count_run(memoryview(b""))


def cell(tap: str, round_: int = 0, load: str = "bulk out", **given: float) -> Cell:
    """A cell of one second on ten cores, of which `busy` are busy."""
    return Cell(
        round=round_,
        load=load,
        tap=tap,
        seconds=1.0,
        vm_seconds=given.get("vm_seconds", 10.0),
        rate=given.get("rate", 1e9),
        asked=1000,
        answered=1000,
        p50_us=100.0,
        p99_us=given.get("p99_us", 200.0),
        p999_us=300.0,
        usual_p99_us=given.get("usual_p99_us", 150.0),
        worked=Worked(given.get("busy", 4.0), given.get("own", 0.0)),
        counted=Counted(1000, 10**6, 500, 250_000, 300_000, None if tap == OFF else 3),
    )


def test_a_tap_is_compared_within_its_round() -> None:
    """A machine twice as fast in one round changes no ratio."""
    cells = [cell(OFF, 0), cell(OFF, 1, rate=2e9, p99_us=100.0)]
    cells += [cell(BUDGET, 0, rate=9e8, busy=4.5), cell(BUDGET, 1, rate=1.8e9, p99_us=100.0, busy=4.6)]
    table = Table(cells)
    assert (0.9, 0.9, 0.9) == _ends(table, figures.kept)
    assert (1.0, 1.0, 1.0) == _ends(table, figures.p99)
    assert pytest.approx((5.0, 5.5, 6.0)) == _ends(table, figures.added)
    assert (0.5, 0.25) == (_ends(table, figures.copied_packets)[1], _ends(table, figures.copied_bytes)[1])
    assert (6, None) == (table.ring_drops(BUDGET, "bulk out"), table.ring_drops(OFF, "bulk out"))


def _ends(table: Table, metric: figures.Metric) -> tuple[float, float, float]:
    found = table.figure(BUDGET, "bulk out", metric)
    return found.low, found.median, found.high


@pytest.mark.parametrize(
    "rates, verdict, broken",
    [([0.98] * 6, "met", False), ([0.8] * 6, "**missed**", False), ([0.5] * 6, "**missed**", True),
     ([0.5] * 5 + [0.7], "**missed**", False)],
    ids=["met", "missed", "broken", "one-round-is-well"],
)  # fmt: skip
def test_the_gate_is_loose(rates: Sequence[float], verdict: str, broken: bool) -> None:
    """A promise missed is told; the gate fails only where the whole interval is far off."""
    cells = [cell(OFF, at) for at in range(6)] + [cell(BUDGET, at, rate=1e9 * one) for at, one in enumerate(rates)]
    kept, _own = promises(Table(cells))
    assert (verdict, broken) == (kept.verdict, kept.is_broken)


def test_added_cpu_is_judged_only_where_there_is_idle_time() -> None:
    """Without idle time a tap's CPU is taken from the application, and a difference of busy time tells nothing."""
    for busy, judged in ((7.9, 1), (8.1, 0)):
        table = Table([cell(tap, load="udp 50k", busy=busy) for tap in (OFF, BUDGET)])
        assert judged == sum("CPU" in one.name for one in promises(table))


def test_a_larger_vm_has_promises_of_its_own() -> None:
    """What a VM of two cores keeps is named as such and counts for no other; its busy time can't be told."""
    cells = [cell(OFF, load="udp 20k"), cell(BUDGET, load="udp 20k", p99_us=220.0)]
    cells.append(cell(ROOMY, load="udp 20k", p99_us=206.0, vm_seconds=20.0, own=0.4))
    found = {one.name: one for one in promises(Table(cells))}
    words = "p99, times that without a tap"
    verdicts = {name: found[f"{name}: {words}"].verdict for name in ("udp 20k", "udp 20k, two cores")}
    assert verdicts == {"udp 20k": "**missed**", "udp 20k, two cores": "met"}
    assert [name for name in found if "CPU added" in name] == ["udp 20k: CPU added, % of the VM"]
    text = report.markdown(report.Results("promises", "the command", 1.0, 0.0, Run(cells, {})))
    assert "| udp 20k | 40 % | 0.0 / 0.0 | - / 2.0 |" in text
    assert "The *VM of two cores* has" in text


def test_every_window_is_judged() -> None:
    """Of each load the worst of its windows is told, and how many are above the promise, however good the others."""
    told = windows.markdown([Window("udp 50k", 2.0, 1.0), Window("udp 50k", 3.0, 3.1), Window("ask 1k", 1.0, 0.5)], "")
    assert "| udp 50k | 2 | 2.5 | 2.0 | 4.5 | 6.1 | 1 |" in told
    assert "| ask 1k | 1 | 1.0 | 0.5 | 1.5 | 1.5 | 0 |" in told
    assert "3 windows, 1 of them above" in told


def test_capture_is_what_others_pay() -> None:
    """Stacks with the packet socket on them count, in whichever process, but for the tap's own."""
    told = """
    69.91%         11044        0:swapper          [other]
     0.89%           140    22890:python           tpacket_rcv
     0.49%            77    22890:python           dev_queue_xmit_nit
     0.32%            51        0:swapper          tpacket_rcv
     0.01%             2      553:python           tpacket_rcv
     0.01%             1    18790:kworker/u8:3-ev  prb_retire_rx_blk_timer_expired
"""
    assert share_of(told, 553) == (140 + 77 + 51 + 1) / (11044 + 140 + 77 + 51 + 2 + 1)
    for nothing in ("", told.replace("tpacket", "").replace("xmit", "").replace("retire", "")):
        with pytest.raises(RunError, match="perf saw no capture in"):
            share_of(nothing, 553)


def test_a_bitmap_is_in_words_of_32() -> None:
    """As the kernel reads the mask of a queue's processors."""
    assert ["00000001", "00000002", "80000000", "00000001,00000000"] == [bitmap(one) for one in ({0}, {1}, {31}, {32})]


def test_a_group_counts_its_own_work_alone() -> None:
    """What a bench and its ended children work is counted to a hundredth; what others work beside it is not."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with own_group():
            read = reader()
            if read is None:
                pytest.skip("no control group can be made here: it needs root, and a hierarchy that is writable")
            before, own = read(), time.process_time() + children_seconds()
            subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
            own = time.process_time() + children_seconds() - own
            assert read() - before == pytest.approx(own, abs=0.02 + 0.05 * own)
    finally:
        neighbour.kill()
        neighbour.wait()
    assert reader() is None


def children_seconds() -> float:
    """CPU of children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def test_without_the_budget_nothing_is_promised() -> None:
    """A run of the other taps alone has tables and no verdicts."""
    assert [] == promises(Table([cell(OFF), cell("tcpdump to nc")]))


def test_the_report_has_a_row_for_each_load() -> None:
    """Rate without a tap, ratios with their interval, copies and drops; a tap that could not run is named."""
    cells = [cell(tap, at, rate=1e9 - at * 1e8) for tap in (OFF, BUDGET) for at in range(6)]
    cells[-1] = cell(BUDGET, 5, rate=2.5e8)
    text = report.markdown(
        report.Results("harm", "the command", 1.0, 0.2, Run(cells, {"tc mirred to vxlan": "no vxlan"}))
    )
    assert "| bulk out | 0.75 Gbit/s | 1.00 (0.50 to 1.00) |" in text
    assert "| bulk out | 0.50 / 0.25 / 18 |" in text
    assert "| bulk out: application keeps | 1.00 (0.50 to 1.00) | ≥ 0.97 | < 0.6 | met |" in text
    assert "the least and the greatest of 6 pairs enclose it with a probability of 96.9%" in text
    assert "tc mirred to vxlan could not be measured here: no vxlan." in text
    assert "Not quiet" in text


def test_files_are_written(tmp_path: Path) -> None:
    """The report, a picture, and a line for each cell under the names of all its numbers."""
    pytest.importorskip("matplotlib")
    cells = [cell(tap, load=load) for tap in (OFF, BUDGET) for load in ("ask 1k", "bulk out")]
    report.write(report.Results("harm", "the command", 1.0, 0.0, Run(cells, {})), tmp_path)
    header, *lines = (tmp_path / "harm.csv").read_text().splitlines()
    assert 4 == len(lines)
    assert {"round", "tap", "p999_us", "tap_seconds", "arrived_bytes", "ring_drops"} <= set(header.split(","))
    assert {len(header.split(","))} == {len(line.split(",")) for line in lines}
    assert (tmp_path / "harm.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "HARM.md").exists()


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    """Its directory and its processes end at the next start; those of a run that lives, known by its lock, stay."""
    dead, alive = tmp_path / "dead", tmp_path / "alive"
    sleepers = []
    for directory in (dead, alive):
        directory.mkdir()
        (directory / "file").touch()
        argv = [sys.executable, "-c", "input()"]
        sleepers.append(subprocess.Popen(argv, env={MARK: str(directory)}, stdin=subprocess.PIPE))
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)

    assert (True, False) == (remove_if_dead(dead), remove_if_dead(alive))
    assert -9 == sleepers[0].wait(5)
    assert (False, True) == (dead.exists(), alive.exists())
    assert sleepers[1].poll() is None

    sleepers[1].communicate(b"\n")
    sleepers[0].communicate()
    os.close(lock)
    assert not remove_if_dead(dead)
