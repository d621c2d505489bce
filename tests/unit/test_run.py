"""One run at the collector: each frame once, whatever an agent sends, and no answer promises what is not safe."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.capture.block import LAYOUT_PLAIN, MalformedBlock
from guestagent.collector.registry import Registry
from guestagent.collector.sinks import reader
from guestagent.collector.sinks.shared import standard_output
from guestagent.model import MOST_INTERFACES
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind, ProtocolError
from guestagent.tapstream.hello import encode_interface
from tests.captures import numbers, packet, small_disk
from tests.fakes import EPOCH_NS, agent_hello, block_frame, interface, packets_frame, parsed, run_of_records
from tests.registries import nowhere, registry, take

__all__ = ["registry"]

UNKNOWN_INTERFACE = packets_frame(1, [packet(1)], interface_id=9)
GOOD, COUNT = run_of_records([packet(1)])


def report_frame(sequence: int, text: bytes) -> bytes:
    """A REPORT of any text."""
    return frames.encode(Kind.REPORT, text, sequence=sequence)


def info_frame(sequence: int, identifier: int) -> bytes:
    """An INFO of an interface."""
    return frames.encode_json(Kind.INFO, encode_interface(interface(identifier)), sequence=sequence)


def test_frames_are_written_once(registry: Registry, tmp_path: Path) -> None:
    """A frame that comes again is counted as duplicate and not written; numbers that never come are gaps."""
    run, answer = registry.open(agent_hello())
    for sequence in (1, 2, 2, 1, 5, 3, 6):
        assert take(run, packets_frame(sequence, [packet(sequence)]))
    registry.said_goodbye(run, "done")
    counts = registry.report()["agents"]["vm-1"]

    assert answer.held_sequence is None
    assert [1, 2, 5, 6] == numbers(next(tmp_path.rglob("*.pcapng")))
    assert (4, 4, 2, 3) == tuple(counts[key] for key in ("received", "written", "gaps", "duplicates"))


BAD_FRAMES = [
    pytest.param(frames.encode(Kind.BLOCK, b"1234567", sequence=1), "too short", id="short block"),
    pytest.param(block_frame(1, GOOD, COUNT + 1), "record at byte 0", id="count that lies"),
    pytest.param(block_frame(1, bytes(200), 2**32 - 1), "stale record", id="four billion records"),
    pytest.param(UNKNOWN_INTERFACE, "no hello or INFO named", id="unknown interface"),
    pytest.param(packets_frame(0, [packet(1)]), "numbered from 1", id="sequence 0"),
    pytest.param(report_frame(1, b"[]"), "no JSON object", id="report of no object"),
    pytest.param(report_frame(1, b'{"a":' * 9000 + b"1" + b"}" * 9000), "REPORT", id="deep report"),
    pytest.param(frames.encode(Kind.INFO, b"{}", sequence=1), "no JSON object", id="info of nothing"),
    pytest.param(frames.encode(Kind.HELLO, b"{}", sequence=1), "has no place", id="second hello"),
    pytest.param(frames.encode(Kind.ACK, b"", sequence=1), "has no place", id="ack"),
    pytest.param(frames.encode(Kind.LEASE, b"", sequence=1), "has no place", id="lease"),
]


@pytest.mark.parametrize("data, message", BAD_FRAMES)
def test_a_bad_frame_changes_nothing(registry: Registry, tmp_path: Path, data: bytes, message: str) -> None:
    """A frame that is refused leaves sequence, counts and file as they were, and the run goes on."""
    run, _ = registry.open(agent_hello())
    with pytest.raises((ProtocolError, MalformedBlock), match=message):
        take(run, data)

    assert (0, 0, 0) == (run.place.held_sequence, run.received, run.written)
    assert take(run, packets_frame(1, [packet(7)]))
    assert [7] == numbers(next(tmp_path.rglob("*.pcapng")))


def test_a_report_of_any_depth() -> None:
    """However deep a REPORT is nested, it is written or refused: decoding and encoding need not agree on the limit."""
    with nowhere() as registry:
        run, _ = registry.open(agent_hello())
        outcomes = []
        for depth in range(700, 1000):
            text = b'{"a":' * depth + b"1" + b"}" * depth
            try:
                take(run, report_frame(run.place.held_sequence + 1, text))
                outcomes.append(True)
            except ProtocolError:
                outcomes.append(False)

        assert sum(outcomes) == run.place.held_sequence
        assert not outcomes[-1]


def test_interfaces_are_bounded(registry: Registry) -> None:
    """INFO frames and hellos can't make the marks of a run grow without end."""
    run, _ = registry.open(agent_hello())
    for sequence in range(1, MOST_INTERFACES):
        take(run, info_frame(sequence, sequence))
    with pytest.raises(ProtocolError, match=f"more than {MOST_INTERFACES} interfaces"):
        take(run, info_frame(MOST_INTERFACES, MOST_INTERFACES))
    assert MOST_INTERFACES - 1 == run.place.held_sequence

    again = agent_hello(interfaces=tuple(interface(at) for at in range(300, 330)))
    with pytest.raises(ProtocolError, match=f"more than {MOST_INTERFACES} interfaces"):
        registry.open(again)


def test_new_facts_of_a_known_interface_pass(registry: Registry) -> None:
    """MTU and MAC may change as often as they like."""
    run, _ = registry.open(agent_hello())
    for sequence in range(1, 200):
        assert take(run, info_frame(sequence, 0))


def test_an_address_that_went_is_no_longer_lent(registry: Registry) -> None:
    """Peers leave packets only to addresses that the agent still has: the old one may be a host's that nobody taps."""
    run, _ = registry.open(agent_hello(interfaces=(replace(interface(0), addresses=("10.0.0.5",)),)))
    assert ("10.0.0.5",) == run.member.addresses
    facts = encode_interface(replace(interface(0), addresses=("10.0.0.6", "fd00::6")))
    assert take(run, frames.encode_json(Kind.INFO, facts, sequence=1))

    assert ("10.0.0.6", "fd00::6") == run.member.addresses


def test_an_answer_promises_only_what_is_safe(registry: Registry, tmp_path: Path) -> None:
    """While the disk is full, an agent that comes back is told what is on the disk, not what waits in memory."""
    run, _ = registry.open(agent_hello())
    assert take(run, packets_frame(1, [packet(1)]))
    with small_disk(30):
        assert not take(run, packets_frame(2, [packet(2)]))
        _, answer = registry.open(agent_hello(first_sequence=2))
        assert 1 == answer.held_sequence
        assert "the collector can't write: No space left on device" == run.notes()["note"]
    _, answer = registry.open(agent_hello(first_sequence=2))
    assert 2 == answer.held_sequence
    assert [1, 2] == numbers(next(tmp_path.rglob("*.pcapng")))
    assert {} == run.notes()


def test_a_frame_in_front_of_a_bad_one_is_not_promised_unwritten(registry: Registry, tmp_path: Path) -> None:
    """What came in one turn with a bad frame is written before a new hello is told that it is held."""
    run, _ = registry.open(agent_hello())
    run.frame(parsed(packets_frame(1, [packet(1)])), 0.0)
    with pytest.raises(MalformedBlock):
        run.frame(parsed(block_frame(2, GOOD, 2)), 0.0)
    _, answer = registry.open(agent_hello())

    assert 1 == answer.held_sequence
    assert [1] == numbers(next(tmp_path.rglob("*.pcapng")))
    assert 1 == registry.report()["agents"]["vm-1"]["malformed"]


def test_stale_records_are_told_per_interface(registry: Registry) -> None:
    """Stale records are counted over the run, by interface, in ACKs, hellos and the report."""
    hello = agent_hello(interfaces=(interface(0), interface(7, "eth7")))
    run, _ = registry.open(hello)
    stale, count = run_of_records([packet(1)] * 3, status=0)
    take(run, block_frame(1, stale, count))
    take(run, block_frame(2, stale, count, interface_id=7))
    take(run, block_frame(3, stale, count))
    _, answer = registry.open(hello)

    assert {"unsupported_gso": {"0": 6, "7": 3}} == run.notes()
    assert {0: 6, 7: 3} == answer.unsupported_gso
    counts = registry.report()["agents"]["vm-1"]
    assert (9, 0, 9) == tuple(counts[key] for key in ("received", "written", "unsupported_gso"))


def test_a_shared_file_describes_more_than_65536_interfaces() -> None:
    """A file that many runs share for months has no limit of interfaces, and later packets find theirs."""
    read_end, write_end = os.pipe()
    descriptor = os.open(os.devnull, os.O_WRONLY)
    sink = standard_output(descriptor)
    sink._described.count = 70_000
    registry = Registry(sink, "collector-1", "0.1")
    run, _ = registry.open(agent_hello())
    assert take(run, packets_frame(1, [packet(4)]))
    os.dup2(write_end, descriptor)
    os.close(write_end)
    assert take(run, packets_frame(2, [packet(5)]))
    registry.close()
    os.close(descriptor)
    with os.fdopen(read_end, "rb") as pipe:
        assert [70_000] == [row[0] for row in reader.packets(pipe.read())]


def test_the_plain_layout_is_written_too(registry: Registry, tmp_path: Path) -> None:
    """An agent without virtio headers is served like any other."""
    run, _ = registry.open(agent_hello(layout=LAYOUT_PLAIN))
    take(run, packets_frame(1, [packet(3)]))

    assert [3] == numbers(next(tmp_path.rglob("*.pcapng")))


KINDS = st.sampled_from([Kind.BLOCK, Kind.REPORT, Kind.INFO, Kind.ACK])


@given(st.lists(st.tuples(KINDS, st.integers(0, 9), st.integers(0, 2), st.binary(max_size=200)), max_size=12))
def test_fuzzed_frames_never_surprise(rows: list[tuple[Kind, int, int, bytes]]) -> None:
    """Frames of any payload are taken or refused with the two errors that the server expects, and counts add up."""
    with nowhere() as registry:
        run, _ = registry.open(agent_hello(started_ns=EPOCH_NS))
        for kind, sequence, interface_id, payload in rows:
            try:
                take(run, frames.encode(kind, payload, interface=interface_id, sequence=sequence))
            except (ProtocolError, MalformedBlock):
                continue
        assert run.received == run.written + sum(run.place.unsupported_gso.values())
