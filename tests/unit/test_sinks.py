"""What `--write` names: one file, one stream; and the statistics with which each run ends."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from guestagent.collector.registry import Registry
from guestagent.collector.sinks import pcapng, reader
from guestagent.collector.sinks.directory import Rotation
from guestagent.collector.sinks.shared import open_sink, single_file, standard_output
from guestagent.collector.sinks.track import Track
from guestagent.errors import ConfigError, RunError
from tests.captures import OTHER_RUN, packet
from tests.fakes import EPOCH_NS, agent_hello, interface, packets_frame, parsed


@pytest.mark.parametrize("write", ["{}/file/captures", "{}/file/all.pcapng"])
def test_a_place_that_can_not_be_is_one_sentence(tmp_path: Path, write: str) -> None:
    """A path below a file is refused at start, with what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"choose another --write$"):
        open_sink(write.format(tmp_path), Rotation(), fsync=False, wire_size=False, stdout=lambda: 1)


def test_standard_output_is_one_stream() -> None:
    """Several runs go into one pcapng stream that a reader understands while it grows."""
    read_end, write_end = os.pipe()
    registry = Registry(standard_output(write_end), "collector-1", "0.1")
    hellos = [agent_hello(), agent_hello(OTHER_RUN, agent_id="vm-2", interfaces=(interface(5, "ens5"),))]
    runs = [registry.open(hello)[0] for hello in hellos]
    for at in (0, 1, 0):
        run = runs[at]
        data = packets_frame(run.place.held_sequence + 1, [packet(at)], interface_id=run.hello.interfaces[0].id)
        run.frame(parsed(data), 0.0)
        assert run.flush(0.0)
    registry.close()
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()

    assert [(0, 0), (1, 1), (0, 0)] == [(row[0], int.from_bytes(row[-1][:4], "big")) for row in reader.packets(data)]


def test_statistics_come_from_the_last_report(tmp_path: Path) -> None:
    """The statistics block holds the agent's counters of its last REPORT; what is no sound number is left out."""
    counts = {"captured": 100, "dropped_by_ring": 7, "unsupported_gso": -1}
    for value, expected in (
        ({"interfaces": {"0": counts}}, {4: 100, 6: 100, 7: 7, 8: 1}),
        ({"interfaces": {"0": {"captured": 2**70, "dropped_by_ring": True}}}, {4: 1, 6: 1, 7: 0, 8: 1}),
        ({"interfaces": {"0": 5}}, {4: 1, 6: 1, 7: 0, 8: 1}),
        ({"interfaces": [1]}, {4: 1, 6: 1, 7: 0, 8: 1}),
        ({"interfaces": None}, {4: 1, 6: 1, 7: 0, 8: 1}),
        ({}, {4: 1, 6: 1, 7: 0, 8: 1}),
    ):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pcapng"
        sink = single_file(path)
        track, _ = sink.open_run(agent_hello())
        _write_one(track)
        track.report(value)  # type: ignore[arg-type]
        track.end("the end")
        sink.close()
        data = path.read_bytes()
        found = [
            {
                code: int.from_bytes(field, "little")
                for code, field in reader.options(data, start + 20, stop - 4)
                if code > 1
            }
            for kind, start, stop in reader.blocks(data)
            if kind == pcapng.STATISTICS
        ]
        assert [expected] == found


def _write_one(track: Track) -> None:
    frame = parsed(packets_frame(1, [packet(1)]))
    track.records(0, frame.payload[8:], 1)


@pytest.mark.parametrize("seconds, text", [(EPOCH_NS, "2023-11-14T22:13:20.123Z"), (0, "1970-01-01T00:00:00.000Z")])
def test_gaps_are_told_in_utc(seconds: int, text: str) -> None:
    """Times of gaps are ISO 8601 in UTC, to the millisecond."""
    from guestagent.collector.run import utc

    assert text == utc(seconds)


def test_runs_without_end_fill_no_memory_while_nobody_reads() -> None:
    """Each hello describes its interfaces and each run its end; behind a full pipe there is a bound to that."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write_end, bytes(4096))
    registry = Registry(standard_output(write_end), "collector-1", "0.1")
    facts = tuple(interface(at) for at in range(64))

    def take(number: int) -> None:
        run, _ = registry.open(agent_hello(f"{number:032x}", interfaces=facts))
        assert not run.flush(0.0)
        registry.broke(run)

    for number in range(100):
        take(number)
    with pytest.raises(RunError, match="no further run is taken"):
        list(map(take, range(100, 5000)))
    os.close(read_end)
    os.close(write_end)
