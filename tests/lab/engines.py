"""An engine at work in a process of its own inside the agent's network; `Remote` drives it from here over a pipe.

It reads as the agent does, edge-triggered and only when woken, so that an edge that never comes is a failed test.
"""

import ctypes
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from guestagent.capture.assembler import assemble
from guestagent.capture.block import STATUS_VLAN_VALID, walk
from guestagent.capture.bpf import compose
from guestagent.capture.interfaces import describe, links
from guestagent.capture.portable import PortableSource
from guestagent.capture.ring import FEWEST_BLOCKS, RETIRE_MS, Ring
from guestagent.capture.source import PRIVATE_BYTES, RetiredBlock, Source
from guestagent.lab.hosts import Host
from guestagent.lab.packets import ethernet, udp_payload

ENGINES = {"ring": Ring, "portable": PortableSource}
LOCAL_EXPERIMENTAL, LOCAL_EXPERIMENTAL_2 = 0x88B5, 0x88B6
"""EtherTypes that IEEE 802 sets aside for experiments: no kernel sends such frames on its own."""
VLAN, SERVICE_VLAN = 0x8100, 0x88A8
OTHER_MAC = "02:00:00:00:00:99"
QUIET_SECONDS = 4 * RETIRE_MS / 1000
"""Silence after which nothing is still to come: what is not handed over within 3 retire times is a fault."""
PATIENCE_SECONDS = 10.0
PRIVATE = b"\xaa" * PRIVATE_BYTES


class Seen(NamedTuple):
    """One record."""

    frame: bytes
    original_bytes: int
    direction: int
    vlan: tuple[int, int] | None
    status: int
    waited_seconds: float
    """From the packet's time to the hand-over of its block."""


class Bench:
    """An engine at work, inside the agent's network: what `Remote` can ask for."""

    def __init__(self, kind: str, ifname: str, program: Any, block_count: int) -> None:
        link = links()[ifname]
        self.source: Source = ENGINES[kind](describe(link, 0), link.index, program, block_count=block_count)
        self.held: list[RetiredBlock] = []
        self.addresses: list[int] = []
        self._epoll = select.epoll()
        self._epoll.register(self.source.fileno(), select.EPOLLIN | select.EPOLLET)

    def collect(self, count: int | None = None, *, hold: bool = False, quiet: float = QUIET_SECONDS) -> list[Seen]:
        """Records until there are `count`, or none came for `quiet` seconds; blocks go back, or with `hold` stay."""
        seen: list[Seen] = []
        silent_at = time.monotonic() + (quiet if count is None else PATIENCE_SECONDS)
        while (count is None or len(seen) < count) and time.monotonic() < silent_at:
            if not self._epoll.poll(0.01):
                continue
            while block := self.source.take():
                silent_at = max(silent_at, time.monotonic() + quiet)
                seen += self._read(block)
                self.held.append(block)
                if not hold:
                    self.release()
        return seen

    def _read(self, block: RetiredBlock) -> list[Seen]:
        block.memory[block.start - PRIVATE_BYTES : block.start] = PRIVATE
        cell = ctypes.c_char.from_buffer(block.memory)
        self.addresses.append(ctypes.addressof(cell))
        del cell
        records, now_ns, found = block.memory[block.start : block.end], time.time_ns(), []
        for record in walk(records, block.records):
            assert record, "a stale record"
            time_ns, captured, original, status, start, stop, tci, tpid, direction = record
            assert stop - start == captured
            vlan = (tpid, tci) if status & STATUS_VLAN_VALID else None
            waited = (now_ns - time_ns) / 1e9
            found.append(Seen(bytes(records[start:stop]), original, direction, vlan, status, waited))
        return found

    def release(self) -> None:
        """Give back every held block, oldest first."""
        for block in self.held:
            self.source.release(block)
        self.held.clear()

    def ask(self, blocks: int) -> None:
        """Have a question for `is_enough`."""
        self._question = self.source.filling(blocks)

    def is_enough(self) -> bool:
        """Its answer at this moment."""
        return bool(self._question())

    def block_addresses(self) -> list[int]:
        """Where each block lay that was taken so far."""
        return self.addresses

    def edges(self, seconds: float) -> int:
        """How often the descriptor wakes us while nothing happens."""
        until, edges = time.monotonic() + seconds, 0
        while (rest := until - time.monotonic()) > 0:
            edges += len(self._epoll.poll(rest))
        return edges


class Remote:
    """A Bench in the agent's network; an unknown attribute is a method of it or of its source, called over there."""

    def __init__(self, host: Host, kind: str, program: Any, block_count: int) -> None:
        self._pipe, theirs = _processes.Pipe()
        self._task = host.start(_serve, theirs, kind, "eth0", program, block_count)
        theirs.close()
        self._answer()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self._pipe.send((name, arguments, named))
            return self._answer()

        return call

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            return self._task.result()  # raises with the traceback of the other side

    def end(self) -> None:
        """Let the other side close its source and go."""
        self._pipe.send(None)
        self._task.result()
        self._pipe.close()


_processes: BaseContext = get_context("fork")


def _serve(pipe: Connection, kind: str, ifname: str, program: Any, block_count: int) -> None:
    bench = Bench(kind, ifname, program, block_count)
    pipe.send("ready")
    while wish := pipe.recv():
        name, arguments, named = wish
        pipe.send(getattr(bench if hasattr(bench, name) else bench.source, name)(*arguments, **named))
    bench.source.close()
    bench.source.close()


def of_type(ethertype: int, slice_: str | int = "full") -> Any:
    """A program that selects frames of one EtherType, behind their VLAN tags where the kernel took them out."""
    wanted = assemble(f"ldh [12]\n jeq #{ethertype}, yes\n ret #0\n yes: ret #262144")
    return compose(user_filter=wanted, slice_=slice_)


OURS = of_type(LOCAL_EXPERIMENTAL)


def numbered(count: int, size: int = 200, ethertype: int = LOCAL_EXPERIMENTAL) -> list[bytes]:
    """Frames that differ in every byte behind the header."""
    return [ethernet(udp_payload(i, size), ethertype) for i in range(count)]


@contextmanager
def capturing(host: Host, kind: str, program: Any = OURS, block_count: int = FEWEST_BLOCKS) -> Iterator[Remote]:
    """An engine at work on the agent's eth0."""
    remote = Remote(host, kind, program, block_count)
    yield remote
    remote.end()
