"""GCP's thinking, for random wishes: shares of policies, filters, and the whole way through the real client."""

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestagent.errors import ConfigError
from guestagent.mirror.apply import Outcome
from guestagent.mirror.gcp import provider as gcp
from guestagent.mirror.gcp.facts import MOST_OF_POLICY
from guestagent.mirror.gcp.filter import filter_body, found_filter, wanted_filter
from guestagent.mirror.gcp.model import mark, owner_of
from guestagent.mirror.gcp.shares import spread
from guestagent.mirror.plan import diff, has_changes
from guestagent.mirror.spec import Match, Spec, matches, rules
from tests.mirror.gcp.fake import Fake
from tests.mirror.gcp.words import BASE
from tests.mirror.mortal import Crash, run_once
from tests.mirror.test_spec import accepts

KINDS = tuple(MOST_OF_POLICY)


@st.composite
def names(draw: st.DrawFn, most: int = 130) -> dict[str, list[str]]:
    """What policies may name, of one small world."""
    sizes = {"instances": most, "subnetworks": 12, "tags": 12}
    found = {}
    for kind in KINDS:
        start, count = draw(st.integers(0, 20)), draw(st.integers(0, sizes[kind]))
        found[kind] = [f"{kind}-{number:03}" for number in range(start, start + count)]
    return found


@st.composite
def held(draw: st.DrawFn) -> dict[str, dict[str, list[str]]]:
    """Policies that exist, none beyond its limits."""
    parts = draw(st.lists(names(), max_size=4))
    return {
        f"p{number}": {kind: part[kind][: MOST_OF_POLICY[kind]] for kind in KINDS} for number, part in enumerate(parts)
    }


@given(names(), held())
def test_shares_are_the_wish(wanted: dict[str, list[str]], have: dict[str, dict[str, list[str]]]) -> None:
    """Together they name what is wanted, each thing once, none too much; no list of a policy is emptied."""
    kept, more = spread(wanted, have)

    for kind, most in MOST_OF_POLICY.items():
        lists = [share[kind] for share in (*kept.values(), *more)]
        assert sorted(name for one in lists for name in one) == sorted(wanted[kind])
        assert all(len(one) <= most for one in lists)
        assert all(kept[name][kind] or not have[name][kind] for name in kept)
    assert all(any(share.values()) for share in (*kept.values(), *more))
    fewest = max(-(-len(wanted[kind]) // most) for kind, most in MOST_OF_POLICY.items())
    assert len(kept) + len(more) >= fewest
    assert have or len(more) == fewest


@given(names(), held())
def test_shares_stay(wanted: dict[str, list[str]], have: dict[str, dict[str, list[str]]]) -> None:
    """Once spread, the same wish changes nothing."""
    kept, more = spread(wanted, have)
    now = {**kept, **{f"q{number}": share for number, share in enumerate(more)}}

    assert spread(wanted, now) == (now, [])


peers = st.sampled_from(["", "10.0.0.0/8", "192.0.2.0/24", "fd00::/8", "10.1.0.0/16"])
protocols = st.sampled_from(["all", "tcp", "udp", "icmp", "47", "sctp"])
packets = st.tuples(
    st.sampled_from([1, 6, 17, 47, 58, 132]),
    st.sampled_from(["10.1.2.3", "192.0.2.9", "8.8.8.8"]) | st.sampled_from(["fd00::1", "2001:db8::1"]),
)


@given(st.lists(st.tuples(protocols, peers), min_size=1, max_size=4), packets)
def test_a_filter_takes_what_the_rules_take(texts: list[tuple[str, str]], packet: tuple[int, str]) -> None:
    """Read independently, filter and rules agree on a packet from any peer; else the rules are refused."""
    spec = Spec(filter=rules([f"{protocol} {network}" for protocol, network in texts], "filter"), direction="ingress")
    try:
        made = wanted_filter(spec)
    except ConfigError:
        pairs = {(rule.protocol, network) for rule in spec.filter for network in ([rule.peers] if rule.peers else "46")}
        assert len({protocol for protocol, _ in pairs}) > 1
        assert len({network for _, network in pairs}) > 1
        return
    protocol, peer = packet
    own = "fd00::2" if ":" in peer else "10.9.9.9"

    taken = (not made["protocols"] or protocol in made["protocols"]) and any(
        ip_address(peer) in ip_network(one) for one in made["peers"]
    )
    expected: list[Match] = matches(spec)["ingress"]
    # ICMP of the other family may be taken as well: it does not occur.
    if not (protocol == 1 and ":" in peer) and not (protocol == 58 and ":" not in peer):
        assert taken == accepts(expected, (protocol, peer, own, 1, 2))
    assert found_filter(filter_body(made)) == made


def test_an_empty_filter_is_all_of_ipv4() -> None:
    """What the API leaves out has its documented meaning."""
    assert found_filter({}) == {"protocols": [], "peers": ["0.0.0.0/0"], "direction": "BOTH"}


@pytest.mark.parametrize(
    "text", ["", "ours", "guestagent:", "guestagent:[]", 'guestagent:{"mirror": 1, "policy": "p"}']
)
def test_other_descriptions_are_strangers(text: str) -> None:
    """Only our mark with the policy's own name says whose it is."""
    assert owner_of("p", text) == ""
    assert owner_of("p", mark("web", "p")) == "web"
    assert owner_of("q", mark("web", "p")) == ""


# -- the whole way -----------------------------------------------------------------------------------------------------

MACHINES = [f"europe-west3-a/vm-{number}" for number in range(4)]
sources = st.lists(
    st.sampled_from([*MACHINES, "subnet:web", "subnet:db", "nettag:http", "tag:role=web"]),
    min_size=1,
    max_size=4,
    unique=True,
)
wishes = st.builds(
    lambda source, text, direction, target: Spec(
        name="web",
        source=tuple(source),
        filter=rules(text, "filter"),
        direction=direction,
        target=target,
    ),
    sources,
    st.sampled_from(["all", "tcp", "udp,tcp", "icmp 10.0.0.0/8"]),
    st.sampled_from(["both", "ingress"]),
    st.sampled_from(["sensors", "others"]),
)
existing = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["ga-web", "ga-web-2", "ga-web-9", "theirs"]),
            "is_ours": st.booleans(),
            "tags": st.sampled_from([[], ["http"], ["x", "y"]]),
            "instances": st.sampled_from([[], [0], [1, 2]]),
            "filter": st.sampled_from([{}, {"IPProtocols": ["tcp"]}, {"cidrRanges": ["10.0.0.0/8"]}]),
        }
    ),
    max_size=3,
    unique_by=lambda one: one["name"],
)


@pytest.fixture
def world(project: Fake) -> Callable[..., None]:
    """Builds the project anew: four VMs, two collectors, and the policies of a state."""

    def build(state: list[dict[str, Any]]) -> None:
        project.reset()
        project.add_rule("others")
        for number in range(4):
            more = {"labels": {"role": "web"}, "tags": ["http"]} if number < 2 else {"subnet": "db"}
            project.add_vm(f"vm-{number}", **more)
        for one in state:
            instances = [f"projects/acme/zones/europe-west3-a/instances/vm-{number}" for number in one["instances"]]
            # A stranger of ours' name would be in the way, which is another test; one that covers a VM, too.
            is_ours = one["is_ours"] or one["name"].startswith("ga-")
            selected = {"tags": one["tags"], "instances": instances} if is_ours else {"tags": ["none"]}
            if not any(selected.values()):
                selected = {"subnetworks": [f"{BASE}/subnetworks/ops"]}
            owner = mark("web", one["name"]) if is_ours else "somebody's"
            project.add_policy(one["name"], **selected, filter=one["filter"], description=owner)

    return build


def run(spec: Spec, crash_after: int = 0) -> Outcome:
    """One run; dies after so many calls."""
    return run_once(gcp.connect(spec), "_once", spec, crash_after)


def is_reached(spec: Spec) -> bool:
    """Whether a further plan is empty."""
    provider = gcp.connect(spec)
    survey = provider.survey(spec)
    return bool(survey.wanted) and not has_changes(diff(survey.wanted, survey.found, provider.kinds))


same_world = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_world
@given(wishes, existing)
def test_apply_reaches_the_wish(world: Callable[..., None], project: Fake, spec: Spec, state: Any) -> None:
    """From any state one run reaches the wish, a second plan is empty, and strangers' policies are as they were."""
    world(state)
    strangers = {name: dict(raw) for name, raw in project.policies.items() if raw["description"] == "somebody's"}

    outcome = run(spec)

    assert not outcome.failed
    assert is_reached(spec)
    assert {name: raw for name, raw in project.policies.items() if raw["description"] == "somebody's"} == strangers


@same_world
@given(wishes, existing, st.integers(5, 16), st.integers(1, 9))
def test_a_crash_after_any_call_is_repaired(
    world: Callable[..., None], project: Fake, spec: Spec, state: Any, after: int, slowness: int
) -> None:
    """Whatever was the last call, the next run reaches the wish; strangers' policies are as they were."""
    world(state)
    project.slowness = slowness
    strangers = {name: dict(raw) for name, raw in project.policies.items() if raw["description"] == "somebody's"}
    try:
        run(spec, after)
    except Crash:
        assert not run(spec).failed

    assert is_reached(spec)
    assert {name: raw for name, raw in project.policies.items() if raw["description"] == "somebody's"} == strangers
