"""`guestagent merge`, and interfaces that change: each packet once, under the description that held when it came."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pcapng import FileScanner
from pcapng.blocks import EnhancedPacket, InterfaceStatistics

from guestagent.collector.registry import Registry
from guestagent.collector.sinks.directory import DirectorySink, Rotation
from guestagent.errors import ConfigError, GuestagentError
from guestagent.merge import merge
from guestagent.model import Interface
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.hello import encode_interface
from tests.captures import packet
from tests.fakes import agent_hello, interface, packets_frame, parsed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pcapng")
Seen = list[tuple[int, str]]
"""Number of each packet and what is said of its interface."""


class Step(NamedTuple):
    """One frame of a run: packets on an interface, or (`packets` None) a new MTU of it."""

    interface_id: int
    packets: int | None
    mtu: int


STEPS = st.lists(
    st.builds(Step, st.integers(0, 1), st.one_of(st.none(), st.integers(1, 3)), st.sampled_from([1400, 1500, 9000])),
    min_size=1,
    max_size=12,
)


def played(steps: list[Step]) -> tuple[list[bytes], list[dict[int, Interface]], list[Seen]]:
    """Of each step: its frame, the facts that a hello right before it has (they run ahead of INFO), its packets."""
    facts = {0: interface(), 1: interface(1, "eth1")}
    made: list[bytes] = []
    before: list[dict[int, Interface]] = []
    brought: list[Seen] = []
    number = 0
    for sequence, step in enumerate(steps, 1):
        if step.packets is None:
            facts[step.interface_id] = replace(facts[step.interface_id], mtu=step.mtu)
        before.append(dict(facts))
        if step.packets is None:
            value = encode_interface(facts[step.interface_id])
            made.append(frames.encode_json(Kind.INFO, value, sequence=sequence))
            brought.append([])
            continue
        numbers = range(number, number + step.packets)
        number += step.packets
        made.append(packets_frame(sequence, [packet(one) for one in numbers], step.interface_id))
        one = facts[step.interface_id]
        brought.append([(one_number, f"{one.name}, MTU {one.mtu}") for one_number in numbers])
    return made, before, brought


def collected(root: Path, steps: list[Step], first: int, last: int, rotate_bytes: int = 0, restart: int = 0) -> None:
    """A collector takes the frames from `first` to `last`, and is started anew before `restart`."""
    made, before, _ = played(steps)
    registry, run = None, None
    for sequence in range(first, last + 1):
        if registry is None or sequence == restart:
            if registry is not None:
                registry._sink.close()
            registry = Registry(DirectorySink(root, Rotation(rotate_bytes=rotate_bytes)), root.name, "0")
            facts = tuple(before[sequence - 1].values())
            run, _ = registry.open(agent_hello(first_sequence=sequence, interfaces=facts))
        assert run is not None
        run.frame(parsed(made[sequence - 1]), 0.0)
        assert run.flush(0.0)
    if registry is not None:
        registry.close()


def seen(*paths: Path) -> Seen:
    """Packets and their interface, as python-pcapng reads a file."""
    found = []
    for path in paths:
        for block in FileScanner(BytesIO(path.read_bytes())):
            if isinstance(block, EnhancedPacket):
                options = block.interface.options
                mtu = options["if_description"].rpartition("MTU ")[2]
                number = int.from_bytes(block.packet_data[:4], "big")
                found.append((number, f"{options['if_name']}, MTU {mtu}"))
    return found


def files(root: Path) -> list[Path]:
    """In the order they were written."""
    return sorted(root.rglob("*.pcapng"), key=lambda path: (path.stat().st_mtime_ns, len(path.name), path.name))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, data=st.data())
def test_packets_stand_under_the_facts_of_their_time(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step], data: st.DataObject
) -> None:
    """Whatever changes when, also across files and a restart: each packet once, under what held when it came."""
    root = tmp_path_factory.mktemp("facts") / "a"
    rotate_bytes = data.draw(st.sampled_from([0, 900]))
    collected(root, steps, 1, len(steps), rotate_bytes, data.draw(st.integers(0, len(steps))))
    assert [one for brought in played(steps)[2] for one in brought] == seen(*files(root))


@settings(max_examples=40, deadline=None)
@given(steps=STEPS, data=st.data())
def test_a_merge_holds_each_packet_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step], data: st.DataObject
) -> None:
    """Two collectors with an overlap, or a gap, between them: the union, each packet once, what is missing counted."""
    root = tmp_path_factory.mktemp("merge")
    last = data.draw(st.integers(1, len(steps)))
    first = data.draw(st.integers(1, len(steps)))
    rotate_bytes = data.draw(st.sampled_from([0, 900]))
    collected(root / "a", steps, 1, last, rotate_bytes)
    collected(root / "b", steps, first, len(steps), rotate_bytes)
    brought = played(steps)[2]
    missing = range(last + 1, first)
    names = data.draw(st.permutations([str(path) for path in files(root)]))
    said = merge(names, str(root / "out.pcapng"))

    expected = [one for sequence, found in enumerate(brought, 1) if sequence not in missing for one in found]
    assert sorted(expected) == sorted(seen(root / "out.pcapng"))
    twice = sum(len(found) for sequence, found in enumerate(brought, 1) if first <= sequence <= last)
    assert f"{len(expected)} packets in" in said
    assert f"; {twice} were there twice, {len(missing)} frames of the runs are in none" in said


def a_capture(root: Path) -> Path:
    """One file with two interfaces, one of which changes."""
    steps = [Step(0, 2, 0), Step(0, None, 9000), Step(0, 2, 0), Step(1, 1, 0)]
    collected(root, steps, 1, len(steps))
    (path,) = files(root)
    return path


def test_statistics_of_each_description(tmp_path: Path) -> None:
    """What an interface counted under its old facts is concluded there; the rest stands with the new ones."""
    path = a_capture(tmp_path / "a")
    found = [block for block in FileScanner(BytesIO(path.read_bytes())) if isinstance(block, InterfaceStatistics)]
    told = [(one.interface_id, one.options["isb_usrdeliv"], one.options["opt_comment"]) for one in found]
    assert (0, 2, "the interface changed and is described anew") == told[0]
    assert [(2, 2), (1, 1)] == [one[:2] for one in told[1:]]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6), end=st.floats(0, 1)
)
def test_damaged_files_are_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]], end: float
) -> None:
    """Whatever bytes are changed or missing, a merge writes what it can, or one sentence says which file is bad."""
    root = tmp_path_factory.mktemp("damaged")
    path = a_capture(root / "a")
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    path.write_bytes(data[: int(end * len(data)) + 1])
    said = ""
    try:
        merge([str(path)], str(root / "out.pcapng"))
    except GuestagentError as error:
        said = str(error)
    assert str(path) in said or (not said and (root / "out.pcapng").exists())


@pytest.mark.parametrize("case", ["merged", "foreign", "absent", "there"])
def test_what_can_not_be_merged_is_said(tmp_path: Path, case: str) -> None:
    """A merged file has no marks, a foreign one has none of ours, and nothing is ever written over."""
    path, out = a_capture(tmp_path / "a"), tmp_path / "out.pcapng"
    merge([str(path)], str(out))
    sources: dict[str, Any] = {
        "merged": ([out], "packets without marks, as what was merged before"),
        "foreign": ([tmp_path / "foreign"], "is no capture of guestagent collect"),
        "absent": ([tmp_path / "absent"], "can't be read: No such file"),
        "there": ([path], "exists: choose another -o"),
    }
    (tmp_path / "foreign").write_bytes(b"\xd4\xc3\xb2\xa1" + bytes(60))
    names, said = sources[case]
    target = out if case == "there" else tmp_path / "again.pcapng"
    with pytest.raises(ConfigError, match=said):
        merge([str(name) for name in names], str(target))
