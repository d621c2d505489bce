"""The soak's figures as Markdown."""

from statistics import median

from tests.bench.clocks import machine
from tests.bench.soak.run import AGENTS, CROWD, MOST_GROWN_BYTES, RESETS_PER_SECOND, Soaked


def markdown(result: Soaked) -> str:
    """The whole report."""
    assert result.sent is not None
    faults = ", ".join(f"{title} ({count})" for title, count in sorted(result.faults.items()))
    losses = ", ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in result.losses.items()) or "nothing"
    records = sum(result.sent.records.values())
    rows = [
        f"| {name} | {found.most_bytes / 1e6:.1f} MB | {found.grown_bytes / 1e3:+,.0f} kB | "
        f"{found.bytes_per_minute / 1e3:+,.1f} kB | {found.grown_files:+.0f} | {found.most_files} |"
        for name, found in result.slopes.items()
    ]
    stage = (
        f"**Stage.** An agent with `--full` and its collector under production traffic, {sum(result.faults.values())} "
        f"faults of [the fault table](../faults.md) in random order: {faults}. Production's {result.datagrams:,} "
        "datagrams and all transfers arrived byte for byte; during a fault it kept "
        f"{median(result.kept):.2f} of its throughput (median; least {min(result.kept):.2f}). Lost of the copies, "
        f"counted: {losses}."
    )
    fleet = (
        f"**Fleet.** A second collector with {AGENTS} simulated agents over loopback, {RESETS_PER_SECOND:.0f} "
        f"connections reset a second ({result.sent.resets:,}), and strangers of every kind at its ports, one every "
        f"5 ms: {records:,} records sent, each written once, none missing; {result.refused:,} strangers refused."
    )
    table = [
        "| Process | most memory of its own | grown | a minute | files grown | most files |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
    ]
    grown = (
        "*Grown* is the median of the last quarter less that of the second, RssAnon (without ring, code and mapped "
        f"files); the gate is {MOST_GROWN_BYTES / 1e6:.0f} MB. What grows in the agent has a bound: the 4,096 flows "
        "that the governor's look remembers, 1.5 MB (by tracemalloc), of which this traffic makes four a second."
    )
    strangers = ", ".join(f"{size / 1e3:.0f} kB ({name})" for name, size in result.bytes_per_stranger.items())
    each = (
        f"An agent takes {result.bytes_per_agent / 1e3:.0f} kB of the collector; a stranger, of {CROWD} at once, "
        f"{strangers}, until it is shown out after 5 s."
    )
    command = f"`python -m tests.bench.soak --seconds {result.seconds:.0f}` on {machine()}."
    broken = ["Broken: " + "; ".join(result.complaints)] if result.complaints else []
    parts = ["# Soak", f"{command} CI runs 40 s of it.", stage, fleet, "\n".join(table), grown, each, *broken]
    return "\n\n".join(parts) + "\n"
