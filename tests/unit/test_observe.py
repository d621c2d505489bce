"""What people and scripts see: the status of both ends, whole report files, numbers that read well."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.errors import ConfigError, RunError
from guestagent.model import InterfaceLedger
from guestagent.observe import reports
from guestagent.observe.clock import LEAST_STEP_NS, ClockWatch
from guestagent.observe.show import show_status
from guestagent.observe.status import Found
from guestagent.observe.words import RateLine, ledger_sentence, scaled

SECOND_NS = 1_000_000_000

AGENT: dict[str, Any] = {
    "role": "agent",
    "agent_id": "vm-1",
    "engine": "ring",
    "engine_reason": "the kernel offers it",
    "link": {"text": "connected to collector c"},
    "interfaces": {"eth0": InterfaceLedger(captured=1234, delivered=1200, dropped_by_ring=30).as_dict()},
    "limits": {"slice": "full", "filter": "tcp", "keep": 1.0, "reduced": True, "reason": "why", "since_ns": 10**9},
    "ring_bytes": 64 << 20,
    "ring_held_fraction": 0.25,
    "cpu_seconds": 1.5,
}

END = {"gap_from": "2023-11-14T22:13:20.123Z", "gap_until": "2023-11-14T22:13:25.123Z"}
SHED = {"from_ns": 10**9, "until_ns": 3 * 10**9, "reason": "a full copy costs more"}

COLLECTOR: dict[str, Any] = {
    "role": "collector",
    "collector_id": "c",
    "connections": 1,
    "refused": 2,
    "blocked_by": "No space left on device",
    "workers": [
        {"pid": 7, "connections": 1, "handed_over": 1234, "cpu_seconds": 0.5, "restarts": 2},
        {"pid": 0, "connections": 0, "handed_over": 0, "cpu_seconds": 0, "restarts": 0},
    ],
    "agents": {
        "vm-1": {
            "received": 1000,
            "written": 990,
            "gaps": 0,
            "duplicates": 3,
            "unclean_ends": [END],
            "reduced": [SHED],
            "twins": 1,
        }
    },
}


def test_status_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`status` tells ledger, link, limits and gaps in sentences; 0 where something runs, else 1."""
    monkeypatch.setattr(
        "guestagent.observe.show.everything", lambda: Found({"agent-1": AGENT, "collector-2": COLLECTOR}, [])
    )
    assert 0 == show_status(as_json=False)
    said = capsys.readouterr().out
    for text in (
        "eth0: captured 1,234, delivered 1,200, dropped by ring 30, in flight 4",
        "link: connected to collector c",
        "limits: reduced since 1970-01-01T00:00:01Z: why, filter 'tcp'",
        "vm-1: reduced from 1970-01-01T00:00:01Z until 1970-01-01T00:00:03Z: a full copy costs more",
        "ring: 64 MB, 25% waits for the collector",
        "vm-1: received 1,000, written 990, gaps 0, duplicates 3",
        "writes nothing at the moment: No space left on device; agents keep what they have while their rings have room",
        "worker 0: process 7, 1 connected, 1,234 handed over, 0.5 s of CPU, started again 2 times",
        "worker 1: gone, it starts again, 0 handed over",
        "vm-1: 2 agents stream under this name; give each an agent_id of its own",
        "vm-1: nothing is held from 2023-11-14T22:13:20.123Z until 2023-11-14T22:13:25.123Z",
    ):
        assert text in said
    monkeypatch.setattr("guestagent.observe.show.everything", lambda: Found({"agent-1": {**AGENT, "link": None}}, []))
    assert 0 == show_status(as_json=False)
    monkeypatch.setattr("guestagent.observe.show.everything", lambda: Found({}, []))
    assert 1 == show_status(as_json=False)
    assert "nothing runs here" in capsys.readouterr().out
    monkeypatch.setattr("guestagent.observe.show.everything", lambda: Found({}, ["agent-1"]))
    assert 1 == show_status(as_json=False)
    assert "agent-1\n  runs, but did not answer within 2 s: stopped, or very busy\n" == capsys.readouterr().out


def test_status_for_scripts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`status --json` is one object with its schema, also where nothing runs."""
    monkeypatch.setattr("guestagent.observe.show.everything", lambda: Found({"agent-1": AGENT}, ["agent-2"]))
    assert 0 == show_status(as_json=True)
    told = {"schema": "guestagent.status/1", "running": {"agent-1": AGENT}, "silent": ["agent-2"]}
    assert told == json.loads(capsys.readouterr().out)


# -- reports and words -----------------------------------------------------------------------------------------------


def test_a_report_is_whole_or_absent(tmp_path: Path) -> None:
    """A report replaces the one before in one step; nothing else is left in its directory."""
    path = tmp_path / "report.json"
    for number in (1, 2):
        reports.check_writable(str(path))
        reports.write(str(path), {"number": number})
        assert {"number": number} == json.loads(path.read_text())
    assert [path] == list(tmp_path.iterdir())
    with pytest.raises(RunError, match="could not be written: No such file"):
        reports.write(str(tmp_path / "none" / "report.json"), {})


def test_a_report_that_can_not_be_is_refused_at_start(tmp_path: Path) -> None:
    """A directory that is missing, or stands where the file should, is told before the run and not after it."""
    reports.check_writable("")
    for path in (tmp_path / "none" / "report.json", tmp_path):
        with pytest.raises(ConfigError, match=r"^--report: .*(choose another path|name a file)$"):
            reports.check_writable(str(path))


SCALED = {
    0: "0 B",
    7: "7 B",
    999: "999 B",
    999.6: "1.00 kB",
    1000: "1.00 kB",
    9994: "9.99 kB",
    9996: "10.0 kB",
    12345: "12.3 kB",
    99960: "100 kB",
    1234567: "1.23 MB",
    5e15: "5000 TB",
}


@pytest.mark.parametrize("value, text", SCALED.items())
def test_numbers_read_well(value: float, text: str) -> None:
    """Three digits and a prefix."""
    assert text == scaled(value, "B")


@given(st.floats(0, 9e14))
def test_three_digits_at_most(value: float) -> None:
    """Any number below a thousand tera takes four characters at most, apart from its unit."""
    assert len(scaled(value, "").split(" ")[0]) <= 4


def test_losses_are_named_only_where_there_are_some() -> None:
    """The ledger in one line begins with what went well."""
    assert "captured 5, delivered 5" == ledger_sentence(InterfaceLedger(captured=5, delivered=5).as_dict())
    lossy = InterfaceLedger(captured=10, delivered=1, capped=2, unsupported_gso=3, lost_on_link=4)
    assert "captured 10, delivered 1, capped 2, unsupported gso 3, lost on link 4" == ledger_sentence(lossy.as_dict())


def test_rates_are_those_since_the_last_look() -> None:
    """The live line divides by the time that passed, and never by nothing."""
    line = RateLine()
    line.line(10.0, InterfaceLedger(), 0.0, "link")
    text = line.line(12.0, InterfaceLedger(captured=2000, delivered_bytes=250_000, dropped_by_ring=7), 0.5, "link")
    assert text.startswith("1.00 kpackets/s  1.00 Mbit/s  lost 7  ring 50%  cpu ")
    assert line.line(12.0, InterfaceLedger(captured=2000), 0.5, "link").startswith("0 packets/s")


def test_a_clock_that_is_set_is_told_with_its_step() -> None:
    """A step either way is told once; time that passes, and slewing, are not."""
    watch = ClockWatch()
    looks = [(10, 5), (11, 6), (86_411, 7), (86_412, 8), (12, 9)]
    told = [watch.look(real * SECOND_NS, since * SECOND_NS) for real, since in looks]

    assert [bool(text) for text in told] == [False, False, True, False, True]
    assert "+86399.0 s" in told[2]
    assert "-86401.0 s" in told[4]
    assert not watch.look(13 * SECOND_NS + LEAST_STEP_NS - 1, 10 * SECOND_NS)
