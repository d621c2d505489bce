"""Every run that this collector has seen, the sums per agent, and how runs end. No sockets here.

Used by the server for connections, and by the agent itself for `--to dir:PATH`.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from guestagent.collector.fidelity import MOST_INTERVALS
from guestagent.collector.run import Run
from guestagent.collector.sinks.outlet import Outlet
from guestagent.collector.sinks.track import Resume, Track
from guestagent.errors import GuestagentError
from guestagent.tapstream.hello import AgentHello, CollectorHello

log = logging.getLogger("guestagent.collector")

REPORT_SCHEMA = "guestagent.collector/1"
MOST_AGENTS = 4096
"""Names are the peers' to choose; a stranger who invents them must not fill our memory."""
FORGET_NS = 3600 * 1_000_000_000
"""An agent that was away so long makes room for another where there is none: VMs come and go, names with them."""
FORGOTTEN = "(forgotten)"
"""Whose books have the sums of those; no agent has such a name."""
MOST_UNCLEAN_ENDS = 100
_SUMMED: dict[str, Callable[[Run], int]] = {
    "received": lambda run: run.received,
    "received_bytes": lambda run: run.received_bytes,
    "gaps": lambda run: run.place.gaps,
    "duplicates": lambda run: run.place.duplicates,
    "elsewhere": lambda run: run.place.elsewhere,
    "written": lambda run: run.written,
    "malformed": lambda run: run.malformed,
    "reduced_dropped": lambda run: run.fidelity.dropped,
    "unsupported_gso": lambda run: sum(run.place.unsupported_gso.values()),
    "checksums_completed": lambda run: run.track.checksums[0],
    "checksums_left": lambda run: run.track.checksums[1],
    "segments": lambda run: run.track.segmenter.segments,
    "unverifiable": lambda run: run.track.segmenter.unverifiable,
    "not_understood": lambda run: run.track.segmenter.not_understood,
}
"""What the report sums over an agent's runs."""


class Sink(Protocol):
    """Where runs are written."""

    def open_run(self, hello: AgentHello) -> tuple[Track, Resume | None]:
        """A track for a run, and how far it came in an earlier process."""

    def blocked_by(self) -> str:
        """Why nothing can be written, empty where it can."""

    def close(self) -> None:
        """Flush and close."""


class Agent:
    """The sums over an agent's ended runs, and its live ones."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.totals = dict.fromkeys(_SUMMED, 0)
        self.unclean_ends: list[dict[str, Any]] = []
        self.reduced: list[dict[str, Any]] = []
        self.unclean_end_count = 0
        self.tags: dict[str, str] = {}
        self.refused = 0
        """Connections in this agent's name that were closed for what they sent."""
        self.seen_ns = 0
        """When it greeted, or left, last."""

    @property
    def is_away(self) -> bool:
        """Does none of its runs stream?"""
        return all(run.broken_ns for run in self.runs.values())

    def inherit(self, other: "Agent") -> None:
        """Add the books of an agent without runs."""
        self.totals = {key: count + other.totals[key] for key, count in self.totals.items()}
        self._keep(other.reduced)
        self.unclean_ends = [*self.unclean_ends, *other.unclean_ends][-MOST_UNCLEAN_ENDS:]
        self.unclean_end_count += other.unclean_end_count
        self.refused += other.refused

    def fold(self, run: Run) -> None:
        """Add an ended run to the sums."""
        self.totals = self.sums(run)
        self._keep(run.fidelity.intervals)
        del self.runs[run.hello.run_id]

    def _keep(self, rows: Sequence[dict[str, Any]]) -> None:
        """Of the intervals of reduced fidelity the latest; the others are counted."""
        both = [*self.reduced, *rows]
        self.totals["reduced_dropped"] += max(0, len(both) - MOST_INTERVALS)
        self.reduced = both[-MOST_INTERVALS:]

    def intervals(self) -> list[dict[str, Any]]:
        """Of reduced fidelity, over all runs: the latest that ended, and those of live runs."""
        rows = [*self.reduced, *(row for run in self.runs.values() for row in run.fidelity.intervals)]
        return sorted(rows, key=lambda row: row["from_ns"])

    def sums(self, *runs: Run) -> dict[str, int]:
        """The totals with these runs added."""
        sums = dict(self.totals)
        for run in runs:
            for key, count in _SUMMED.items():
                sums[key] += count(run)
        return sums


class Registry:
    """Finds or opens the run of a hello, and keeps the books."""

    def __init__(self, sink: Sink, collector_id: str, version: str, outlets: Sequence[Outlet] = ()) -> None:
        self._sink, self._outlets = sink, outlets
        self._collector_id, self._version = collector_id, version
        self.agents: dict[str, Agent] = {}
        self.unwritten: list[Run] = []
        """Runs whose connection broke while what they had brought could not be written."""

    def open(self, hello: AgentHello) -> tuple[Run, CollectorHello]:
        """The run that a hello begins or resumes, and the answer to send. Raises ValueError for one agent too many."""
        agent = self.agents.get(hello.agent_id)
        if agent is None:
            self._make_room()
            agent = self.agents[hello.agent_id] = Agent()
        agent.tags, agent.seen_ns = hello.tags, time.time_ns()
        run = agent.runs.get(hello.run_id)
        if run is None:
            self._end_dead_runs(agent, hello)
            track, resume = self._sink.open_run(hello)
            spouts = [outlet.open_run(hello) for outlet in self._outlets]
            run = Run(hello, track, resume, spouts)
            for older in agent.runs.values():
                older.heir = run
            agent.runs[hello.run_id] = run
        held = run.resume_at(hello, self._collector_id) if run.known_before else None
        run.known_before = True
        return run, CollectorHello(self._collector_id, self._version, held, run.safe_stale, run.place.taken_sequence)

    def _make_room(self) -> None:
        """For one name more. Raises ValueError where no agent has been away for long."""
        if len(self.agents) - (FORGOTTEN in self.agents) < MOST_AGENTS:
            return
        away = [(agent.seen_ns, name) for name, agent in self.agents.items() if agent.is_away and name != FORGOTTEN]
        seen_ns, oldest = min(away, default=(time.time_ns(), ""))
        if time.time_ns() - seen_ns < FORGET_NS:
            raise ValueError(f"this collector already serves {MOST_AGENTS} agents")
        agent = self.agents[oldest]
        for run in list(agent.runs.values()):
            self._end_unclean(agent, run, time.time_ns())
        self.agents.setdefault(FORGOTTEN, Agent()).inherit(self.agents.pop(oldest))

    def _end_dead_runs(self, agent: Agent, hello: AgentHello) -> None:
        """A new run of the same agent tells that its broken ones will not come back."""
        for run in [run for run in agent.runs.values() if run.broken_ns]:
            self._end_unclean(agent, run, hello.started_ns)

    def _end_unclean(self, agent: Agent, run: Run, next_ns: int) -> None:
        end = run.unclean_end(next_ns)
        agent.unclean_ends = [*agent.unclean_ends, end][-MOST_UNCLEAN_ENDS:]
        agent.unclean_end_count += 1
        log.warning(
            "agent %s ended without goodbye: nothing is held from %s until %s",
            run.hello.agent_id,
            end["gap_from"],
            end["gap_until"],
        )
        self._end(run, f"unclean end: nothing is held from {end['gap_from']} until {end['gap_until']}")

    def said_goodbye(self, run: Run, reason: str) -> None:
        """A run ended as it should."""
        self.agents[run.hello.agent_id].seen_ns = time.time_ns()
        self._end(run, reason)

    def _end(self, run: Run, reason: str) -> None:
        """It is over, whether or not its last words can be written: nobody else shall pay for its file."""
        try:
            run.end(reason)
        except GuestagentError as error:
            log.error("agent %s: %s", run.hello.agent_id, error)
        self.agents[run.hello.agent_id].fold(run)

    def broke(self, run: Run) -> None:
        """A connection ended without BYE: the run may come back, unless its agent began another one meanwhile."""
        agent = self.agents[run.hello.agent_id]
        run.broken_ns = agent.seen_ns = time.time_ns()
        if run.heir and run.is_dead:
            self._end_unclean(agent, run, run.heir.hello.started_ns)
        else:
            log.warning("agent %s is gone without goodbye; its run may come back", run.hello.agent_id)
            if run.track.output.blocked_by:
                self.unwritten.append(run)

    def retry(self, now: float) -> None:
        """Write what no connection asks for any more, once the disk takes it."""
        self.unwritten = [run for run in self.unwritten if _still_waits(run, now)]

    def close(self) -> None:
        """The collector stops: broken runs end unclean, the others just end here."""
        for agent in self.agents.values():
            for run in list(agent.runs.values()):
                if run.broken_ns:
                    self._end_unclean(agent, run, time.time_ns())
                else:
                    self._end(run, "the collector stopped; the run may go on elsewhere")
        self._sink.close()
        for outlet in self._outlets:
            outlet.close()

    def report(self) -> dict[str, Any]:
        """The collector's report: per agent what came, what was missing, what was written."""
        agents = {}
        for name, agent in self.agents.items():
            agents[name] = {
                **agent.sums(*agent.runs.values()),
                "tags": agent.tags,
                "refused": agent.refused,
                "unclean_ends": agent.unclean_ends,
                "reduced": agent.intervals(),
                "unclean_end_count": agent.unclean_end_count,
                "streaming": sum(not run.broken_ns for run in agent.runs.values()),
                "twins": sum(run.is_twin for run in agent.runs.values()),
            }
        return {
            "schema": REPORT_SCHEMA,
            "collector_id": self._collector_id,
            "blocked_by": self._sink.blocked_by(),
            "agents": agents,
        }


def _still_waits(run: Run, now: float) -> bool:
    try:
        return bool(run.broken_ns) and not run.ended and not run.flush(now)
    except GuestagentError as error:
        log.error("agent %s: %s", run.hello.agent_id, error)
        return False
