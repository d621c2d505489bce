"""What the tests of `mirror gcp` say and mean: a choice, and what a policy names."""

from collections.abc import Callable
from typing import Any

Run = Callable[..., tuple[int, Any, str]]
WEB = ("--name", "web", "--source", "tag:role=web", "--target", "sensors")


def named(raw: dict[str, Any], kind: str = "instances") -> list[str]:
    """What a policy names, without the places."""
    return sorted(one["url"].rpartition("/")[2] for one in raw["mirroredResources"].get(kind, ()))
