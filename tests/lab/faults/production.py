"""What the VM is there for: transfers that are checked byte for byte and timed, and datagrams that are numbered."""

import statistics
import time
from pathlib import Path
from typing import NamedTuple

from guestagent.lab.hosts import Host
from guestagent.lab.packets import udp_send, udp_sink
from guestagent.lab.traffic import send_bulk, serve_bulk

DATAGRAMS_PER_SECOND, DATAGRAM_BYTES, DATAGRAM_PORT = 1000, 300, 9000
MOST_SECONDS = 1200


class Pace(NamedTuple):
    """How much production transfers."""

    transfer_bytes: int
    pause_seconds: float
    idle_seconds: float
    """Silence after which the datagrams' receiver takes them for all: longer than the machine may stand still."""


BRISK = Pace(1_000_000, 0.15, 2.0)
"""7 MB/s with the datagrams: copies that one process can relay frame by frame."""
LASTING = Pace(200_000, 0.25, 8.0)
"""1.2 MB/s: 10 minutes of copies fit into memory."""


class Transfer(NamedTuple):
    """One that arrived as it was sent; times are CLOCK_MONOTONIC."""

    began: float
    seconds: float


class Production:
    """Runs between two hosts until `end`."""

    def __init__(self, vm: Host, peer: Host, address: str, log: Path, pace: Pace) -> None:
        self._log = log
        log.touch()
        self._server = peer.start(serve_bulk)
        self._sink = peer.start(udp_sink, DATAGRAM_PORT, None, pace.idle_seconds)
        peer.wait_for_port(DATAGRAM_PORT)
        peer.wait_for_port(5001)
        count = MOST_SECONDS * DATAGRAMS_PER_SECOND
        self._tasks = [
            vm.start(transfer, address, str(log), pace),
            vm.start(udp_send, address, DATAGRAM_PORT, count, DATAGRAMS_PER_SECOND, DATAGRAM_BYTES),
        ]

    def transfers(self) -> list[Transfer]:
        """All so far."""
        lines = self._log.read_text().rpartition("\n")[0].splitlines()
        return [Transfer(*map(float, line.split())) for line in lines]

    def assert_well(self) -> None:
        """Raises what a client raised: a wrong byte, a refused connection, a time-out."""
        for task in self._tasks:
            if task.poll() is not None:
                task.result()

    def end(self) -> int:
        """Stop sending; how many datagrams arrived, each of them once and whole."""
        self.assert_well()
        for task in self._tasks:
            task.terminate()
            task.wait()
        received = self._sink.result()
        self._server.terminate()
        assert (received.packets, received.corrupt) == (received.distinct, 0), received
        return received.distinct


def transfer(address: str, log: str, pace: Pace) -> None:
    """Transfer after transfer, each logged with its times; runs inside the VM until terminated."""
    with Path(log).open("a") as lines:
        while True:
            began = time.monotonic()
            send_bulk(address, pace.transfer_bytes)
            lines.write(f"{began} {time.monotonic() - began}\n")
            lines.flush()
            time.sleep(pace.pause_seconds)


def kept(transfers: list[Transfer], during: list[tuple[float, float]], one: tuple[float, float]) -> float:
    """Throughput within `one` of the spans, as a part of that outside; medians. 1 where none began in it."""

    def within(span: tuple[float, float]) -> list[float]:
        return [each.seconds for each in transfers if span[0] <= each.began <= span[1]]

    calm = [each.seconds for each in transfers if not any(start <= each.began <= end for start, end in during)]
    here = within(one)
    return statistics.median(calm) / statistics.median(here) if here else 1.0
