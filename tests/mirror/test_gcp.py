"""`guestagent mirror gcp` with the real google-cloud-compute client against a server that its own messages drive."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from guestagent.cli import main
from tests.mirror.gcp_fake import BASE, COLLECTOR, HOST, Fake, Lost, Refusal
from tests.mirror.killed import killed_after

Run = Callable[..., tuple[int, Any, str]]
WEB = ("--name", "web", "--source", "tag:role=web", "--target", "sensors")


@pytest.fixture
def web(project: Fake) -> Fake:
    """Two web servers, a database, a VM of another network and one of another region."""
    project.add_vm("web-1", labels={"role": "web"}, tags=["http"])
    project.add_vm("web-2", "europe-west3-b", labels={"role": "web"})
    project.add_vm("db-1", labels={"role": "db"}, subnet="db")
    project.add_vm("lab-1", labels={"role": "lab"}, network="lab", subnet="ops")
    project.add_vm("far-1", "us-central1-a", labels={"role": "web"})
    return project


def named(raw: dict[str, Any], kind: str = "instances") -> list[str]:
    """What a policy names, without the places."""
    return sorted(one["url"].rpartition("/")[2] for one in raw["mirroredResources"].get(kind, ()))


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


def test_a_stranger_is_refused_until_adopted(web: Fake, mirror_gcp_json: Run, mirror_gcp: Run) -> None:
    """Of our name but not of our making: exit 2 and --adopt; then it is marked and changed, and goes with `delete`."""
    subnetworks = [f"{BASE}/subnetworks/ops"]
    web.add_policy("ga-web", subnetworks=subnetworks, description='guestagent:{"mirror": "web", "policy": "ga-old"}')

    code, _, said = mirror_gcp("create", *WEB)
    assert (code, web.writes()) == (2, [])
    assert "--adopt ga-web" in said
    words = ("--name", "web", "--source", "subnet:ops,subnet:web", "--target", "sensors", "--adopt", "ga-web")
    assert mirror_gcp_json("create", *words)[0] == 0
    assert named(web.policies["ga-web"], "subnetworks") == ["ops", "web"]
    assert mirror_gcp_json("plan", *words[:-2])[0] == 0
    assert mirror_gcp_json("delete", "--name", "web", "--yes")[0] == 0
    assert not web.policies


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
    "fault, sentence",
    [
        (Refusal(403, "quotaExceeded", "Quota 'PACKET_MIRRORINGS' exceeded.  Limit: 2.0"), "Quota 'PACKET_MIRRORINGS'"),
        (Refusal(403, "forbidden", "no"), "lacks compute.packetMirrorings.create; `guestagent mirror gcp policy`"),
        (
            Refusal(403, "forbidden", "Required 'compute.networks.mirror' permission for 'projects/acme/x'"),
            "lacks compute.networks.mirror on projects/acme/x",
        ),
        (Refusal(403, "accessNotConfigured"), "gcloud services enable compute.googleapis.com"),
        (Refusal(401, "authError"), "does not take these credentials"),
        (Refusal(412, "conditionNotMet", "Constraint x violated"), "Constraint x violated"),
        (Refusal(400, "invalid", "Invalid value for field 'resource.x'"), "refuses a value: Invalid value"),
        (Refusal(407, ""), "a proxy on the way wants a log-in"),
        (Refusal(418, "teapot", "as never\nseen"), "Google says: as never seen (teapot)"),
        (Refusal(503, "backendError"), "failed inside"),
    ],
)
def test_an_error_of_the_api_is_a_sentence(web: Fake, mirror_gcp: Run, fault: Refusal, sentence: str) -> None:
    """The permission or the limit is named, and the exit code is 1."""
    web.faults += [("insert", fault)] * 40

    code, _, said = mirror_gcp("create", *WEB)

    assert code == 1
    assert sentence in said
    assert "Traceback" not in said
    assert not web.policies


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


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("plan",), "nothing selects"),
        (("create", "--name", "web", "--source", "tag:a=b"), "no target"),
        (("plan", *WEB, "--filter", "tcp/443"), "no ports"),
        (("plan", *WEB, "--filter", "not udp"), "leaves out"),
        (("plan", *WEB, "--filter", "tcp 10.0.0.0/8,udp 10.1.0.0/16"), "every protocol from every network"),
        (("plan", *WEB, "--vni", "7"), "vni"),
        (("plan", *WEB, "--packet-length", "128"), "packet_length"),
        (("plan", "--source", "tag:Role=web"), "labels of GCP"),
        (("plan", "--source", "tag:role=wbe"), "select no VM"),
        (("plan", "--source", "europe-west3-a/none"), "no such VM"),
        (("plan", "--source", "us-central1-a/far-1"), "no such VM in europe-west3"),
        (("plan", "--source", "i-0a1b2c3d"), "none that gcp knows"),
        (("plan", "--source", "self"), "self"),
        (("plan", *WEB[:-1], "absent"), "does not exist"),
        (("plan", *WEB[:-1], "web-lb"), "no collector"),
        (("plan", *WEB[:-1], "outside"), "no collector"),
        (
            ("plan", *WEB[:-1], "projects/acme/regions/us-central1/forwardingRules/x", "--region", "europe-west3"),
            "stays",
        ),
        (("plan", *WEB, "--user-data", "ud.yaml"), "--user-data needs --family"),
        (("plan", *WEB, "--adopt", "nothing"), "no such object"),
        (("status",), "no name"),
    ],
)
def test_wrong_usage_is_exit_2(
    web: Fake, mirror_gcp: Run, words: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be meant, cannot be said to Google or is not there: one sentence, no write."""
    web.add_rule("web-lb", is_collector=False)
    web.add_rule("outside", scheme="EXTERNAL")
    web.add_vm("only-1", labels={"only": "b"}, network="lab")

    code, _, said = mirror_gcp(*words)

    assert code == 2, said
    assert said.startswith("guestagent: ")
    assert sentence in said
    assert not web.writes()


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


@pytest.mark.parametrize(
    "name, value, code, sentence",
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent.json", 3, "CREDENTIALS=/nonexistent.json: File "),
        ("GOOGLE_APPLICATION_CREDENTIALS", None, 3, "gcloud auth application-default login"),
        ("CLOUDSDK_COMPUTE_REGION", None, 2, "--region"),
        ("CLOUDSDK_COMPUTE_REGION", "europe/west3", 2, "region: 'europe/west3'"),
        ("GOOGLE_CLOUD_PROJECT", "acme/prod", 2, "project: 'acme/prod'"),
        ("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", "http://127.0.0.1:9", 1, "Google was not reached"),
    ],
)
def test_a_wrong_environment_is_a_sentence(
    web: Fake,
    mirror_gcp: Run,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str | None,
    code: int,
    sentence: str,
) -> None:
    """No credentials, no region, nobody there: what to do, and the exit code for whose fault it is."""
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)

    found, _, said = mirror_gcp("list")

    assert found == code, said
    assert sentence in said


def test_a_login_page_is_a_sentence(
    web: Fake, mirror_gcp: Run, monkeypatch: pytest.MonkeyPatch, login_page: str
) -> None:
    """Something in between answers in Google's place: exit 1, and what that may be."""
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", login_page)

    code, _, said = mirror_gcp("list")

    assert (code, "not Google: is a proxy in between?" in said) == (1, True)


def test_no_way_to_the_token_is_no_fault_of_the_credentials(
    web: Fake, mirror_gcp: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A user's credentials need a token of Google's server, which is not reached: exit 1, not 3."""
    user = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "t"}
    file = tmp_path / "user.json"
    file.write_text(json.dumps(user))
    for name, value in (
        ("GOOGLE_APPLICATION_CREDENTIALS", str(file)),
        ("GOOGLE_CLOUD_PROJECT", "acme"),
        ("HTTPS_PROXY", "http://127.0.0.1:9"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("guestagent.mirror.gcp.provider.PATIENCE_SECONDS", 0.1)

    code, _, said = mirror_gcp("list")

    assert (code, "Google was not reached: TransportError" in said) == (1, True)


def test_without_the_extra_it_is_a_sentence(web: Fake, mirror_gcp: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client library: exit 3, and the command that installs it."""
    monkeypatch.setitem(sys.modules, "google.auth", None)

    code, _, said = mirror_gcp("list")

    assert code == 3
    assert "pip install 'guestagent[gcp]'" in said


def test_self_is_this_vm(web: Fake, mirror_gcp_json: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata service names the VM by its number, and the inventory has it; its region is the default."""
    from guestagent.mirror.metadata import Cloud

    own = Cloud("gcp", web.instances[1]["id"], "europe-west3-b")
    monkeypatch.setattr("guestagent.mirror.metadata.own_cloud", lambda: own)
    monkeypatch.delenv("CLOUDSDK_COMPUTE_REGION")

    code, plan, _ = mirror_gcp_json("plan", "--source", "self")

    assert code == 0
    assert [one["machine"] for one in plan["machines"]] == ["europe-west3-b/web-2"]


def test_dry_run_tells_what_can_be_told(web: Fake, mirror_gcp_json: Run, mirror_gcp: Run) -> None:
    """Of a policy that exists our permissions are asked for; a new one cannot be asked about, and that is said."""
    code, plan, _ = mirror_gcp_json("plan", *WEB, "--dry-run")
    assert (code, plan["verified"]) == (4, "reads-only")
    assert "cannot tell" in plan["steps"][0]["proof"]
    mirror_gcp_json("create", *WEB)

    code, plan, _ = mirror_gcp_json("plan", *WEB, "--filter", "tcp", "--dry-run")
    assert (code, plan["verified"], plan["steps"][0]["proof"]) == (4, "permissions", "proved")
    web.denied = {"compute.packetMirrorings.update"}
    code, _, said = mirror_gcp("plan", *WEB, "--filter", "tcp", "--dry-run")
    assert code == 1
    assert "lacks compute.packetMirrorings.update" in said
    assert web.writes() == ["insert"]


def test_status_tells_what_is_broken(web: Fake, mirror_gcp_json: Run) -> None:
    """In order: 0. Switched off, a rule that collects no more, a rule that is gone: 1 and the reason."""
    mirror_gcp_json("create", *WEB)
    code, state, _ = mirror_gcp_json("status", "--name", "web")
    assert (code, state["works"], state["instances"]) == (0, True, 2)

    web.policies["ga-web"]["enable"] = "FALSE"
    assert "switched off" in mirror_gcp_json("status", "--name", "web")[1]["problems"][0]
    web.policies["ga-web"]["enable"] = "TRUE"
    web.rules[COLLECTOR]["isMirroringCollector"] = False
    assert "no collector any more" in mirror_gcp_json("status", "--name", "web")[1]["problems"][0]
    del web.rules[COLLECTOR]
    code, state, _ = mirror_gcp_json("status", "--name", "web")
    assert (code, len(state["problems"])) == (1, 1)
    assert "does not exist any more" in state["problems"][0]
    assert [one["name"] for one in mirror_gcp_json("list")[1]["mirrors"]] == ["web"]


def test_each_machine_has_its_way_and_reason(web: Fake, mirror_gcp_json: Run, tmp_path: Path) -> None:
    """Another network, another's policy and bare metal are told apart; the agent's cloud-init is for the rest."""
    web.add_vm("iron-1", kind="c3-standard-192-metal", subnet="db")
    web.add_vm("ops-1", subnet="ops")
    web.add_vm("ops-2", subnet="ops")
    web.add_policy("theirs", instances=["projects/acme/zones/europe-west3-a/instances/ops-1"])
    web.add_policy("off", tags=["http"], enable="FALSE")
    web.add_policy("later", subnetworks=[f"{BASE}/subnetworks/db"], priority=2000)
    file, key = tmp_path / "user-data", tmp_path / "key"
    key.write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    rendering = ("--family", "apt", "--repository", "https://packages.example", "--repository-key", str(key))
    words = ("plan", "--source", "subnet:web,subnet:db,subnet:ops", "--target", "sensors", *rendering)

    code, plan, _ = mirror_gcp_json(*words, "--user-data", str(file), "--collector", "tcp://10.0.0.9")

    assert (code, plan["steps"]) == (0, [])
    found = {one["machine"].partition("/")[2]: one for one in plan["machines"]}
    assert {name: (one["way"], one["eligible"]) for name, one in found.items()} == {
        "web-1": ("native", "yes"),
        "web-2": ("native", "yes"),
        "db-1": ("native", "yes"),
        "iron-1": ("native", "unknown"),
        "lab-1": ("agent", "yes"),
        "ops-1": ("agent", "yes"),
        "ops-2": ("native", "yes"),
    }
    for name, word in (("lab-1", "no interface in prod"), ("ops-1", "theirs mirrors it"), ("iron-1", "last word")):
        assert word in found[name]["reason"]
    assert any("Network Security Integration" in text for text in plan["warnings"])
    assert yaml.safe_load(file.read_text())["write_files"][-1]["content"] == 'to = ["tcp://10.0.0.9"]\n'


def test_a_quota_that_is_short_is_told_before(web: Fake, mirror_gcp_json: Run) -> None:
    """The project's own figures say that the new policies do not fit."""
    web.quota = 1
    for number in range(60):
        web.add_vm(f"farm-{number}", labels={"role": "web"})

    _, plan, _ = mirror_gcp_json("plan", *WEB)

    assert any("2 new policies, and the project has 0 of 1" in text for text in plan["warnings"])


def test_five_thousand_machines_take_one_pass(web: Fake, mirror_gcp_json: Run) -> None:
    """Selected by label, in pages of 500: ten pages of VMs and one call each for the rest."""
    for number in range(5000):
        web.add_vm(f"farm-{number}", f"europe-west3-{'ab'[number % 2]}", labels={"farm": "one"})

    code, plan, _ = mirror_gcp_json("plan", "--name", "farm", "--tag", "farm=one", "--target", "sensors")

    assert code == 4
    assert (len(plan["machines"]), len(plan["steps"])) == (5000, 100)
    assert Counter(handler for handler, _ in web.calls) == {
        "list_instances": 10, "list_them": 1, "get_rule": 1, "get_project": 1,
    }  # fmt: skip


@pytest.mark.gcp_live
def test_live_permissions(capsys: pytest.CaptureFixture[str]) -> None:
    """With real credentials and GUESTAGENT_LIVE_SPEC naming a mirror.toml: reads, and asks for permissions alone."""
    spec = os.environ.get("GUESTAGENT_LIVE_SPEC")
    if not spec:
        pytest.skip("GUESTAGENT_LIVE_SPEC names no mirror.toml")
    assert main(["mirror", "gcp", "plan", "-f", spec, "--dry-run", "--json"]) in (0, 4)
    assert json.loads(capsys.readouterr().out)["schema"] == "guestagent.mirror/1"
