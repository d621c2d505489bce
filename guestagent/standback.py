"""The application goes first, on the scheduler's terms: nice, SCHED_BATCH, and a slice longer than anyone's.

A nice process still holds up who wakes beside it: since Linux 6.6 the running one keeps its core to the end of its
slice, unless the one that wakes asks for a shorter slice (kernel/sched/features.h: RUN_TO_PARITY, and PREEMPT_SHORT
since 6.12). And a SCHED_BATCH process that wakes takes the core from nobody. docs/decisions.md has the figures: a
request's 99th percentile was 1.5 to 1.7 times that without a tap; with both it is 1.0 to 1.2.
"""

import logging
import os
import struct

log = logging.getLogger("guestagent.standback")

NICENESS = 10
"""Never SCHED_IDLE: 200 ms delays of the loop were measured."""
SLICE_NS = 10_000_000
"""The kernel's default is 3 ms at most. Beside two hogs the loop is late by 11 ms at worst; with 100 ms it was 68."""
_SYSCALL = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "loongarch64": 274, "ppc64le": 355, "s390x": 345}
"""__NR_sched_setattr; Python has no name for the call."""
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
"""struct sched_attr (uapi/linux/sched/types.h): size, policy, flags, nice, priority, runtime, deadline, period."""


def stand_back() -> None:
    """Let every other process of this VM go first, as far as the kernel lets us."""
    nice = max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    try:
        _set_attributes(nice)
    except OSError as refused:
        log.debug("SCHED_BATCH with a slice of %d ms is not to be had: %s", SLICE_NS // 1_000_000, refused)


def _set_attributes(nice: int) -> None:
    import ctypes  # 0.4 MB and 2 ms, after the capture has begun

    machine = os.uname().machine
    if machine not in _SYSCALL:
        raise OSError(f"the number of sched_setattr is not known for {machine}")
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_BATCH, 0, nice, 0, SLICE_NS, 0, 0)
    if ctypes.CDLL(None, use_errno=True).syscall(_SYSCALL[machine], 0, attributes, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
