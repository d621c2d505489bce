"""The fake itself: it refuses what EC2 refuses, or the tests that use it prove nothing."""

from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.mirror.aws.fake import Fake
from tests.mirror.aws.wire import Refusal


@pytest.fixture
def client(ec2: Fake) -> Any:
    """The real client, which checks only names and types itself."""
    return boto3.client("ec2", config=Config(parameter_validation=False, retries={"total_max_attempts": 1}))


def code_of(call: Any, **parameters: Any) -> str:
    """The error that comes back."""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    return str(caught.value.response["Error"]["Code"])


def make(client: Any) -> dict[str, Any]:
    """A session's worth of parameters."""
    target = client.create_traffic_mirror_target(NetworkInterfaceId=f"eni-{9:017x}")["TrafficMirrorTarget"]
    filter_id = client.create_traffic_mirror_filter()["TrafficMirrorFilter"]["TrafficMirrorFilterId"]
    return {
        "NetworkInterfaceId": f"eni-{1:017x}",
        "TrafficMirrorTargetId": target["TrafficMirrorTargetId"],
        "TrafficMirrorFilterId": filter_id,
        "SessionNumber": 1,
    }


RULE = {
    "TrafficDirection": "ingress",
    "RuleNumber": 1,
    "RuleAction": "accept",
    "SourceCidrBlock": "0.0.0.0/0",
    "DestinationCidrBlock": "0.0.0.0/0",
}


@pytest.mark.parametrize(
    "change, code",
    [
        ({"TrafficDirection": "sideways"}, "InvalidParameterValue"),
        ({"RuleAction": None}, "MissingParameter"),
        ({"RuleNumber": "first"}, "InvalidParameterValue"),
        ({"SourceCidrBlock": "10.0.0.1/8"}, "InvalidParameterValue"),
        ({"SourceCidrBlock": "::/0"}, "InvalidParameterValue"),
        ({"DestinationPortRange": {"FromPort": 1, "ToPort": 2}}, "InvalidParameterCombination"),
        ({"TrafficMirrorFilterId": "tmf-0"}, "InvalidTrafficMirrorFilterId.NotFound"),
    ],
)
def test_a_wrong_rule_is_refused(ec2: Fake, client: Any, change: dict[str, Any], code: str) -> None:
    """Enums, types, required members, CIDRs and references, each with EC2's code."""
    filter_id = client.create_traffic_mirror_filter()["TrafficMirrorFilter"]["TrafficMirrorFilterId"]
    wish = {"TrafficMirrorFilterId": filter_id, **RULE, **change}

    assert code_of(client.create_traffic_mirror_filter_rule, **{k: v for k, v in wish.items() if v is not None}) == code


def test_unknown_parameters_and_actions_are_refused(ec2: Fake) -> None:
    """What the model does not know earns an error, not silence."""
    _, unknown = ec2.answer({"Action": "CreateTrafficMirrorFilter", "Version": "2016-11-15", "Warp": "9"})
    _, action = ec2.answer({"Action": "CreateTrafficMirrorWarp", "Version": "2016-11-15"})

    assert "UnknownParameter" in unknown
    assert "InvalidAction" in action


def test_limits_and_use_are_kept(ec2: Fake, client: Any) -> None:
    """Numbers once, three sessions on an interface, ten rules, ten sources; what is used stays."""
    for number in (1, *range(9, 21)):
        ec2.add_instance(number)
    wish = make(client)
    client.create_traffic_mirror_session(**wish)
    session = client.create_traffic_mirror_session
    assert code_of(session, **wish) == "InvalidParameterValue"
    assert code_of(session, **{**wish, "SessionNumber": 32767}) == "InvalidParameterValue"
    for number in (2, 3):
        session(**{**wish, "SessionNumber": number})
    assert code_of(session, **{**wish, "SessionNumber": 4}) == "TrafficMirrorSessionsPerInterfaceLimitExceeded"
    for number in range(10, 19):
        session(**{**wish, "NetworkInterfaceId": f"eni-{number:017x}"})
    last = {**wish, "NetworkInterfaceId": f"eni-{19:017x}"}
    assert code_of(session, **last) == "TrafficMirrorSourcesPerTargetLimitExceeded"
    target, filter_id = wish["TrafficMirrorTargetId"], wish["TrafficMirrorFilterId"]
    delete_target = client.delete_traffic_mirror_target
    assert code_of(delete_target, TrafficMirrorTargetId=target) == "TrafficMirrorTargetInUseException"
    assert code_of(client.delete_traffic_mirror_filter, TrafficMirrorFilterId=filter_id) == "TrafficMirrorFilterInUse"
    rule = client.create_traffic_mirror_filter_rule
    for number in range(1, 11):
        rule(TrafficMirrorFilterId=filter_id, **{**RULE, "RuleNumber": number})
    eleventh = {"TrafficMirrorFilterId": filter_id, **RULE, "RuleNumber": 11}
    assert code_of(rule, **eleventh) == "TrafficMirrorFilterRuleLimitExceeded"


def test_tokens_dry_runs_tags_and_pages(ec2: Fake, client: Any) -> None:
    """A token repeats its answer and refuses another body; a dry run makes nothing; tag filters filter; pages end."""
    create = client.create_traffic_mirror_filter
    assert code_of(create, DryRun=True) == "DryRunOperation"
    assert not ec2.objects["filter"]
    first = create(ClientToken="t", Description="a")["TrafficMirrorFilter"]["TrafficMirrorFilterId"]
    assert create(ClientToken="t", Description="a")["TrafficMirrorFilter"]["TrafficMirrorFilterId"] == first
    assert code_of(create, ClientToken="t", Description="b") == "IdempotentParameterMismatch"
    for number in range(11):
        tag = {"ResourceType": "traffic-mirror-filter", "Tags": [{"Key": "n", "Value": str(number)}]}
        create(TagSpecifications=[tag])
    describe = client.describe_traffic_mirror_filters
    assert len(describe(Filters=[{"Name": "tag:n", "Values": ["3"]}])["TrafficMirrorFilters"]) == 1
    assert code_of(describe, Filters=[{"Name": "colour", "Values": ["3"]}]) == "InvalidParameterValue"
    pages = list(client.get_paginator("describe_traffic_mirror_filters").paginate(PaginationConfig={"PageSize": 5}))
    assert [len(page["TrafficMirrorFilters"]) for page in pages] == [5, 5, 2]
    ec2.faults.append(("*", Refusal("RequestLimitExceeded", status=503)))
    assert code_of(describe) == "RequestLimitExceeded"
