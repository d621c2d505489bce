"""What the tests of `mirror aws` say and mean: a target, a choice, a mirror of somebody else."""

from collections.abc import Callable
from typing import Any

from tests.mirror.aws.fake import Fake

Run = Callable[..., tuple[int, Any, str]]
TARGET = f"eni-{9:017x}"
WEB = ("--name", "web", "--source", "tag:role=web", "--target", TARGET)
NLB = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/net/sensors/0123456789abcdef"
GWLB = f"vpce-{7:017x}"


def stranger(fake: Fake, **more: Any) -> None:
    """A mirror that somebody else made, whose tags are nearly ours."""
    tags = [{"Key": "guestagent-mirror", "Value": "web"}]
    fake.objects["filter"]["tmf-stranger"] = {
        "TrafficMirrorFilterId": "tmf-stranger", "NetworkServices": [], "Tags": tags,
    }  # fmt: skip
    fake.objects["target"]["tmt-stranger"] = {
        "TrafficMirrorTargetId": "tmt-stranger", "NetworkInterfaceId": TARGET, "Tags": tags,
    }  # fmt: skip
    fake.objects["session"]["tms-stranger"] = {
        "TrafficMirrorSessionId": "tms-stranger",
        "TrafficMirrorFilterId": "tmf-stranger",
        "TrafficMirrorTargetId": "tmt-stranger",
        "NetworkInterfaceId": f"eni-{1:017x}",
        "SessionNumber": 1,
        "Tags": tags,
        **more,
    }


WORDS = (*WEB, "--filter", "tcp/443 local", "--dns")
STEPS = 9
"""Writes of WORDS: the filter, its DNS, four rules, the target, two sessions."""
