"""The fake project itself: it refuses what Google refuses, or the tests that use it prove nothing."""

import json
from typing import Any

import pytest

from tests.mirror.gcp.fake import Fake
from tests.mirror.gcp.routes import BODY
from tests.mirror.gcp.words import BASE, COLLECTOR, NETWORK, merge_patch

POLICIES = f"/compute/v1/{BASE}/packetMirrorings"
TOKEN = "Bearer x"
POLICY = {
    "name": "one",
    "network": {"url": NETWORK},
    "collectorIlb": {"url": COLLECTOR},
    "mirroredResources": {"tags": ["web"]},
}


def ask(fake: Fake, method: str, path: str, body: Any = None, token: str | None = TOKEN) -> tuple[int, str, Any]:
    """Status, reason and answer."""
    status, answer = fake.answer(method, path, json.dumps(body) if body is not None else "", token)
    errors = answer.get("error", {}).get("errors", ())
    return status, str(errors[0].get("reason", "")) if status != 200 else "", answer


@pytest.mark.parametrize(
    "change, status, reason",
    [
        ({"name": None}, 400, "required"),
        ({"name": "-one"}, 400, "invalid"),
        ({"network": None}, 400, "required"),
        ({"mirroredResources": {"tags": []}}, 400, "invalid"),
        ({"mirroredResources": {"tags": list("abcdef")}}, 400, "invalid"),
        ({"mirroredResources": {"tags": "web"}}, 400, "invalid"),
        ({"mirroredResources": {"instances": [{"url": "projects/acme/zones/x/instances/none"}]}}, 400, "invalid"),
        ({"mirroredResources": {"subnetworks": [{"url": "projects/acme/regions/x/subnetworks/y"}]}}, 400, "invalid"),
        ({"collectorIlb": {"url": f"{BASE}/forwardingRules/none"}}, 400, "invalid"),
        ({"filter": {"direction": "SIDEWAYS"}}, 400, "invalid"),
        ({"filter": {"protocols": ["tcp"]}}, 400, "invalid"),
        ({"filter": {"IPProtocols": ["tpc"]}}, 400, "invalid"),
        ({"filter": {"cidrRanges": ["10.0.0.1/8"]}}, 400, "invalid"),
        ({"enable": "MAYBE"}, 400, "invalid"),
        ({"enable": True}, 400, "invalid"),
        ({"labels": {"a": "b"}}, 400, "invalid"),
        ({"priority": "high"}, 400, "invalid"),
    ],
)
def test_a_wrong_policy_is_refused(project: Fake, change: dict[str, Any], status: int, reason: str) -> None:
    """Unknown fields, wrong types and enums, what lacks, limits and references."""
    wish = {name: value for name, value in {**POLICY, **change}.items() if value is not None}

    assert ask(project, "POST", POLICIES, wish)[:2] == (status, reason)
    project.settle()
    assert not project.policies


@pytest.mark.parametrize(
    "method, path, body, status, reason",
    [
        ("GET", f"{POLICIES}?warp=9", None, 400, "invalid"),
        ("GET", f"{POLICIES}?maxResults=501", None, 400, "invalid"),
        ("GET", f"{POLICIES}/none", None, 404, "notFound"),
        ("GET", POLICIES.replace("acme", "other"), None, 404, "notFound"),
        ("PUT", POLICIES, POLICY, 404, "notFound"),
        ("POST", POLICIES, None, 400, "required"),
        ("POST", f"{POLICIES}?requestId=9", POLICY, 400, "invalid"),
        ("POST", f"{POLICIES}?requestId=00000000-0000-0000-0000-000000000000", POLICY, 400, "invalid"),
        ("DELETE", f"{POLICIES}/none", None, 404, "notFound"),
        ("POST", f"/compute/v1/{BASE}/operations/none/wait", None, 404, "notFound"),
        ("GET", "/compute/v1/projects/acme/aggregated/instances?filter=labels.a%3Db%20OR%20x", None, 400, "invalid"),
    ],
)
def test_a_wrong_request_is_refused(project: Fake, method: str, path: str, body: Any, status: int, reason: str) -> None:
    """Unknown parameters, paths, names and identifiers."""
    assert ask(project, method, path, body)[:2] == (status, reason)


def test_who_says_nothing_is_not_let_in(project: Fake) -> None:
    """A call without a token is a 401."""
    assert ask(project, "GET", POLICIES, token=None)[0] == 401


def test_operations_take_time_and_names_are_taken(project: Fake) -> None:
    """A policy is there when its operation is done; until then its name is taken, and it cannot be changed."""
    project.slowness = 3
    status, _, operation = ask(project, "POST", POLICIES, POLICY)
    assert (status, operation["status"]) == (200, "RUNNING")
    assert ask(project, "GET", f"{POLICIES}/one")[0] == 404
    assert ask(project, "POST", POLICIES, POLICY)[:2] == (409, "alreadyExists")
    assert ask(project, "POST", f"/compute/v1/{BASE}/operations/{operation['name']}/wait")[2]["status"] == "DONE"
    assert ask(project, "GET", f"{POLICIES}/one")[2]["network"]["url"].startswith("https://")

    assert ask(project, "PATCH", f"{POLICIES}/one", {"name": "one", "description": "x"})[0] == 200
    assert ask(project, "DELETE", f"{POLICIES}/one")[:2] == (400, "resourceNotReady")


def test_a_request_id_is_remembered(project: Fake) -> None:
    """The same one again is the same operation."""
    path = f"{POLICIES}?requestId=3f0c2f0e-6d4f-4c0e-9d8a-111111111111"

    assert ask(project, "POST", path, POLICY)[2]["name"] == ask(project, "POST", path, POLICY)[2]["name"]
    assert len(project.operations) == 1


def test_a_patch_merges(project: Fake) -> None:
    """RFC 7396: what is left out stays, null removes, a list is replaced; the network stays."""
    assert merge_patch({"a": {"b": [1], "c": 2}}, {"a": {"b": [3], "d": 4}}) == {"a": {"b": [3], "c": 2, "d": 4}}
    assert merge_patch({"a": 1, "b": 2}, {"a": None}) == {"b": 2}
    project.add_policy("one", tags=["web"])
    assert ask(project, "PATCH", f"{POLICIES}/one", {"network": {"url": "projects/acme/global/networks/x"}})[0] == 400


def test_lists_have_pages(project: Fake) -> None:
    """Each page has its part, empty zones say so, and the last has no token."""
    for number in range(3):
        project.add_vm(f"vm-{number}")
    path = "/compute/v1/projects/acme/aggregated/instances?maxResults=2"

    first = ask(project, "GET", path)[2]
    last = ask(project, "GET", f"{path}&pageToken={first['nextPageToken']}")[2]

    assert [len(one["items"]["zones/europe-west3-a"]["instances"]) for one in (first, last)] == [2, 1]
    assert first["items"]["zones/us-central1-a"]["warning"]["code"] == "NO_RESULTS_ON_PAGE"
    assert not last["nextPageToken"]


def test_the_body_has_its_own_field() -> None:
    """The name under which the library's request class holds the body."""
    from google.cloud import compute_v1

    assert BODY == "packetMirroringResource"
    assert "packet_mirroring_resource" in compute_v1.InsertPacketMirroringRequest.meta.fields
