"""A crash, a lost answer or a slow operation, wherever it falls, is mended by the next run of `mirror gcp`."""

import pytest

from tests.mirror.gcp.choice import WEB, Run, named
from tests.mirror.gcp.fake import Fake
from tests.mirror.gcp.words import BASE, Lost, Refusal
from tests.mirror.killed import killed_after


@pytest.mark.parametrize("slowness", [2, 9])
def test_a_crash_after_the_insert_is_repaired(web: Fake, mirror_gcp_json: Run, slowness: int) -> None:
    """SIGKILL while the operation runs: the next run finds the policy, or waits until it comes up."""
    web.slowness = slowness
    killed_after(web, 1, ("gcp", "create", *WEB))

    code, _, said = mirror_gcp_json("create", *WEB)

    assert code == 0, said
    assert mirror_gcp_json("plan", *WEB)[0] == 0
    assert web.writes() == ["insert"] * (2 if slowness > 5 else 1)
    assert [named(one) for one in web.policies.values()] == [["web-1", "web-2"]]


def test_what_comes_up_otherwise_is_not_taken_for_ours(web: Fake, mirror_gcp: Run) -> None:
    """A name that was taken since we looked, for another wish: exit 1, and the next run makes it right."""
    web.slowness = 9
    mirror_gcp("create", *WEB, "--filter", "tcp")
    raw = web.policies.pop("ga-web")
    web.faults.append(("insert", Refusal(409, "alreadyExists")))

    def appear() -> None:
        web.policies["ga-web"] = raw

    web._operate("insert", {}, f"{BASE}/packetMirrorings/ga-web", appear)
    code, _, said = mirror_gcp("create", *WEB)
    assert (code, "run again" in said) == (1, True)
    assert mirror_gcp("create", *WEB)[0] == 0
    assert mirror_gcp("plan", *WEB)[0] == 0


def test_a_lost_answer_makes_nothing_twice(web: Fake, mirror_gcp_json: Run) -> None:
    """The connection breaks after the insert was taken: it is repeated with the same request id."""
    web.faults.append(("insert", Lost()))

    assert mirror_gcp_json("create", *WEB)[0] == 0

    ids = [body["requestId"] for handler, body in web.calls if handler == "insert"]
    assert (len(ids), len(set(ids)), len(web.operations)) == (2, 1, 1)


@pytest.mark.parametrize(
    "handler, fault",
    [
        ("insert", Refusal(429, "rateLimitExceeded")),
        ("insert", Refusal(403, "rateLimitExceeded")),
        ("insert", Refusal(503, "backendError")),
        ("wait", Refusal(500, "internalError")),
        ("list_them", Refusal(429, "")),
    ],
)
def test_what_passes_is_waited_for(web: Fake, mirror_gcp_json: Run, handler: str, fault: Refusal) -> None:
    """Throttling and failures of Google are tried again."""
    web.faults += [(handler, fault)] * 2

    assert mirror_gcp_json("create", *WEB)[0] == 0
    assert not web.faults


@pytest.mark.parametrize(
    "failure, sentence",
    [
        ((403, "QUOTA_EXCEEDED", "Quota 'X' exceeded"), "a quota is used up: Quota 'X' exceeded"),
        ((404, "RESOURCE_NOT_FOUND", "subnetwork gone"), "does not exist: subnetwork gone"),
        ((400, "PERMISSIONS_ERROR", "Required 'compute.subnetworks.mirror' permission for 'y'"), "subnetworks.mirror"),
    ],
)
def test_an_operation_that_fails_is_a_sentence(
    web: Fake, mirror_gcp: Run, failure: tuple[int, str, str], sentence: str
) -> None:
    """The call was taken, and what came of it is an error."""
    web.failures.append(failure)

    code, _, said = mirror_gcp("create", *WEB)

    assert (code, web.policies) == (1, {})
    assert sentence in said


def test_a_zone_that_does_not_answer_removes_nothing(web: Fake, mirror_gcp: Run) -> None:
    """VMs that are not known are not VMs that are gone; zones of other regions do not matter."""
    mirror_gcp("create", *WEB)
    web.silent_zones = {"us-central1-a"}
    assert mirror_gcp("create", *WEB)[0] == 0
    web.silent_zones = {"europe-west3-b"}

    code, _, said = mirror_gcp("create", *WEB)

    assert code == 1
    assert "europe-west3-b" in said
    assert named(web.policies["ga-web"]) == ["web-1", "web-2"]
