"""Foreign clocks and counters: what the kernel says of machine and process, never a tool of itself."""

import os
import time
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_CPUS = os.cpu_count() or 1
_IDLE, _IOWAIT, _STEAL = 3, 4, 7
_CPUCLOCK_SCHED = 2
"""linux/posix-timers.h: the clock of all threads of a process is ~pid << 3 | 2."""
_ETH_P_ALL = "0003"


def busy_seconds() -> float:
    """CPU seconds that this machine has worked, from any beginning: user, nice, system, irq and softirq together.

    Taken as what is not idle (nor waiting, nor stolen). The kernel measures idle time to the nanosecond where the tick
    stops in idle, while user, system and softirq are sampled 100 to 1000 times a second: a sum of those misses a third
    of a load that comes in small bites.
    """
    fields = Path("/proc/stat").read_text().split(maxsplit=10)[1:]
    idle = sum(int(fields[at]) for at in (_IDLE, _IOWAIT, _STEAL))
    return _CPUS * time.monotonic() - idle / _TICKS_PER_SECOND


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


def machine() -> str:
    """The processor and the system, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))]
    system = os.uname()
    return f"{models[0] if models else system.machine}, {_CPUS} cores, {system.sysname} {system.release}"
