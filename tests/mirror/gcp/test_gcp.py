"""`guestagent mirror gcp` with the real google-cloud-compute client against a server that its own messages drive."""

import json

import pytest

from tests.mirror.gcp.choice import WEB, Run, named
from tests.mirror.gcp.fake import Fake
from tests.mirror.gcp.words import BASE, COLLECTOR, HOST


def test_create_converges_and_delete_removes_all(web: Fake, mirror_gcp_json: Run) -> None:
    """Plan has changes, create makes them, a second create and plan do nothing, delete leaves nothing of ours."""
    stranger = json.dumps(web.add_policy("ga-other", subnetworks=[f"{BASE}/subnetworks/ops"], description="theirs"))
    code, _, said = mirror_gcp_json("plan", *WEB)
    assert code == 4, said
    assert not web.writes()

    code, made, _ = mirror_gcp_json("create", *WEB, "--filter", "tcp,udp", "--direction", "ingress")
    assert (code, made["schema"], made["kind"]) == (0, "guestagent.mirror/1", "outcome")
    policy = web.policies["ga-web"]
    assert named(policy) == ["web-1", "web-2"]
    assert policy["collectorIlb"]["url"] == HOST + COLLECTOR
    assert policy["filter"] == {
        "IPProtocols": ["tcp", "udp"], "cidrRanges": ["0.0.0.0/0", "::/0"], "direction": "INGRESS",
    }  # fmt: skip

    writes = len(web.writes())
    assert mirror_gcp_json("create", *WEB, "--filter", "tcp,udp", "--direction", "ingress")[0] == 0
    assert mirror_gcp_json("plan", *WEB, "--filter", "tcp,udp", "--direction", "ingress")[0] == 0
    assert len(web.writes()) == writes

    assert mirror_gcp_json("delete", "--name", "web", "--yes")[0] == 0
    assert list(web.policies) == ["ga-other"]
    assert json.dumps(web.policies["ga-other"]) == stranger


def test_operations_are_asked_for_where_the_change_was(web: Fake, mirror_gcp_json: Run) -> None:
    """A slow operation is waited for at the endpoint that was given, and not at the library's default one."""
    web.slowness = 5

    assert mirror_gcp_json("create", *WEB)[0] == 0

    assert [handler for handler, _ in web.calls][-6:] == ["insert", "wait", "wait", "wait", "wait", "wait"]


def test_a_changed_spec_changes_in_place(web: Fake, mirror_gcp_json: Run) -> None:
    """Filter, collector and sources follow the spec in the same policy; what nobody asked for stays."""
    mirror_gcp_json("create", *WEB)
    web.policies["ga-web"]["priority"] = 7
    web.add_rule("others")

    words = ("--name", "web", "--source", "europe-west3-a/web-1,tag:role=db", "--target", "others", "--filter", "icmp")
    assert mirror_gcp_json("create", *words)[0] == 0

    policy = web.policies["ga-web"]
    assert (list(web.policies), web.writes()) == (["ga-web"], ["insert", "patch"])
    assert (named(policy), policy["priority"]) == (["db-1", "web-1"], 7)
    assert policy["collectorIlb"]["url"].endswith("/others")
    assert policy["filter"]["IPProtocols"] == ["icmp", "58"]
    assert mirror_gcp_json("plan", *words)[0] == 0


@pytest.mark.parametrize(
    "before, after",
    [
        (("--source", "nettag:http,tag:role=db"), ("--source", "tag:role=db")),
        (("--source", "tag:role=web", "--filter", "tcp"), ("--source", "tag:role=web")),
        (("--source", "subnet:web,nettag:http"), ("--source", "europe-west3-a/db-1,subnet:web")),
    ],
)
def test_what_cannot_be_emptied_is_made_anew(
    web: Fake, mirror_gcp_json: Run, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    """A merge patch without a list leaves it as it is: a policy that should lose one is replaced, the new one first."""
    common = ("--name", "web", "--target", "sensors")
    assert mirror_gcp_json("create", *common, *before)[0] == 0

    assert mirror_gcp_json("create", *common, *after)[0] == 0

    assert (list(web.policies), web.writes()) == (["ga-web-2"], ["insert", "insert", "delete"])
    assert mirror_gcp_json("plan", *common, *after)[0] == 0


def test_another_network_is_another_policy(web: Fake, mirror_gcp_json: Run) -> None:
    """A policy's network cannot be changed: the new one is made before the old one goes, and peering is mentioned."""
    mirror_gcp_json("create", *WEB)
    words = ("--name", "web", "--source", "tag:role=lab", "--vpc", "lab", "--target", "sensors")

    code, made, _ = mirror_gcp_json("create", *words)

    assert (code, list(web.policies)) == (0, ["ga-web-2"])
    assert [step["op"] for step in made["done"]] == ["create", "delete"]
    assert any("peered" in text for text in made["warnings"])


def test_subnetworks_and_network_tags_stay_selectors(web: Fake, mirror_gcp_json: Run) -> None:
    """They go into the policy as they are, so that VMs of tomorrow are mirrored; --tag makes them names of VMs."""
    words = ("--name", "web", "--source", "subnet:web", "--source", "nettag:http,nettag:later", "--target", "sensors")

    code, made, _ = mirror_gcp_json("create", *words)

    policy = web.policies["ga-web"]
    assert code == 0
    assert (named(policy), named(policy, "subnetworks")) == ([], ["web"])
    assert policy["mirroredResources"]["tags"] == ["http", "later"]
    assert any("later selects no VM now" in text for text in made["warnings"])
    assert mirror_gcp_json("create", *words, "--tag", "role=web")[0] == 0
    (policy,) = web.policies.values()
    assert (named(policy), named(policy, "subnetworks")) == (["web-1", "web-2"], [])
    assert "tags" not in policy["mirroredResources"]


def test_what_cannot_be_mirrored_is_left_out(web: Fake, mirror_gcp_json: Run, mirror_gcp: Run) -> None:
    """A VM without an interface in the network is the agent's, and the others are mirrored; alone it is exit 1."""
    web.add_vm("web-3", labels={"role": "web"}, network="lab")

    code, made, _ = mirror_gcp_json("create", *WEB)

    assert code == 0
    assert named(web.policies["ga-web"]) == ["web-1", "web-2"]
    assert {one["machine"]: one["way"] for one in made["machines"]}["europe-west3-a/web-3"] == "agent"
    alone = mirror_gcp("create", "--name", "lab", "--source", "tag:role=lab", "--target", "sensors")
    assert (alone[0], "run the agent there" in alone[2]) == (1, True)


def test_more_than_fifty_take_several_policies(web: Fake, mirror_gcp_json: Run) -> None:
    """Each policy names 50 at most; when one VM goes, the others stay where they are."""
    for number in range(120):
        web.add_vm(f"farm-{number}", labels={"role": "farm"})
    words = ("--name", "farm", "--source", "tag:role=farm", "--target", "sensors")

    assert mirror_gcp_json("create", *words)[0] == 0
    assert {name: len(named(raw)) for name, raw in web.policies.items()} == {
        "ga-farm": 50, "ga-farm-2": 50, "ga-farm-3": 20,
    }  # fmt: skip
    gone = named(web.policies["ga-farm-2"])[0]
    web.instances = [one for one in web.instances if one["name"] != gone]
    assert mirror_gcp_json("create", *words)[0] == 0
    # The gap is filled from nowhere: nobody moves.
    assert [len(named(raw)) for raw in web.policies.values()] == [50, 49, 20]
    assert web.writes() == ["insert"] * 3 + ["patch"]


def test_names_of_other_mirrors_are_stepped_over(web: Fake, mirror_gcp_json: Run) -> None:
    """`web` needs a second policy, and `ga-web-2` belongs to the mirror `web-2`."""
    other = ("--name", "web-2", "--source", "tag:role=db", "--target", "sensors")
    assert mirror_gcp_json("create", *other)[0] == 0
    for number in range(60):
        web.add_vm(f"farm-{number}", labels={"role": "web"})

    assert mirror_gcp_json("create", *WEB)[0] == 0

    assert sorted(web.policies) == ["ga-web", "ga-web-2", "ga-web-3"]
    assert mirror_gcp_json("delete", "--name", "web", "--yes")[0] == 0
    assert sorted(web.policies) == ["ga-web-2"]
