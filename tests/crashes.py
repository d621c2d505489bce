"""A collector that is killed inside a write, and agents that send again what nobody acknowledged."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from guestagent.collector.registry import Registry
from guestagent.collector.sinks import output, pcapng, reader
from guestagent.collector.sinks.directory import DirectorySink
from guestagent.collector.sinks.shared import SharedSink
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.hello import AgentHello, encode_interface
from tests.fakes import RUN_ID, agent_hello, block_frame, interface, packets_frame, parsed, run_of_records

Sink = DirectorySink | SharedSink
OTHER_RUN = "fedcba9876543210" * 2
INFO_SEQUENCE = 5
A_MARK = pcapng.mark(bytes.fromhex(RUN_ID), 99, 1000, 1, [(0, 0, 0, 0, 5)])


class Killed(BaseException):
    """kill -9, in the middle of a write."""


@contextmanager
def killed_after(budget: int) -> Iterator[list[int]]:
    """Let so many bytes reach the disk, then end as kill -9 does; the list counts what was written."""
    real = os.writev
    left = [budget]

    def writev(descriptor: int, batch: Sequence[bytes]) -> int:
        whole = b"".join(batch)
        if len(whole) > left[0]:
            os.write(descriptor, whole[: left[0]])
            left[0] = 0
            raise Killed
        left[0] -= len(whole)
        return real(descriptor, batch)

    with mock.patch.object(output.os, "writev", writev):
        yield left


@dataclass
class Agent:
    """An agent with all its frames: what it sends again is what nobody acknowledged."""

    hello: AgentHello
    script: list[bytes]
    acked: int = 0
    sent: int = 0

    @property
    def hello_now(self) -> AgentHello:
        """As it greets now: an interface of which it has told is one of its interfaces."""
        interfaces = (interface(), interface(1, "eth1"))[: 2 if self.sent >= INFO_SEQUENCE else 1]
        return replace(self.hello, first_sequence=self.acked + 1, interfaces=interfaces)


def script(seed: int = 0, packet_bytes: int = 20) -> list[bytes]:
    """Frames of every kind: blocks with and without stale records, reports, an interface that comes later."""
    body = bytes(packet_bytes)

    def packets(*names: int) -> list[bytes]:
        return [seed.to_bytes(1, "big") + name.to_bytes(2, "big") + body for name in names]

    stale, count = run_of_records(packets(80, 81), status=0)
    return [
        packets_frame(1, packets(1, 2)),
        frames.encode_json(Kind.REPORT, {"interfaces": {"0": {"captured": 2}}}, sequence=2),
        packets_frame(3, packets(3)),
        block_frame(4, stale, count),
        frames.encode_json(Kind.INFO, encode_interface(interface(1, "eth1")), sequence=5),
        packets_frame(6, packets(4), interface_id=1),
        packets_frame(7, [A_MARK]),
        packets_frame(8, packets(5, 6)),
        packets_frame(9, packets(7), interface_id=1),
    ]


def expected_packets(*scripts: list[bytes]) -> list[bytes]:
    """The frames of all blocks, which are good in all but one."""
    found = []
    for one in scripts:
        for data in one:
            frame = parsed(data)
            if frame.kind == Kind.BLOCK and frame.sequence != 4:
                count, records = frames.decode_block(frame)
                found += [bytes(records[r[4] : r[5]]) for r in pcapng.walk(records, count) if r]
    return sorted(found)


def written_packets(root: Path) -> list[bytes]:
    """Every packet of every file below."""
    return sorted(bytes(row[-1]) for path in root.rglob("*.pcapng") for row in reader.packets(path.read_bytes()))


def serve(sink: Sink, agents: Sequence[Agent], last: int | None = None) -> Registry:
    """Greet all agents, take their frames in turns, each flushed and acknowledged; up to the sequence `last`."""
    registry = Registry(sink, "collector-1", "0.1")
    runs = []
    for agent in agents:
        run, answer = registry.open(agent.hello_now)
        held = answer.held_sequence
        assert (held or 0) >= agent.acked, "the collector forgot what it had acknowledged"
        agent.acked = held or 0
        runs.append(run)
    for sequence in range(1, 1 + max(len(agent.script) for agent in agents)):
        for agent, run in zip(agents, runs, strict=True):
            if agent.acked < sequence <= len(agent.script) and (last is None or sequence <= last):
                agent.sent = max(agent.sent, sequence)
                run.frame(parsed(agent.script[sequence - 1]), 0.0)
                if run.flush(0.0):
                    agent.acked = run.place.held_sequence
                assert 0 == run.place.gaps == run.place.duplicates
    return registry


def abandon(sink: Sink) -> None:
    """What the kernel does with a killed process's descriptors."""
    outputs = [track.output for track in sink._tracks] if isinstance(sink, DirectorySink) else [sink._output]
    for one in outputs:
        os.close(one._descriptor)
    os.close(sink._hold)


def crash_and_resume(open_sink: Callable[[], Sink], agents: Sequence[Agent], budget: int) -> bool:
    """Serve until killed after so many bytes, then serve the rest with a new process; True where it was killed."""
    sink = None
    try:
        with killed_after(budget):
            sink = open_sink()
            serve(sink, agents)
    except Killed:
        pass
    assert sink is not None
    abandon(sink)
    was_killed = any(agent.acked < len(agent.script) for agent in agents)
    again = open_sink()
    registry = serve(again, agents)
    assert all(len(agent.script) == agent.acked for agent in agents)
    registry.close()
    return was_killed


def check_whole(path: Path) -> None:
    """Every byte belongs to a whole block, and every packet stands before a mark of its run."""
    data = path.read_bytes()
    assert len(data) == list(reader.blocks(data))[-1][2]
    assert len(data) == reader.recover(data, from_last_mark=False).whole_bytes


def agents_of(number: int) -> list[Agent]:
    """One or two agents."""
    hellos = [agent_hello(), agent_hello(OTHER_RUN, agent_id="vm-2")]
    return [Agent(hello, script(at)) for at, hello in enumerate(hellos[:number])]


def bytes_of(open_sink: Callable[[], Sink], number: int) -> int:
    """How many bytes a run without a crash writes."""
    with killed_after(1 << 30) as left:
        sink = open_sink()
        serve(sink, agents_of(number))
    abandon(sink)
    return (1 << 30) - left[0]
