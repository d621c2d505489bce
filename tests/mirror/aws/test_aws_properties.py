"""Random specs and random accounts: what the command's own parts make of a fake EC2, read back independently."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestagent.mirror.apply import Outcome
from guestagent.mirror.aws import provider as aws
from guestagent.mirror.plan import diff, has_changes
from guestagent.mirror.spec import Spec, matches, rules
from tests.mirror.aws.account import PREFIX
from tests.mirror.aws.fake import Fake
from tests.mirror.aws.wire import Body
from tests.mirror.aws.words import NLB, TARGET
from tests.mirror.mortal import Crash, run_once

MACHINES = range(1, 5)
NAMES = {"filter": "Filter", "target": "Target", "session": "Session"}


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Any machines, either kind of target, filters that fit EC2's ten rules."""
    machines = draw(st.sets(st.sampled_from(MACHINES), min_size=1))
    text = draw(st.sampled_from(["all", "tcp/443 local", "tcp/22 remote,icmp 10.0.0.0/8", "not udp 10.0.0.0/8"]))
    return Spec(
        name="web",
        source=tuple(f"i-{number:017x}" for number in sorted(machines)),
        target=draw(st.sampled_from([TARGET, NLB])),
        filter=rules(text, "filter"),
        direction=draw(st.sampled_from(["both", "ingress", "egress"])),
        dns=draw(st.booleans()),
        vni=draw(st.none() | st.just(7)),
        packet_length=draw(st.none() | st.just(128)),
    )


def tagged(owner: str) -> list[Body]:
    """`web` and `db` are mirrors of ours; nobody's tags are nearly ours."""
    if owner == "nobody":
        return [{"Key": "guestagent-mirror", "Value": "web"}]
    return [{"Key": "guestagent-managed", "Value": "true"}, {"Key": "guestagent-mirror", "Value": owner}]


owners = st.sampled_from(["web", "web", "db", "nobody"])


@st.composite
def accounts(draw: st.DrawFn) -> dict[str, dict[str, Body]]:
    """Filters with rules, targets and sessions of three owners, as EC2 would allow them."""
    made: dict[str, dict[str, Body]] = {kind: {} for kind in PREFIX}

    def add(kind: str, owner: str, **fields: Any) -> str:
        identifier = f"{PREFIX[kind]}{len(made[kind]):016x}0"
        name = NAMES.get(kind, "FilterRule")
        made[kind][identifier] = {f"TrafficMirror{name}Id": identifier, "Tags": tagged(owner), **fields}
        return identifier

    by_owner: dict[str, dict[str, list[str]]] = {one: {"filter": [], "target": []} for one in ("web", "db", "nobody")}
    for owner in draw(st.lists(owners, max_size=4)):
        services = draw(st.sampled_from([[], ["amazon-dns"]]))
        identifier = add("filter", owner, NetworkServices=services)
        by_owner[owner]["filter"].append(identifier)
        for place in draw(st.sets(st.tuples(st.sampled_from(["ingress", "egress"]), st.integers(1, 5)), max_size=10)):
            direction, number = place
            fields = {"TrafficDirection": direction, "RuleNumber": number, "RuleAction": "accept"}
            fields |= {"SourceCidrBlock": "10.0.0.0/8", "DestinationCidrBlock": "0.0.0.0/0"}
            more = draw(st.sampled_from([{}, {"Protocol": 6, "SourcePortRange": {"FromPort": 1, "ToPort": 9}}]))
            add("filter_rule", owner, TrafficMirrorFilterId=identifier, **fields, **more)
    for owner in draw(st.lists(owners, max_size=3)):
        place = draw(st.sampled_from([{"NetworkInterfaceId": TARGET}, {"NetworkLoadBalancerArn": NLB}]))
        kind = "network-interface" if "NetworkInterfaceId" in place else "network-load-balancer"
        by_owner[owner]["target"].append(add("target", owner, Type=kind, **place))
    for machine, number in draw(st.sets(st.tuples(st.sampled_from(MACHINES), st.integers(1, 3)), max_size=6)):
        owner = draw(owners)
        # A stranger's session that used our filter would keep it alive, which is another test.
        usable = by_owner[owner]
        if usable["filter"] and usable["target"]:
            add(
                "session",
                owner,
                NetworkInterfaceId=f"eni-{machine:017x}",
                TrafficMirrorFilterId=draw(st.sampled_from(usable["filter"])),
                TrafficMirrorTargetId=draw(st.sampled_from(usable["target"])),
                SessionNumber=number,
                VirtualNetworkId=draw(st.integers(0, 9)),
            )
    return made


@pytest.fixture
def clients(ec2: Fake) -> Mapping[str, Any]:
    """boto3's, once for all examples."""
    ec2.listeners[NLB] = [("UDP", 4789)]
    for number in (*MACHINES, 9):
        ec2.add_instance(number)
    return aws.connect(Spec(name="web"))._clients


def run(clients: Mapping[str, Any], spec: Spec, crash_after: int = 0) -> Outcome:
    """One run; dies after so many calls."""
    return run_once(aws.Aws(spec, clients, patience_seconds=0.0), "_call", spec, crash_after)


def of(fake: Fake, kind: str, owner: str) -> list[Body]:
    """Objects with exactly these tags."""
    return [one for one in fake.objects[kind].values() if one["Tags"] == tagged(owner)]


def others(fake: Fake) -> list[Body]:
    """All that the mirror `web` must leave alone."""
    return [dict(one) for kind in PREFIX for owner in ("db", "nobody") for one in of(fake, kind, owner)]


def ports(raw: Body | None) -> tuple[int, int] | None:
    return (raw["FromPort"], raw["ToPort"]) if raw else None


def check_reached(fake: Fake, clients: Mapping[str, Any], spec: Spec) -> None:
    """An independent reading of the account; and a further plan is empty."""
    (one,), (target,) = of(fake, "filter", "web"), of(fake, "target", "web")
    assert one["NetworkServices"] == (["amazon-dns"] if spec.dns else [])
    assert spec.target in (target.get("NetworkInterfaceId"), target.get("NetworkLoadBalancerArn"))
    mine = [
        rule
        for rule in fake.objects["filter_rule"].values()
        if rule["TrafficMirrorFilterId"] == one["TrafficMirrorFilterId"]
    ]
    found = {
        direction: [
            (
                rule["RuleAction"] == "accept",
                rule.get("Protocol"),
                rule["SourceCidrBlock"],
                rule["DestinationCidrBlock"],
                ports(rule.get("SourcePortRange")),
                ports(rule.get("DestinationPortRange")),
            )
            for rule in sorted(mine, key=lambda rule: int(rule["RuleNumber"]))
            if rule["TrafficDirection"] == direction
        ]
        for direction in ("ingress", "egress")
    }
    wanted: dict[str, list[Any]] = {"ingress": [], "egress": []}
    for direction, lines in matches(spec).items():
        wanted[direction] = [
            (line.accept, line.protocol, line.source, line.destination, line.source_ports, line.destination_ports)
            for line in lines
        ]
    assert found == wanted
    sessions = of(fake, "session", "web")
    beside = [other["NetworkInterfaceId"] for owner in ("db", "nobody") for other in of(fake, "session", owner)]
    machines = {int(source.removeprefix("i-"), 16) for source in spec.source}
    free = {f"eni-{number:017x}" for number in machines if beside.count(f"eni-{number:017x}") < 3}
    assert sorted(session["NetworkInterfaceId"] for session in sessions) == sorted(free)
    for session in sessions:
        assert session["TrafficMirrorFilterId"] == one["TrafficMirrorFilterId"]
        assert session["TrafficMirrorTargetId"] == target["TrafficMirrorTargetId"]
        assert session.get("PacketLength") == spec.packet_length
        assert spec.vni in (None, session["VirtualNetworkId"])
    provider = aws.Aws(spec, clients)
    survey = provider.survey(spec)
    assert not has_changes(diff(survey.wanted, survey.found, provider.kinds))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(specs(), accounts(), st.integers(1, 40))
def test_any_account_is_led_to_the_spec(
    ec2: Fake, clients: Mapping[str, Any], spec: Spec, account: dict[str, dict[str, Body]], dies_after: int
) -> None:
    """From any state, also after a crash at any call, the next run leads to the spec, a further plan is empty, and what
    is of others is as it was."""
    ec2.objects = {kind: {name: dict(one) for name, one in found.items()} for kind, found in account.items()}
    ec2.tokens.clear()
    survey = aws.Aws(spec, clients).survey(spec)
    if not survey.wanted:
        return
    before = others(ec2)

    try:
        outcome = run(clients, spec, dies_after)
    except Crash:
        outcome = run(clients, spec)

    assert not outcome.failed
    assert others(ec2) == before
    check_reached(ec2, clients, spec)
