"""Intervals of reduced fidelity: from reports to rows, whatever a peer says; and the sentences made of limits."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from guestagent.collector.fidelity import MOST_INTERVALS, MOST_REASON_LENGTH, Fidelity
from guestagent.collector.sinks import pcapng, reader
from guestagent.observe.words import limits_sentence, limits_word

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
