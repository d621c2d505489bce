"""GCP: reads the inventory in pages, as many calls as there are pages, never one for each machine."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from guestagent.errors import ConfigError, RunError
from guestagent.mirror.gcp import facts
from guestagent.mirror.gcp.errors import ApiError
from guestagent.mirror.gcp.filter import found_filter
from guestagent.mirror.gcp.model import Collector, Machine, Policy, owner_of
from guestagent.mirror.spec import Spec, tag_of

UNREACHABLE = "UNREACHABLE"
"""The warning in place of a zone's VMs that are not known."""
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")


class Caller(Protocol):
    """Calls one method of one client with a request. Raises ApiError, RunError."""

    def __call__(self, client: str, method: str, /, **request: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Place:
    """The project and region that all is in."""

    project: str
    region: str

    def network(self, name: str) -> str:
        """A network by its name, as a short URL; one that is a short URL already stays."""
        return name if "/" in name else f"projects/{self.project}/global/networks/{name}"

    def subnetwork(self, name: str) -> str:
        """The same of a subnetwork of the region."""
        return name if "/" in name else f"projects/{self.project}/regions/{self.region}/subnetworks/{name}"


def short(url: str) -> str:
    """`projects/...`, whatever stands before it."""
    return url[url.find("projects/") :] if "projects/" in url else url


def pages(call: Caller, client: str, method: str, **request: Any) -> Iterator[Any]:
    """Every page of a list."""
    token = ""
    while True:
        answer = call(client, method, max_results=facts.PAGE, page_token=token, **request)
        yield answer
        token = answer.next_page_token
        if not token:
            return


def policies(call: Caller, place: Place) -> tuple[Policy, ...]:
    """All policies of the region. Whose they are is told from their descriptions."""
    listed = pages(call, "packet_mirrorings", "list", project=place.project, region=place.region)
    return tuple(policy(raw) for page in listed for raw in page.items)


def policy(raw: Any) -> Policy:
    """One PacketMirroring as we see it."""
    resources = raw.mirrored_resources
    return Policy(
        name=raw.name,
        owner=owner_of(raw.name, raw.description),
        network=short(raw.network.url),
        collector=short(raw.collector_ilb.url),
        mirrored={
            "instances": tuple(short(one.url) for one in resources.instances),
            "subnetworks": tuple(short(one.url) for one in resources.subnetworks),
            "tags": tuple(resources.tags),
        },
        filter=found_filter(
            {
                "I_p_protocols": list(raw.filter.I_p_protocols),
                "cidr_ranges": list(raw.filter.cidr_ranges),
                "direction": raw.filter.direction,
            }
        ),
        is_enabled=raw.enable != "FALSE",
        priority=raw.priority if "priority" in raw else facts.DEFAULT_PRIORITY,
    )


def collector(call: Caller, url: str) -> Collector | None:
    """A forwarding rule by its short URL, None where there is none."""
    parts = url.split("/")
    try:
        raw = call("forwarding_rules", "get", project=parts[1], region=parts[3], forwarding_rule=parts[5])
    except ApiError as error:
        if error.is_gone:
            return None
        raise
    return Collector(url, short(raw.network), raw.load_balancing_scheme, raw.is_mirroring_collector)


def quota(call: Caller, place: Place) -> tuple[int, int] | None:
    """Limit and usage of policies; None where the project's answer has no such quota."""
    answer = call("projects", "get", project=place.project)
    found = [one for one in answer.quotas if one.metric == facts.QUOTA]
    return (int(found[0].limit), int(found[0].usage)) if found else None


# -- machines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wish:
    """The sources of a spec, by kind."""

    ids: frozenset[str]
    subnetworks: tuple[str, ...]
    tags: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    own_id: str = ""
    """Of this VM, where `self` is a source."""


def wish(spec: Spec, place: Place, own_id: Callable[[], str]) -> Wish:
    """Raises ConfigError for what cannot be a label."""
    by_prefix: dict[str, list[str]] = {"subnet": [], "nettag": [], "tag": [], "": []}
    for one in spec.source:
        prefix, colon, rest = one.partition(":")
        by_prefix[prefix if colon else ""].append(rest if colon else one)
    labels = tuple(tag_of(one, "source") for one in by_prefix["tag"])
    for key, value in (*labels, *spec.tag):
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ConfigError(f"{key}={value}: labels of GCP are of a-z 0-9 _ -, the key begins with a letter")
    return Wish(
        ids=frozenset(by_prefix[""]) - {"self"},
        subnetworks=tuple(sorted({place.subnetwork(one) for one in by_prefix["subnet"]})),
        tags=tuple(sorted(set(by_prefix["nettag"]))),
        labels=labels,
        own_id=own_id() if "self" in spec.source else "",
    )


def machines(call: Caller, spec: Spec, place: Place, wanted: Wish) -> tuple[Machine, ...]:
    """What any source selects within the spec's network and labels. Raises ConfigError where that is nothing."""
    network = place.network(spec.vpc) if spec.vpc else ""
    found = {}
    for raw in _instances(call, spec, place):
        labels = dict(raw.labels)
        made = _machine(raw, wanted, is_narrowed=bool(spec.tag))
        fits = all(labels.get(key) == value for key, value in spec.tag)
        fits = fits and (not network or any(one == network for one, _ in made.places))
        if fits and _selects(raw, made, labels, spec, wanted):
            found[made.id] = made
    absent = sorted(wanted.ids - set(found))
    if absent:
        raise ConfigError(f"source: {', '.join(absent)}: no such VM in {place.region}, or --vpc or --tag leaves it out")
    if not found:
        raise ConfigError(f"the sources, --vpc and --tag together select no VM in {place.region}")
    return tuple(found[key] for key in sorted(found))


def _instances(call: Caller, spec: Spec, place: Place) -> Iterator[Any]:
    """Those of the region. A zone that does not answer is an error: its VMs would be taken for gone."""
    narrow = " AND ".join(f"(labels.{key} = {value})" for key, value in spec.tag)
    for page in pages(call, "instances", "aggregated_list", project=place.project, filter=narrow):
        parts = {scope: part for scope, part in page.items.items() if scope.startswith(f"zones/{place.region}-")}
        silent = {scope.removeprefix("zones/") for scope, part in parts.items() if part.warning.code == UNREACHABLE}
        if silent:
            raise RunError(
                f"{', '.join(sorted(silent))}: the zone does not answer, and its VMs are not known: run again later"
            )
        for part in parts.values():
            yield from part.instances


def _machine(raw: Any, wanted: Wish, *, is_narrowed: bool) -> Machine:
    places = tuple((short(one.network), short(one.subnetwork)) for one in raw.network_interfaces)
    tags = frozenset(raw.tags.items)
    is_followed = tags.intersection(wanted.tags) or {one for _, one in places}.intersection(wanted.subnetworks)
    return Machine(
        url=short(raw.self_link),
        kind=raw.machine_type.rpartition("/")[2],
        status=raw.status,
        places=places,
        tags=tags,
        followed=bool(is_followed) and not is_narrowed,
    )


def _selects(raw: Any, made: Machine, labels: Mapping[str, str], spec: Spec, wanted: Wish) -> bool:
    subnetworks = {one for _, one in made.places}
    return bool(
        not spec.source
        or made.id in wanted.ids
        or (wanted.own_id and str(raw.id) == wanted.own_id)
        or subnetworks.intersection(wanted.subnetworks)
        or made.tags.intersection(wanted.tags)
        or any(labels.get(key) == value for key, value in wanted.labels)
    )
