"""GCP: all mirrors of ours in a region, and what keeps each from working. Pure."""

from collections.abc import Mapping, Sequence

from guestagent.mirror.gcp.facts import MOST_OF_POLICY
from guestagent.mirror.gcp.model import Collector, Policy, found
from guestagent.mirror.survey import Health


def healths(policies: Sequence[Policy], collectors: Mapping[str, Collector | None]) -> list[Health]:
    """One for each mirror, by name. `collectors` are by URL, None for one that is gone."""
    names = sorted({one.owner for one in policies} - {""})
    return [_health(name, [one for one in policies if one.owner == name], collectors) for name in names]


def _health(name: str, own: Sequence[Policy], collectors: Mapping[str, Collector | None]) -> Health:
    problems = [text for one in own for text in _problems(one, collectors[one.collector])]
    facts_of_it = {
        "policies": len(own),
        **{kind: sum(len(one.mirrored[kind]) for one in own) for kind in MOST_OF_POLICY},
        "sources": sorted({source for one in own for names in one.mirrored.values() for source in names}),
    }
    return Health(name, found(name, own), tuple(problems), facts_of_it)


def _problems(policy: Policy, collector: Collector | None) -> list[str]:
    said = []
    place = policy.collector.rpartition("/")[2]
    if not policy.is_enabled:
        said.append(f"{policy.name} is switched off (enable: FALSE)")
    if collector is None:
        said.append(f"{place} does not exist any more: {policy.name} leads nowhere")
    elif not collector.is_collector or collector.scheme != "INTERNAL":
        said.append(f"{place} is no collector any more: {policy.name} leads nowhere")
    if not any(policy.mirrored.values()):
        said.append(f"{policy.name} names nothing to mirror")
    return said
