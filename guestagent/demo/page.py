"""What the demo prints in the end: plain text within 100 columns."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from guestagent.demo.stage import COLLECT_WORDS, PEER4, PEER6, RUN_WORDS, VM4, VM6, Outcome
from guestagent.lab.traffic import MIXED_BULK_BYTES
from guestagent.observe.words import scaled

MOST_CONVERSATIONS = 6
AGENT_ROWS = ("captured", "delivered", "capped", "dropped_by_ring", "unsupported_gso", "lost_on_link", "in_flight")
COLLECTOR_ROWS = ("received", "written", "gaps", "duplicates", "malformed", "unsupported_gso")


def page(outcome: Outcome, here: Path) -> Iterator[str]:
    """The outcome line by line; paths as seen from `here`."""
    capture, cpu = outcome.capture, outcome.cpu_seconds / outcome.seconds
    shown = shlex.quote(str(capture.relative_to(here) if capture.is_relative_to(here) else capture))
    yield f"VM         guestagent {' '.join(RUN_WORDS)}"
    yield f"Peer       guestagent {' '.join(COLLECT_WORDS)} .../{capture.name}"
    yield from _traffic(outcome)
    yield ""
    yield from _ledger(outcome)
    yield ""
    yield from _protocols(outcome)
    yield ""
    yield from _conversations(outcome)
    yield ""
    rate = scaled(8 * outcome.summary.bytes / outcome.seconds, "bit/s")
    yield f"Agent CPU  {100 * cpu:.1f} % of one core while it copied {rate}"
    yield f"Capture    {shown}  ({scaled(capture.stat().st_size, 'B')}; reports and logs beside it)"
    yield f"Open it    tshark -r {shown}"


def _traffic(outcome: Outcome) -> Iterator[str]:
    counts = outcome.traffic
    yield (f"Traffic    {outcome.seconds:.1f} s from {VM4} and {VM6} to {PEER4} and {PEER6}, every answer checked:")
    yield (
        f"           {counts['http_pages']:,} web pages, {counts['dns_answers']:,} names, {counts['bulk_streams']:,} "
        f"bulk streams of {MIXED_BULK_BYTES // 1_000_000} MB, {counts['pings']:,} pings"
    )


def _ledger(outcome: Outcome) -> Iterator[str]:
    yield "Ledger     in records: a packet each, or a super-packet that the kernel has not cut"
    agent = [(name, outcome.agent[name]) for name in AGENT_ROWS]
    collector = [
        *((name, outcome.collector[name]) for name in COLLECTOR_ROWS),
        ("in the file", outcome.summary.packets),
    ]
    yield f"  {'agent':<40}collector"
    for (left, mine), (right, theirs) in zip(agent, collector, strict=True):
        yield f"  {_spoken(left):<18}{mine:>14,}        {_spoken(right):<18}{theirs:>14,}"
    yield ""
    yield f"  {verdict(outcome)}"


def verdict(outcome: Outcome) -> str:
    """Whether the ledger closes, in one sentence."""
    if trouble := outcome.trouble():
        return f"The ledger does not close: {trouble}."
    ledger = outcome.agent
    lost = [f"{ledger[name]:,} {_spoken(name)}" for name in AGENT_ROWS[2:] if ledger[name]]
    parts = " + ".join([f"{ledger['delivered']:,} delivered", *lost])
    return f"The ledger closes to the record: {ledger['captured']:,} captured = {parts}; the file holds every one."


def _protocols(outcome: Outcome) -> Iterator[str]:
    total = max(1, outcome.summary.bytes)
    rows = [
        (row.name, row.service, f"{row.packets:,}", scaled(row.bytes, "B"), f"{100 * row.bytes / total:.1f} %")
        for row in outcome.summary.protocols
    ]
    return _table(("Protocol", "service", "packets", "bytes", "share"), rows, text_columns=2)


def _conversations(outcome: Outcome) -> Iterator[str]:
    head = ("Client", "server", "protocol", "service", "connections", "packets", "bytes")
    rows = [
        (
            *(row.client, row.server, row.protocol, row.service),
            *(f"{row.connections:,}", f"{row.packets:,}", scaled(row.bytes, "B")),
        )
        for row in outcome.summary.conversations[:MOST_CONVERSATIONS]
    ]
    return _table(head, rows, text_columns=4)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int) -> Iterator[str]:
    """Columns as wide as they need, text to the left and numbers to the right; the rows indented below their head."""
    lines = [head, *((f"  {first}", *rest) for first, *rest in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, range(len(widths)), strict=True)
        yield "  ".join(f"{cell:{'<' if at < text_columns else '>'}{width}}" for cell, width, at in cells).rstrip()


def _spoken(name: str) -> str:
    return name.replace("_", " ")
