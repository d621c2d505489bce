"""Names of a fake project, the errors of its API, and how it writes URLs, patches, pages and filters."""

import json
import re
from typing import Any

Body = dict[str, Any]
PROJECT, REGION, ZONES = "acme", "europe-west3", ("europe-west3-a", "europe-west3-b", "us-central1-a")
HOST = "https://www.googleapis.com/compute/v1/"
BASE = f"projects/{PROJECT}/regions/{REGION}"
NETWORK = f"projects/{PROJECT}/global/networks/prod"
COLLECTOR = f"{BASE}/forwardingRules/sensors"
MOST_OF_PAGE = 500


class Refusal(Exception):
    """An error of the API."""

    def __init__(self, status: int, reason: str, message: str = "as the test says") -> None:
        super().__init__(reason)
        self.status, self.reason, self.message = status, reason, message


class Lost(Exception):
    """The call was done and its answer never arrives."""


def zone_of(machine: Body) -> str:
    return str(machine["zone"].rpartition("/")[2])


def short(url: str) -> str:
    return url.removeprefix(HOST)


def full(raw: Body) -> Body:
    """A policy as the API gives it back: references are full URLs."""
    made = json.loads(json.dumps(raw))
    resources = made.get("mirroredResources", {})
    for one in (
        made["network"],
        made["collectorIlb"],
        *resources.get("instances", ()),
        *resources.get("subnetworks", ()),
    ):
        one["url"] = HOST + short(one["url"])
    return made  # type: ignore[no-any-return]


def merge_patch(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    made = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merge_patch(made.get(key), value)
    return made


def page(request: Body, found: list[Body]) -> tuple[list[Body], str]:
    """Part of a list, and the token of the next."""
    size = int(request.get("maxResults", MOST_OF_PAGE))
    if not 0 < size <= MOST_OF_PAGE:
        raise Refusal(400, "invalid", "Invalid value for field 'maxResults'")
    start = int(request.get("pageToken") or 0)
    return found[start : start + size], str(start + size) if start + size < len(found) else ""


def labels_of(text: str) -> list[tuple[str, str]]:
    """`(labels.KEY = VALUE) AND (...)`; nothing else is a filter here."""
    if not text:
        return []
    found = [re.fullmatch(r"\(labels\.([a-z][\w-]*) = ([\w-]*)\)", part) for part in text.split(" AND ")]
    if not all(found):
        raise Refusal(400, "invalid", "Invalid value for field 'filter'")
    return [(one[1], one[2]) for one in found if one]
