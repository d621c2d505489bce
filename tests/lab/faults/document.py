"""docs/faults.md from what a full run saw."""

import re
from collections.abc import Iterable
from pathlib import Path

from tests.lab.faults.harness import Outcome
from tests.lab.faults.table import ELSEWHERE, NOT_HERE, Fault

DOCUMENT = Path(__file__).parents[3] / "docs/faults.md"
MOST_WORDS = 160
STAMP = re.compile(r"\d\d:\d\d:\d\d [A-Z]+ ")
"""What a line of the log begins with."""
HEAD = """# Faults

What can go wrong around an agent and a collector, injected for real, with what was seen. Made by

```sh
python -m tests.lab.faults
```

which runs each fault on a lab of its own (as root; about eight minutes) and writes this file. CI runs all of them in a
short form (`tests/lab/faults/test_faults.py`). Ids are those of the fault list that the design was reviewed with.

After each fault the suite holds:

- production's transfers arrived byte for byte, with at least 0.6 of their throughput without a
  fault, the median of all faults of a run: single ones share the machine with whatever else it does;
- no packet of the stream itself is in the files, no datagram is there twice, and where nothing was counted as lost none
  is missing;
- the ledger closes: captured = delivered + losses, and the files hold what was delivered, to the record;
- descriptors of agent and collector are as before, memory of their own grew by less than 4 MB,
  neither took half a core;
- an operator was told within 5 s: the words stand below;
- after the stop devices, routes, rules, sockets, files and processes are as before the start.

The VM sends 7 MB/s in transfers of 1 MB and 1,000 datagrams a second; a fault lasts at least {hold:g} s. *Told* is the
time from the injection to the words in `guestagent status` or the log; *recovered* the time from the fault's end until
the link stood and all that had been captured was delivered or counted, or 'within': while the fault still lasted.

"""


def render(outcomes: Iterable[Outcome], hold_seconds: float) -> str:
    """The whole document."""
    rows = [_row(one) for one in outcomes]
    elsewhere = [f"| {row.id} | {row.title} | `{row.test}` |" for row in ELSEWHERE]
    not_here = [f"| {row.id} | {row.title} | {row.reason} |" for row in NOT_HERE]
    parts = [
        HEAD.format(hold=hold_seconds).rstrip(),
        _table(
            "| | Fault | How it is made | What was seen | Told, s | Recovered, s | Lost |",
            rows,
            "|---|---|---|---|---:|---:|---|",
        ),
        "## Held by tests of their own",
        _table("| | Fault | Test |", elsewhere, "|---|---|---|"),
        "## Not injected",
        _table("| | Fault | Why |", not_here, "|---|---|---|"),
    ]
    return "\n\n".join(parts) + "\n"


def replaced(text: str, outcomes: Iterable[Outcome]) -> str:
    """A document with new rows for these faults."""
    rows = {f"| {one.fault.id} | {one.fault.title} |": _row(one) for one in outcomes}
    lines = [next((row for head, row in rows.items() if line.startswith(head)), line) for line in text.splitlines()]
    return "\n".join(lines) + "\n"


def _table(head: str, rows: Iterable[str], rule: str) -> str:
    return "\n".join([head, rule, *rows])


def _row(outcome: Outcome) -> str:
    fault = outcome.fault
    told = f"{outcome.seen_seconds:.1f}" if fault.words else ""
    return (
        f"| {fault.id} | {fault.title} | {fault.how} | {_seen(outcome)} | {told} "
        f"| {outcome.recovery_seconds:.1f}{' within' if fault.within else ''} | {_lost(fault, outcome)} |"
    )


def _seen(outcome: Outcome) -> str:
    if not outcome.fault.words:
        return "nothing: the link stands, all is delivered"
    said = STAMP.sub("", outcome.seen).replace("|", "/")
    return f"{outcome.fault.teller}: {said if len(said) <= MOST_WORDS else said[:MOST_WORDS] + ' …'}"


def _lost(fault: Fault, outcome: Outcome) -> str:
    counted = ", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in outcome.losses.items()) or "nothing"
    return f"{counted}{'; what passed while no agent ran' if fault.gap else ''}"
