"""Foreign clocks and counters: what the kernel says of machine and process, never a tool of itself."""

import os
import re
import time
from collections.abc import Collection
from pathlib import Path

from tests.bench.group import reader

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_CPUS = os.cpu_count() or 1
_IDLE, _IOWAIT, _STEAL = 3, 4, 7
LEAST_ACCOUNTED = 0.6
_CPUCLOCK_SCHED = 2
"""linux/posix-timers.h: the clock of all threads of a process is ~pid << 3 | 2."""
_ETH_P_ALL = "0003"


class BusyClock:
    """CPU seconds that processors (none given: all) have worked since it was made: user, nice, system, irq, softirq.

    Of each processor, what is not idle (nor waiting, nor stolen). The kernel measures idle time to the nanosecond where
    the tick stops in idle, while user, system and softirq are sampled 100 to 1000 times a second: a sum of those misses
    a third of a load that comes in small bites. But on some virtual machines a processor's idle time stands still for
    seconds, which would make it look busy: where less than LEAST_ACCOUNTED of the time is told of, the sum is taken.
    """

    def __init__(self, cpus: Collection[int] = ()) -> None:
        self._cpus, self._start = cpus, time.monotonic()
        self._before = _processors(cpus)

    def seconds(self) -> float:
        """Until now."""
        wall = time.monotonic() - self._start
        return sum(_busy(wall, then, now) for then, now in zip(self._before, _processors(self._cpus), strict=True))


class WorkClock:
    """CPU seconds that the bench's control group has worked since the clock was made, and the kernel's network threads.

    Outside of a group those of the machine, by BusyClock.
    """

    def __init__(self) -> None:
        self._group, self._machine = reader(), BusyClock()
        self._threads = softirq_threads()
        self._before = self._read()

    def _read(self) -> float:
        return self._group() + process_seconds(*self._threads) if self._group else self._machine.seconds()

    def seconds(self) -> float:
        """Until now."""
        return self._read() - self._before


def softirq_threads() -> list[int]:
    """ksoftirqd of each processor: it does what is left over of senders' and receivers' work."""
    names = ((path.parent, path.read_text()) for path in Path("/proc").glob("[0-9]*/comm"))
    return [int(place.name) for place, name in names if name.startswith("ksoftirqd/")]


def _processors(cpus: Collection[int]) -> list[tuple[float, float]]:
    """(worked, idle) seconds of each of these processors, none given: of all, as /proc/stat tells them."""
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines() if re.match(r"cpu\d", line)]
    told = [[int(word) / _TICKS_PER_SECOND for word in row[1:9]] for row in rows if not cpus or int(row[0][3:]) in cpus]
    idle = [sum(row[at] for at in (_IDLE, _IOWAIT, _STEAL)) for row in told]
    return [(sum(row) - rest, rest) for row, rest in zip(told, idle, strict=True)]


def _busy(wall: float, then: tuple[float, float], now: tuple[float, float]) -> float:
    worked, idle = now[0] - then[0], now[1] - then[1]
    return max(0.0, wall - idle) if worked + idle > LEAST_ACCOUNTED * wall else worked


def process_seconds(*pids: int) -> float:
    """User and system time of living processes, in nanoseconds inside the kernel (/proc/PID/stat rounds to 10 ms)."""
    return sum(time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) for pid in pids)


def memory_bytes(pid: int) -> tuple[int, int]:
    """Resident bytes of a process: (without packet rings, packet rings)."""
    ring = rest = 0
    is_ring = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # a mapping's first line: addresses, rights, offset, device, inode, name
            is_ring = len(words) > 5 and words[5].startswith("socket:")
        elif words[0] == "Rss:":
            size = int(words[1]) * 1024
            ring, rest = (ring + size, rest) if is_ring else (ring, rest + size)
    return rest, ring


def is_tapped(pid: int, interface_index: int) -> bool:
    """Does a packet socket in this process's network receive everything from that interface?"""
    for line in Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]:
        _, _, _, protocol, index, running, *_ = line.split()
        if (protocol, int(index), running) == (_ETH_P_ALL, interface_index, "1"):
            return True
    return False


def busy_share(seconds: float = 2.0) -> float:
    """The part of the machine that works at this moment: what a bench finds before it begins."""
    clock, began = BusyClock(), time.monotonic()
    time.sleep(seconds)
    return clock.seconds() / (time.monotonic() - began) / _CPUS


def machine() -> str:
    """The processor and the system, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    system = os.uname()
    return f"{models[0] if models else system.machine}, {_CPUS} cores, {system.sysname} {system.release}"
