"""AWS: the least-privilege IAM policy of `mirror aws`, as the document that IAM takes. Pure."""

from typing import Any

from guestagent.mirror.aws.model import MANAGED_TAG

READS = (
    "ec2:DescribeInstances",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeTrafficMirrorFilters",
    "ec2:DescribeTrafficMirrorSessions",
    "ec2:DescribeTrafficMirrorTargets",
    "ec2:DescribeVpcEndpoints",
    "elasticloadbalancing:DescribeListeners",
    "elasticloadbalancing:DescribeTargetHealth",
)
_KINDS = ("filter", "filter-rule", "target", "session")
_MIRROR = tuple(f"traffic-mirror-{kind}" for kind in _KINDS)


_PARTITIONS = {"us-gov-": "aws-us-gov", "cn-": "aws-cn"}
"""By the first letters of the region."""


def _statement(sid: str, actions: list[str], resources: list[str], **conditions: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    if conditions:
        made["Condition"] = {"StringEquals": conditions["equals"]}
    return made


def document(region: str = "", target: str = "") -> dict[str, Any]:
    """Reads everywhere; makes only what it marks in the same call; changes and removes only what bears the mark.

    A mirror target of somebody else's may be used where it is named, as it bears no mark.
    """
    partition = next((name for prefix, name in _PARTITIONS.items() if region.startswith(prefix)), "aws")

    def _arns(*kinds: str) -> list[str]:
        return [f"arn:{partition}:ec2:*:*:{kind}/*" for kind in kinds]

    asked = {f"aws:RequestTag/{MANAGED_TAG}": "true"}
    marked = {f"aws:ResourceTag/{MANAGED_TAG}": "true"}
    create = {kind: f"ec2:CreateTrafficMirror{kind.title().replace('-', '')}" for kind in _KINDS}
    new = [create["filter"], create["target"], create["session"]]
    change = [
        "ec2:DeleteTrafficMirrorFilter",
        "ec2:DeleteTrafficMirrorFilterRule",
        "ec2:DeleteTrafficMirrorSession",
        "ec2:DeleteTrafficMirrorTarget",
        "ec2:ModifyTrafficMirrorFilterNetworkServices",
        "ec2:ModifyTrafficMirrorFilterRule",
        "ec2:ModifyTrafficMirrorSession",
    ]
    statements = [
        _statement("Read", list(READS), ["*"]),
        _statement(
            "CreateMarked",
            new,
            _arns("traffic-mirror-filter", "traffic-mirror-target", "traffic-mirror-session"),
            equals=asked,
        ),
        _statement(
            "UseMarked",
            [create["session"], create["filter-rule"]],
            _arns("traffic-mirror-filter", "traffic-mirror-target"),
            equals=marked,
        ),
        _statement("CreateRule", [create["filter-rule"]], _arns("traffic-mirror-filter-rule"), equals=asked),
        _statement(
            "UseInterfaces",
            [create["session"], create["target"]],
            _arns("network-interface", "vpc-endpoint"),
        ),
        _statement(
            "MarkOnCreate",
            ["ec2:CreateTags"],
            _arns(*_MIRROR),
            equals={"ec2:CreateAction": [action.removeprefix("ec2:") for action in create.values()]},
        ),
        _statement("ChangeMarked", change, _arns(*_MIRROR), equals=marked),
    ]
    if target.startswith("tmt-"):
        arn = f"arn:{partition}:ec2:*:*:traffic-mirror-target/{target}"
        statements.append(_statement("UseNamed", [create["session"]], [arn]))
    return {"Version": "2012-10-17", "Statement": statements}
