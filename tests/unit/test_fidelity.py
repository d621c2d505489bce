"""Intervals of reduced fidelity: from reports to rows, whatever a peer says; and the sentences made of limits."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from guestagent.collector.fidelity import MOST_INTERVALS, MOST_REASON_LENGTH, Fidelity
from guestagent.collector.registry import Registry
from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.sinks.directory import DirectorySink, Rotation
from guestagent.observe.words import limits_sentence, limits_word
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from tests.fakes import EPOCH_NS, MAC, agent_hello, packets_frame, parsed
from tests.pcapng_files import tool

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("slice", "heavy_flows", "heavy_fraction", "sample", "paused", "reduced", "reason", "since_ns", "probe")
WHOLE: dict[str, Any] = {
    "slice": "full", "filter": "", "keep": 1.0, "sample": 1.0, "heavy_flows": 0, "heavy_fraction": 1.0,
    "paused": False, "reduced": False, "reason": "", "since_ns": 0, "probe": False,
}  # fmt: skip


def report(now_ns: int, **limits: Any) -> dict[str, Any]:
    """A REPORT with these limits."""
    return {"limits": {**WHOLE, **limits}, "clock": {"realtime_ns": now_ns}}


def test_an_interval_holds_the_least_that_was_kept() -> None:
    """One row from the first reduced report to the first whole one: the least kept between, the first reason."""
    fidelity = Fidelity()
    fidelity.reported(report(10), 0)
    fidelity.reported(report(20, reduced=True, since_ns=15, heavy_flows=1, heavy_fraction=0.5, reason="cpu"), 0)
    fidelity.reported(report(25, reduced=True, since_ns=15, probe=True, paused=True, reason="cpu"), 0)
    fidelity.reported(report(30, reduced=True, since_ns=15, slice="headers", sample=0.25, reason="rate"), 0)
    assert fidelity.intervals[0]["until_ns"] == 0
    fidelity.reported(report(40), 0)

    (row,) = fidelity.intervals
    assert row == {
        "from_ns": 15, "until_ns": 40, "slice": "headers", "heavy_flows": 1, "heavy_fraction": 0.5, "sample": 0.25,
        "paused": False, "reason": "cpu",
    }  # fmt: skip


def test_the_latest_intervals_are_kept_and_the_others_counted() -> None:
    """A run that sheds for ever takes bounded room."""
    fidelity = Fidelity()
    for at in range(1, 2 * MOST_INTERVALS + 11, 2):
        fidelity.reported(report(at, reduced=True, reason="cpu"), 0)
        fidelity.reported(report(at + 1), 0)

    assert len(fidelity.intervals) == MOST_INTERVALS
    assert fidelity.dropped == 5
    assert fidelity.intervals[-1]["until_ns"] == 2 * MOST_INTERVALS + 10


@given(
    st.lists(
        st.dictionaries(st.sampled_from(KEYS), ANYTHING).map(lambda limits: {"limits": {"reduced": True, **limits}})
        | st.dictionaries(st.sampled_from(["limits", "clock"]), ANYTHING),
        max_size=5,
    )
)
def test_hostile_reports_make_sound_rows(values: list[dict[str, Any]]) -> None:
    """Whatever a peer reports, rows have their types, fractions lie in [0, 1] and text can't move a terminal."""
    fidelity = Fidelity()
    for value in values:
        fidelity.reported(value, 5)
    for row in fidelity.intervals:
        assert 0 <= row["sample"] <= 1
        assert 0 <= row["heavy_fraction"] <= 1
        assert row["reason"].isprintable()
        assert len(row["reason"]) <= 10 * MOST_REASON_LENGTH
        assert row["until_ns"] == 0 or row["until_ns"] >= row["from_ns"]


def test_a_reader_finds_reports_in_a_file() -> None:
    """The reports of a run come back from its file; blocks around them and broken ones are passed over."""
    run_id = bytes(range(16))
    value = report(20, reduced=True, reason="cpu")
    broken = pcapng.block(pcapng.OURS, pcapng.OURS_HEAD.pack(pcapng.REPORT_MAGIC, run_id) + b"{{{{")
    data = pcapng.section("c", "guestagent", "Linux") + broken + pcapng.mark(run_id, 1, 0, 0, [])
    assert list(reader.reports(data + pcapng.report(run_id, value))) == [(run_id, value)]


def test_limits_are_one_sentence() -> None:
    """A reduced copy says why and since when, a whole one that nothing is reduced."""
    reduced = {**WHOLE, "reduced": True, "reason": "the VM is under pressure", "since_ns": 1_000_000_000}
    assert limits_sentence(reduced) == "reduced since 1970-01-01T00:00:01Z: the VM is under pressure"
    assert limits_sentence({**WHOLE, "filter": "tcp"}) == "slice full, filter 'tcp', as asked for: nothing is reduced"
    assert limits_word(WHOLE) == ""
    assert limits_word({**reduced, "heavy_flows": 2, "sample": 0.5}) == "2 heavy cut, 50.0% of flows"
    assert limits_word({**reduced, "paused": True}) == "paused"


def frame_of(number: int) -> bytes:
    """An Ethernet frame that foreign tools take for UDP."""
    return bytes(Ether(dst=MAC) / IP(src="10.0.0.1", dst="10.0.0.9") / UDP(sport=number) / b"x")


def comments_by_packet(path: Path) -> dict[int, str]:
    """What tshark shows as comments, by UDP source port."""
    fields = ["-T", "fields", "-e", "udp.srcport", "-e", "frame.comment"]
    rows = [row.split("\t") for row in tool("tshark", "-r", str(path), *fields).splitlines()]
    return {int(port): comment for port, comment in rows if comment}


def test_foreign_tools_show_where_fidelity_changes(tmp_path: Path) -> None:
    """tshark shows slice, fraction, time and reason at the first packet behind each change; capinfos takes the file."""
    cut = report(20, reduced=True, slice="headers", sample=0.25, applied_ns=EPOCH_NS, reason="the budget is 5 %")
    steps: list[bytes | dict[str, Any]] = [
        report(10), frame_of(1),
        cut, cut, frame_of(2), frame_of(3),
        report(25, reduced=True, probe=True, reason="a look"), frame_of(4),
        report(30), frame_of(5), frame_of(6),
    ]  # fmt: skip
    registry = Registry(DirectorySink(tmp_path, Rotation()), "collector-1", "0.1")
    run, _ = registry.open(agent_hello())
    for sequence, step in enumerate(steps, 1):
        whole = (
            packets_frame(sequence, [step])
            if isinstance(step, bytes)
            else frames.encode_json(Kind.REPORT, step, sequence=sequence)
        )
        run.frame(parsed(whole), 0.0)
        run.flush(0.0)
    registry.said_goodbye(run, "the agent ended: test")
    registry.close()
    (path,) = tmp_path.glob("vm-1/*.pcapng")

    said = comments_by_packet(path)
    assert list(said) == [2, 5]
    assert said[2] == (
        "guestagent: since 2023-11-14T22:13:20.123Z slice headers, 25.0% of the flows, "
        "0 heavy flows cut to headers and to 100.0% of their packets; the budget is 5 %"
    )
    assert said[5] == "guestagent: since 1970-01-01T00:00:00.000Z whole again, as asked for"
    assert f"Packet comments\n    {said[2]}" in tool("tshark", "-r", str(path), "-V", "-Y", "udp.srcport==2")
    assert "Number of packets:   6" in tool("capinfos", str(path))
    assert [bytes(row[-1]) for row in reader.packets(path.read_bytes())] == [frame_of(at) for at in range(1, 7)]


def test_each_file_and_a_silent_end_tell_what_limits_them(tmp_path: Path) -> None:
    """While fidelity is reduced every new file says so at its first packet; without one, its statistics do."""
    registry = Registry(DirectorySink(tmp_path, Rotation(rotate_bytes=2500)), "collector-1", "0.1")
    run, _ = registry.open(agent_hello())
    run.frame(parsed(frames.encode_json(Kind.REPORT, report(10, reduced=True, sample=0.5), sequence=1)), 0.0)
    for sequence in range(2, 30):
        run.frame(parsed(packets_frame(sequence, [frame_of(sequence)])), 0.0)
        run.flush(0.0)
    run.frame(parsed(frames.encode_json(Kind.REPORT, report(20, reduced=True, paused=True), sequence=30)), 0.0)
    registry.said_goodbye(run, "the agent ended: test")
    registry.close()
    files = [path for path in tmp_path.glob("vm-1/*.pcapng") if list(reader.packets(path.read_bytes()))]

    assert len(files) > 2
    for path in files:
        said = comments_by_packet(path)
        assert len(said) == 1
        assert "50.0% of the flows" in next(iter(said.values()))
    last = max(tmp_path.glob("vm-1/*.pcapng"), key=lambda path: int(path.stem.rpartition("-")[2]))
    assert b"the agent ended: test; guestagent: since 1970-01-01T00:00:00.000Z paused" in last.read_bytes()


def test_a_restarted_collector_says_it_again() -> None:
    """Nobody knows what the file said last, so the first report behind a restart is a remark of either kind."""
    assert Fidelity().reported(report(10), 0) == ""
    assert "whole again" in Fidelity(is_known=False).reported(report(10), 0)
    assert "50.0% of the flows" in Fidelity(is_known=False).reported(report(10, reduced=True, sample=0.5), 0)
