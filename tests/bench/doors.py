"""What the collector takes through its doors: tcp and tls, one worker and two, in turn.

    python -m tests.bench.doors [--rounds N] [--seconds S] [--out docs/bench]

Two agents send the same full ring block of 512-byte packets again and again over loopback, one for each worker; the
collector writes pcapng into memory. CPU of both ends per byte of frames and packets/s of wall time; medians of rounds,
whose cells are interleaved. Senders and collector share the machine's cores, so on two of them a second worker can
only win what the senders leave.
"""

import argparse
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from guestagent import pki
from guestagent.capture.block import LAYOUT_VIRTIO
from guestagent.collector.handover import owner_of
from guestagent.lab.hosts import Host, Lab
from guestagent.links.secure import Credentials
from guestagent.model import Interface
from guestagent.tapstream import frames
from guestagent.tapstream.frames import Kind
from guestagent.tapstream.hello import AgentHello, encode_agent_hello
from tests.bench.clocks import busy_share, process_seconds
from tests.bench.collector import SMALL_BYTES, block_of
from tests.bench.taps import STREAM_PORT, guestagent

ADDRESS = "127.0.0.1"
ACK_BYTES = 1 << 16
NAMES = ["vm-a", next(name for name in map(str, range(99)) if owner_of(name, 2) != owner_of("vm-a", 2))]
"""One agent for each of two workers."""
CELLS = tuple(product(("tcp", "tls"), (1, 2)))


class Cell(NamedTuple):
    """One measurement."""

    packets_per_second: float
    sender_ns_per_byte: float
    collector_ns_per_byte: float
    handed_over: int


def files(keys: Path, name: str) -> list[str]:
    """Authority, certificate and key."""
    return [str(keys / one) for one in ("ca.crt", f"{name}.crt", f"{name}.key")]


@contextmanager
def collector(host: Host, scheme: str, workers: int, keys: Path, directory: str) -> Iterator[dict[str, object]]:
    """`guestagent collect`, listening; its last status is in what it yields once it has been asked for."""
    listen = ["--listen", f"{scheme}://{ADDRESS}:{STREAM_PORT}", "--write", directory, "--workers", str(workers)]
    tls = [f"--tls-{flag}={path}" for flag, path in zip(("ca", "cert", "key"), files(keys, "collector-1"), strict=True)]
    with guestagent(host, "collect", *listen, *(tls if scheme == "tls" else ())) as (process, ask_it):
        host.wait_for_port(STREAM_PORT)
        pids = [process.pid, *(one["pid"] for one in ask_it().get("workers", ()))]
        yield {"pids": pids, "ask": ask_it}


def send(name: str, scheme: str, keys: str, seconds: float) -> tuple[int, float]:
    """Be an agent for so long; (packets, CPU seconds), once all of it is written."""
    memory, writer = block_of(SMALL_BYTES, partial=False)
    nic = Interface(id=0, name="eth0", mac="02:00:00:00:00:01", mtu=1500)
    hello = AgentHello(name, secrets.token_hex(16), "bench", "0", LAYOUT_VIRTIO, 64 << 20, time.time_ns(), 1, (nic,))
    plain = socket.create_connection((ADDRESS, STREAM_PORT))
    one: socket.socket = plain
    if scheme == "tls":
        one = Credentials(*files(Path(keys), name), server_side=False).wrap(plain, ADDRESS)
    with one:
        _say(one, frames.PREFACE + frames.encode_json(Kind.HELLO, encode_agent_hello(hello)))
        one.recv(ACK_BYTES)
        view, sequence = memoryview(memory), 0
        began, until = time.process_time(), time.monotonic() + seconds
        while time.monotonic() < until:
            sequence += 1
            header = frames.write_block_header(
                view,
                writer.start,
                writer.end,
                interface=0,
                sequence=sequence,
                records=writer.count,
                flags=frames.FLAG_LAST_OF_BLOCK,
            )
            _say(one, header)
        spent = time.process_time() - began
        _say(one, frames.encode_json(Kind.BYE, {"reason": "the bench is over"}))
        while one.recv(ACK_BYTES):
            pass
    return sequence * writer.count, spent


def _say(one: socket.socket, data: memoryview | bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[one.send(view) :]


def measure(scheme: str, workers: int, keys: Path, seconds: float) -> Cell:
    """One cell, with a collector of its own."""
    with Lab() as lab, TemporaryDirectory(prefix="guestagent-bench-", dir="/dev/shm") as directory:
        host = lab.host("collector")
        with collector(host, scheme, workers, keys, directory) as running:
            pids = running["pids"]
            before, began = process_seconds(*pids), time.monotonic()  # type: ignore[misc]
            tasks = [host.start(send, name, scheme, str(keys), seconds) for name in NAMES]
            done = [task.result(seconds * 20 + 10) for task in tasks]
            wall, spent = time.monotonic() - began, process_seconds(*pids) - before  # type: ignore[misc]
            status = running["ask"]()  # type: ignore[operator]
    packets = sum(count for count, _ in done)
    size = packets * SMALL_BYTES
    handed = sum(one["handed_over"] for one in status.get("workers", ()))
    return Cell(packets / wall, sum(cpu for _, cpu in done) / size * 1e9, spent / size * 1e9, handed)


def table(results: dict[tuple[str, int], list[Cell]]) -> str:
    """Medians, as Markdown."""
    rows = ["| Door | Workers | packets/s | sender, ns/byte | collector, ns/byte |", "|---|---:|---:|---:|---:|"]
    for (scheme, workers), cells in results.items():
        speed, sender, taker = (median(one[at] for one in cells) for at in range(3))
        low, high = min(one[0] for one in cells), max(one[0] for one in cells)
        rows.append(f"| {scheme} | {workers} | {speed:,.0f} ({low:,.0f} to {high:,.0f}) | {sender:.2f} | {taker:.2f} |")
    return "\n".join(rows)


def main() -> None:
    """All cells in turn, so many rounds."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.doors", description=__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--out", type=Path, help="directory for DOORS.md")
    flags = parser.parse_args()
    results: dict[tuple[str, int], list[Cell]] = {cell: [] for cell in CELLS}
    load = busy_share()
    with TemporaryDirectory() as directory:
        keys = Path(directory) / "pki"
        pki.make("init", "", (), str(keys))
        pki.make("collector", "collector-1", (ADDRESS,), str(keys))
        for name in NAMES:
            pki.make("agent", name, (), str(keys))
        for number in range(flags.rounds):
            for cell in CELLS:
                print(f"round {number + 1}: {cell[0]}, {cell[1]} workers", file=sys.stderr, flush=True)
                results[cell].append(measure(*cell, keys, flags.seconds))
    ratios = {
        f"tls beside tcp, {what}": median(
            tls[at] / tcp[at] for tcp, tls in zip(results["tcp", 1], results["tls", 1], strict=True)
        )
        for what, at in (("sender's CPU", 1), ("collector's CPU", 2))
    }
    ratios |= {
        f"{scheme}, packets/s of two workers beside one": median(
            two[0] / one[0] for one, two in zip(results[scheme, 1], results[scheme, 2], strict=True)
        )
        for scheme in ("tcp", "tls")
    }
    command = f"python -m tests.bench.doors --rounds {flags.rounds} --seconds {flags.seconds:g}"
    text = "\n".join(
        (
            "# Doors of the collector: tcp and tls, one worker and two",
            "",
            f"`{command}`, {os.cpu_count()} cores that senders and collector share, {load:.0%} of them busy before;",
            "512-byte packets from two agents over loopback into memory; medians (least to most), rounds interleaved.",
            "CPU per byte of frames; the ratios are medians of the ratios of each round.",
            "",
            table(results),
            "",
            *(f"- {name}: {ratio:.2f}" for name, ratio in ratios.items()),
            "",
        )
    )
    print(text)
    if flags.out:
        (flags.out / "DOORS.md").write_text(text)


if __name__ == "__main__":
    main()
