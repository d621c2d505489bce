"""What taking copies costs the kernel, seen from outside: what was on the VM's processor some thousand times a second.

A budget of a twentieth cannot be told by subtracting one busy time from another within five seconds: the work of one
TCP flow alone varies by more. So perf looks at the stack at even distances of time. The kernel's share is what has one
of CAPTURE on it in whichever process it was: senders and receivers pay for their copies. It must not be looked at while
latencies are measured, for the looks themselves take two hundredths of the processor.
"""

import re
from collections.abc import Collection
from pathlib import Path

from guestagent.errors import RunError
from tests.bench.perf import perf, report

LOOKS_PER_SECOND = 4_000
"""In five seconds 20,000: of a share of 5 %, the standard error is 0.15 %."""
CAPTURE = ("tpacket_rcv", "dev_queue_xmit_nit", "prb_retire_rx_blk_timer_expired")
"""net/packet/af_packet.c: a packet into the ring, a block retired by time; net/core/dev.c: a packet on its way out."""
_ROW = re.compile(r"^ *[\d.]+% +(?P<looks>\d+) +(?P<pid>\d+):.*?(?P<where>\S+) *$", re.MULTILINE)
_NS_PER_SECOND = 1_000_000_000


def record(cpus: Collection[int], seconds: float, to: Path) -> None:
    """Look at these processors for so long."""
    clock = ["-e", "cpu-clock", "-c", str(_NS_PER_SECOND // LOOKS_PER_SECOND)]
    where = ["-C", ",".join(map(str, sorted(cpus))), "-g", "-o", str(to)]
    perf("record", "-q", *clock, *where, "--", "sleep", str(seconds))


def capture_share(recorded: Path, own_pid: int) -> float:
    """The part of these processors' time that the capture took, that in `own_pid` not counted."""
    told = report(str(recorded), "-q", "-n", "--no-children", "-p", "|".join(CAPTURE), "--sort", "pid,parent")
    return share_of(told, own_pid)


def share_of(told: str, own_pid: int) -> float:
    """Of what `perf report -n --sort pid,parent` says: the looks that saw capture in another process than this one.

    A processor that polls for work is seen as well as one that has some. RunError where nobody was seen at it, as there
    is no VM without a packet: the kernel hides its symbols.
    """
    rows = list(_ROW.finditer(told))
    looks, at_capture = (
        sum(int(one["looks"]) for one in some)
        for some in (rows, [one for one in rows if one["where"] in CAPTURE and int(one["pid"]) != own_pid])
    )
    if not at_capture:
        raise RunError(f"perf saw no capture in {looks} looks: is kernel.kptr_restrict above 1?")
    return at_capture / looks
