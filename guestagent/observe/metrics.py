"""The books as Prometheus metrics: the tables of rows.py over the snapshots that `status` shows.

Labels are bounded: interfaces are the host's own, destinations and reasons the config's and ours, of agents the first
MOST_AGENT_LABELS have a name and the rest are summed. prometheus_client is loaded by Exposition.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from guestagent.errors import HostError
from guestagent.observe import rows
from guestagent.observe.rows import Row, Snapshot

MOST_AGENT_LABELS = 256
"""Names are the agents' to choose; a server that scrapes us keeps each series for weeks."""
THE_REST = "(other)"
"""The label of what is summed; no agent can have it as a name."""
UNKNOWN = "other"
"""The label of a reason that CAUSES lacks."""


CAUSES = {
    "a full copy would take": "cpu",
    "a full copy would be": "cap",
    "the collector takes less": "collector",
    "the VM is under pressure": "pressure",
}
"""How the governor's sentences begin (governor.reason), and the label of each; its numbers would be a series each."""
REDUCED = "guestagent_fidelity_reduced"
INTERFACE_UP = "guestagent_interface_up"
BUILD = "guestagent_build_info"


class Sample(NamedTuple):
    """One line of the exposition."""

    labels: dict[str, str]
    value: float


class Family(NamedTuple):
    """One metric with its lines."""

    name: str
    help: str
    samples: list[Sample]


def families(snapshot: Snapshot) -> Iterator[Family]:
    """Everything that an agent's or a collector's snapshot tells, as metrics."""
    role = snapshot["role"]
    yield Family(BUILD, "The version that runs.", [Sample({"role": role, "version": snapshot["version"]}, 1.0)])
    yield from (_of_agent if role == "agent" else _of_collector)(snapshot)


def _of_agent(snapshot: Snapshot) -> Iterator[Family]:
    yield from _table(rows.AGENT_ROWS, [({}, snapshot)])
    yield from _table(rows.INTERFACE_ROWS, [({"interface": name}, one) for name, one in snapshot["interfaces"].items()])
    up = [Sample({"interface": name}, float(is_up)) for name, is_up in snapshot["interfaces_up"].items()]
    yield Family(INTERFACE_UP, "1 while the capture is bound to the interface and it is up.", up)
    cause = cause_of(snapshot["limits"]["reason"])
    causes = [Sample({"cause": one}, float(one == cause)) for one in (*CAUSES.values(), UNKNOWN)]
    yield Family(REDUCED, "1 for what makes the copy less than the operator wants, 0 for all else.", causes)
    yield from _destinations(snapshot["link"]["destinations"])


def cause_of(reason: str) -> str:
    """The label of a sentence; empty where nothing is reduced."""
    found = (cause for start, cause in CAUSES.items() if reason.startswith(start))
    return next(found, UNKNOWN) if reason else ""


def _of_collector(snapshot: Snapshot) -> Iterator[Family]:
    yield from _table(rows.COLLECTOR_ROWS, [({}, snapshot)])
    agents = list(snapshot["agents"].items())
    named = [({"agent": name}, one) for name, one in agents[:MOST_AGENT_LABELS]]
    if rest := [one for _, one in agents[MOST_AGENT_LABELS:]]:
        keys = [key for key, value in rest[0].items() if isinstance(value, int)]
        named.append(({"agent": THE_REST}, {key: sum(one[key] for one in rest) for key in keys}))
    yield from _table(rows.PER_AGENT_ROWS, named)
    workers = [({"worker": str(number)}, one) for number, one in enumerate(snapshot.get("workers", ()))]
    if workers:
        yield from _table(rows.WORKER_ROWS, workers)
    if relay := snapshot.get("relay"):
        yield from _table(rows.RELAY_ROWS, [({}, relay)])
        yield from _by_reason(rows.RELAY_REASONS, [({}, relay)])
        yield from _destinations(relay["destinations"])
    if tunnels := snapshot.get("tunnels"):
        yield from _table(rows.LISTENER_ROWS, [({"listen": one["listen"]}, one) for one in tunnels["listeners"]])
        yield from _by_reason(rows.TUNNEL_REASONS, [({}, tunnels)])
    if tap := snapshot.get("tap"):
        yield from _table(rows.TAP_ROWS, [({}, tap)])
        yield from _by_reason(rows.TAP_REASONS, [({}, tap)])


def _destinations(found: Sequence[Snapshot]) -> Iterator[Family]:
    sources = [({"to": one["to"]}, one) for one in found]
    if sources:
        yield from (family for family in _table(rows.DESTINATION_ROWS, sources) if family.samples)
        yield from _by_reason(rows.DESTINATION_REASONS, sources)


def _by_reason(
    table: Iterable[tuple[str, str, str]], sources: Sequence[tuple[dict[str, str], Snapshot]]
) -> Iterator[Family]:
    """Counts that stand under their reasons; a reason shows once something was counted under it."""
    for name, text, key in table:
        found = [
            Sample({**labels, "reason": reason}, float(count))
            for labels, one in sources
            for reason, count in one.get(key, {}).items()
        ]
        if any(key in one for _, one in sources):
            yield Family(name, text, found)


def _table(table: Iterable[Row], sources: list[tuple[dict[str, str], Snapshot]]) -> Iterator[Family]:
    for row in table:
        samples = [Sample(labels, float(value)) for labels, one in sources if (value := row.value(one)) is not None]
        yield Family(row.name, row.help, samples)


class Exposition:
    """The text that a scraper reads, from prometheus_client. Raises HostError where that is missing."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        try:
            from prometheus_client import CollectorRegistry, ProcessCollector
        except ImportError:
            raise HostError("metrics need prometheus_client: install guestagent[metrics]") from None
        self._snapshot = snapshot
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # memory, CPU and descriptors under their usual names (process_...)

    def collect(self) -> Iterator[Any]:
        """What prometheus_client asks of a collector: the families as of now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, text, samples in families(self._snapshot()):
            make = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = make(name, text)
            for labels, value in samples:
                family.add_sample(name, labels, value)
            yield family

    def render(self) -> tuple[str, bytes]:
        """Content type and text."""
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        return CONTENT_TYPE_LATEST, generate_latest(self._registry)
