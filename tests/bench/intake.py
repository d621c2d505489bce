"""What it costs to take foreign tunnels: one process, loopback, with and without UDP_GRO.

    python -m tests.bench.intake

One child sends VXLAN by UDP_SEGMENT (so that datagrams of one flow come in runs, as a NIC's GRO would hand them over)
or one by one; the collector's intake takes them into a directory. CPU of the collector per frame, medians of rounds.
"""

import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from guestagent.collector import intake
from guestagent.collector.registry import Registry
from guestagent.collector.sinks.directory import DirectorySink, Rotation
from guestagent.collector.tunnels import Tunnels
from guestagent.encap import vxlan
from guestagent.endpoint import Endpoint
from guestagent.loop import Loop

FRAMES, ROUNDS, RUN = 60_000, 5, 32
_SOL_UDP, _UDP_SEGMENT = 17, 103


def _send(port: int, size: int, in_runs: bool) -> None:
    """FRAMES datagrams in bursts that the receiver's buffer can hold."""
    datagram = vxlan.header(7) + bytes(12) + b"\x08\x00" + bytes(size - 14)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", port))
        if in_runs:
            one.setsockopt(_SOL_UDP, _UDP_SEGMENT, len(datagram))
        for number in range(FRAMES // RUN):
            for piece in [datagram * RUN] if in_runs else [datagram] * RUN:
                one.send(piece)
            if number % 32 == 0:
                time.sleep(0.01)


def measure(size: int, in_runs: bool, gro: bool) -> tuple[float, float]:
    """(microseconds of CPU per frame, frames per message)."""
    if not gro:
        intake._UDP_GRO = 0x7FFF
    with tempfile.TemporaryDirectory() as place:
        loop = Loop()
        registry = Registry(DirectorySink(Path(place), Rotation()), "bench", "0")
        tunnels = Tunnels(loop, registry)
        port = int(tunnels.listen(Endpoint("vxlan", "127.0.0.1", 0))[0].rpartition(":")[2])
        child = os.fork()
        if not child:
            _send(port, size, in_runs)
            os._exit(0)
        began, idle = time.process_time(), 0
        while idle < 20:
            before = _frames(tunnels)
            tunnels.tick(loop.now())
            loop.run_once(0.05)
            idle = idle + 1 if _frames(tunnels) == before else 0
        spent = time.process_time() - began
        os.waitpid(child, 0)
        listener = tunnels.describe()["tunnels"]["listeners"][0]
        tunnels.close()
        registry.close()
        loop.close()
    intake._UDP_GRO = 104
    return 1e6 * spent / listener["datagrams"], listener["datagrams"] / listener["messages"]


def _frames(tunnels: Tunnels) -> int:
    return int(tunnels.describe()["tunnels"]["listeners"][0]["datagrams"])


def main() -> None:
    """Print a row for each case."""
    for size in (128, 1400):
        for in_runs in (True, False):
            for gro in (True, False):
                rows = [measure(size, in_runs, gro) for _ in range(ROUNDS)]
                cost, merged = (statistics.median(column) for column in zip(*rows, strict=True))
                sys.stdout.write(
                    f"{size:5} bytes  {'runs' if in_runs else 'singles':8} GRO {'on' if gro else 'off':4}"
                    f"{cost:6.2f} us/frame  {merged:5.1f} frames/message\n"
                )


if __name__ == "__main__":
    main()
