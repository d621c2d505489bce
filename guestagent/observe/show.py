"""`guestagent status`: the snapshots of what runs here, for people or as JSON."""

import json
import sys
from collections.abc import Iterator
from typing import Any

from guestagent.observe.status import ASK_SECONDS, directory, everything
from guestagent.observe.words import clock_time, ledger_sentence, limits_sentence


def show_status(*, as_json: bool) -> int:
    """Print every agent and collector of this host; 1 where none answers."""
    found = everything()
    if as_json:
        sys.stdout.write(json.dumps({"schema": "guestagent.status/1", **found._asdict()}, indent=2) + "\n")
        return 0 if found.running else 1
    if not any(found):
        sys.stdout.write(f"nothing runs here (no socket answers in {directory()})\n")
    for name, snapshot in found.running.items():
        lines = _agent_lines(snapshot) if snapshot.get("role") == "agent" else _collector_lines(snapshot)
        sys.stdout.write(f"{name}\n" + "".join(f"  {line}\n" for line in lines))
    for name in found.silent:
        sys.stdout.write(f"{name}\n  runs, but did not answer within {ASK_SECONDS:.0f} s: stopped, or very busy\n")
    return 0 if found.running else 1


def _agent_lines(snapshot: dict[str, Any]) -> Iterator[str]:
    link = snapshot["link"] or {"text": "no link"}
    yield f"agent {snapshot['agent_id']}, {snapshot['engine']} engine: {snapshot['engine_reason']}"
    trouble = link.get("trouble")
    yield f"link: {link['text']}{f'; {trouble}' if trouble else ''}"
    for one in link.get("destinations", ()):
        if "lost_records" in one:
            held = f"delivered {one['delivered']:,}, in flight {one['in_flight']:,}"
            yield f"{one['to']}: {held}{_losses(one['lost_records'])}"
    for name, ledger in snapshot["interfaces"].items():
        is_up = snapshot.get("interfaces_up", {}).get(name, True)
        yield f"{name}: {'' if is_up else 'down, '}{ledger_sentence(ledger)}"
    yield f"limits: {limits_sentence(snapshot['limits'])}"
    yield f"ring: {snapshot['ring_bytes'] >> 20} MB, {snapshot['ring_held_fraction']:.0%} waits for the collector"
    yield f"cpu: {snapshot['cpu_seconds']} s since the start"


def _collector_lines(snapshot: dict[str, Any]) -> Iterator[str]:
    yield f"collector {snapshot['collector_id']}: {snapshot['connections']} connected, {snapshot['refused']} refused"
    if reason := snapshot.get("blocked_by"):
        yield f"writes nothing at the moment: {reason}; agents keep what they have while their rings have room"
    for number, one in enumerate(snapshot.get("workers", ())):
        state = f"process {one['pid']}, {one['connections']} connected" if one["pid"] else "gone, it starts again"
        restarts = f", started again {one['restarts']} times" if one["restarts"] else ""
        yield f"worker {number}: {state}, {one['handed_over']:,} handed over, {one['cpu_seconds']} s of CPU{restarts}"
    for name, agent in snapshot["agents"].items():
        yield (
            f"{name}: received {agent['received']:,}, written {agent['written']:,}, gaps {agent['gaps']:,}, "
            f"duplicates {agent['duplicates']:,}"
        )
        if twins := agent.get("twins"):
            yield f"{name}: {twins + 1} agents stream under this name; give each an agent_id of its own"
        for end in agent["unclean_ends"]:
            yield f"{name}: nothing is held from {end['gap_from']} until {end['gap_until']}"
        for row in agent["reduced"][-1:]:
            until = f"until {clock_time(row['until_ns'])}" if row["until_ns"] else "until now"
            yield f"{name}: reduced from {clock_time(row['from_ns'])} {until}: {row['reason']}"
    yield from _tunnel_lines(snapshot.get("tunnels", {}))
    if tap := snapshot.get("tap"):
        names = ", ".join(one["device"] for one in tap["devices"]) or "none"
        yield f"TAP devices: {names}: {tap['frames']:,} frames{_losses(tap['lost'])}"
    if relay := snapshot.get("relay"):
        yield f"relay, {relay['mode']}: {relay['records']:,} records{_losses(relay['lost'])}"
        for one in relay["destinations"]:
            state = "well" if one["well"] else one["trouble"]
            yield f"{one['to']}: {one.get('frames', 0):,} frames, {state}{_losses(one.get('lost_frames', {}))}"


def _tunnel_lines(tunnels: dict[str, Any]) -> Iterator[str]:
    for one in tunnels.get("listeners", ()):
        yield f"{one['listen']}: {one['datagrams']:,} datagrams, {one['dropped_by_kernel']:,} dropped by the kernel"
    if tunnels:
        made_up = f", {tunnels['synthesised_ethernet']:,} with a synthesised Ethernet header"
        losses = _losses({**tunnels["malformed"], **tunnels["lost"]})
        yield f"tunnels: {tunnels['senders']} senders{made_up if tunnels['synthesised_ethernet'] else ''}{losses}"


def _losses(counts: dict[str, int]) -> str:
    """Only where there are some."""
    return "".join(f", {count:,} lost: {reason.replace('_', ' ')}" for reason, count in counts.items() if count)
