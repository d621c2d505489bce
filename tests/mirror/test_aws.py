"""`guestagent mirror aws` with the real boto3 client against a server that botocore's own model drives."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guestagent.cli import VERBS, main
from guestagent.mirror.aws.errors import sentence
from tests.mirror.ec2_fake import Fake, Lost, Refusal
from tests.mirror.killed import killed_after

Run = Callable[..., tuple[int, Any, str]]
TARGET = f"eni-{9:017x}"
WEB = ("--name", "web", "--source", "tag:role=web", "--target", TARGET)
NLB = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/net/sensors/0123456789abcdef"
GWLB = f"vpce-{7:017x}"


@pytest.fixture
def web(ec2: Fake) -> Fake:
    """Two web servers, one database and a sensor."""
    for number in (1, 2):
        ec2.add_instance(number, tags={"role": "web", "Name": f"web{number}"})
    ec2.add_instance(3, tags={"role": "database"})
    ec2.add_instance(9)
    return ec2


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


def test_create_converges_and_delete_removes_all(web: Fake, mirror_json: Run) -> None:
    """Plan has changes, create makes them, a second create and plan do nothing, delete leaves nothing of ours."""
    stranger(web)
    before = {kind: dict(objects) for kind, objects in web.objects.items()}
    assert mirror_json("plan", *WEB)[0] == 4
    assert not web.writes()

    code, made, _ = mirror_json("create", *WEB, "--filter", "tcp/443 local", "--dns", "--vni", "77")
    assert (code, made["schema"], made["kind"]) == (0, "guestagent.mirror/1", "outcome")
    ours = [one for one in web.objects["session"].values() if one["TrafficMirrorSessionId"] != "tms-stranger"]
    assert {(one["NetworkInterfaceId"], one["SessionNumber"]) for one in ours} == {
        (f"eni-{1:017x}", 2),  # the stranger has number 1
        (f"eni-{2:017x}", 1),
    }
    assert {one["VirtualNetworkId"] for one in ours} == {77}
    assert len(web.objects["filter_rule"]) == 4
    assert sorted(one["NetworkServices"] for one in web.objects["filter"].values()) == [[], ["amazon-dns"]]

    writes = len(web.writes())
    assert mirror_json("create", *WEB, "--filter", "tcp/443 local", "--dns", "--vni", "77")[0] == 0
    assert mirror_json("plan", *WEB, "--filter", "tcp/443 local", "--dns", "--vni", "77")[0] == 0
    assert len(web.writes()) == writes

    assert mirror_json("delete", "--name", "web", "--yes")[0] == 0
    assert web.objects == before


def test_a_changed_spec_changes_in_place(web: Fake, mirror_json: Run) -> None:
    """Filter, length and sources follow the spec; what stays keeps its identifier; what goes is removed."""
    mirror_json("create", *WEB, "--filter", "tcp/443", "--packet-length", "128")
    sessions = set(web.objects["session"])

    code, _, _ = mirror_json(
        "create", "--name", "web", "--source", f"i-{1:017x}", "--target", TARGET, "--filter", "icmp"
    )

    assert code == 0
    (session,) = web.objects["session"].values()
    assert session["TrafficMirrorSessionId"] in sessions
    assert "PacketLength" not in session
    rules = [(one["Protocol"], one.get("SourcePortRange")) for one in web.objects["filter_rule"].values()]
    assert sorted(rules) == [(1, None), (1, None), (58, None), (58, None)]


def test_another_target_is_made_before_the_old_one_goes(web: Fake, mirror_json: Run) -> None:
    """The sessions move over; none is made again, and the old target is gone."""
    mirror_json("create", *WEB)
    sessions = set(web.objects["session"])
    web.listeners[NLB] = [("UDP", 4789)]

    code, _, _ = mirror_json("create", "--name", "web", "--source", "tag:role=web", "--target", NLB)

    assert code == 0
    assert set(web.objects["session"]) == sessions
    assert [one["Type"] for one in web.objects["target"].values()] == ["network-load-balancer"]


def test_what_goes_makes_room(web: Fake, mirror: Run) -> None:
    """Ten rules of a filter, ten sources of an interface: both may be full, and a changed spec finds its place."""
    for number in range(20, 31):
        web.add_instance(number)
    rules = [f"tcp/{number} local 10.{number}.0.0/16" for number in range(10)]
    sources = [f"i-{number:017x}" for number in range(20, 31)]
    words = ("create", "--name", "web", "--target", TARGET, "--source")
    assert mirror(*words, ",".join(sources[:10]), "--filter", ",".join(rules[:5]))[0] == 0
    assert (len(web.objects["filter_rule"]), len(web.objects["session"])) == (10, 10)

    code, _, said = mirror(*words, ",".join(sources[1:]), "--filter", ",".join(rules), "--direction", "ingress")

    assert code == 0, said
    assert {one["TrafficDirection"] for one in web.objects["filter_rule"].values()} == {"ingress"}
    assert f"eni-{30:017x}" in {one["NetworkInterfaceId"] for one in web.objects["session"].values()}


def test_one_source_that_never_works_keeps_nothing_alive(web: Fake, mirror: Run) -> None:
    """EC2 refuses one interface in each run: a source that left and the target that was given up go all the same."""
    assert mirror("create", *WEB)[0] == 0
    web.add_instance(4)
    web.unsupported = {f"eni-{4:017x}"}
    web.listeners[NLB] = [("UDP", 4789)]

    code, _, said = mirror("create", "--name", "web", "--source", f"i-{2:017x},i-{4:017x}", "--target", NLB)

    assert (code, "run the agent there" in said, "it is kept" in said) == (1, True, False)
    assert [one["NetworkInterfaceId"] for one in web.objects["session"].values()] == [f"eni-{2:017x}"]
    assert [one["Type"] for one in web.objects["target"].values()] == ["network-load-balancer"]


def test_an_endpoint_of_a_gateway_load_balancer_is_a_target(web: Fake, mirror_json: Run, mirror: Run) -> None:
    """It is made of its type, has its own MTU, counts no sources, and status tells when it is gone."""
    words = ("--name", "web", "--source", "tag:role=web", "--target", GWLB)
    assert "does not exist" in mirror("plan", *words)[2]
    web.endpoints[GWLB] = "Interface"
    code, _, said = mirror("plan", *words)
    assert (code, "type Interface" in said) == (2, True)
    web.endpoints[GWLB] = "GatewayLoadBalancer"
    for number in range(20, 40):
        web.add_instance(number, tags={"role": "web"})

    code, made, _ = mirror_json("create", *words)

    assert code == 0
    (target,) = web.objects["target"].values()
    assert (target["Type"], target["GatewayLoadBalancerEndpointId"]) == ("gateway-load-balancer-endpoint", GWLB)
    assert {one["TrafficMirrorTargetId"] for one in web.objects["session"].values()} == {
        target["TrafficMirrorTargetId"]
    }
    assert {one["mtu"] for one in made["machines"]} == {"up to 8446, longer packets are cut"}
    assert not any("largest size" in text for text in made["warnings"])
    assert mirror_json("plan", *words)[0] == 0
    assert mirror_json("status", "--name", "web")[0] == 0
    del web.endpoints[GWLB]
    assert "does not exist any more" in mirror_json("status", "--name", "web")[1]["problems"][0]


def test_a_load_balancer_is_looked_behind(web: Fake, mirror_json: Run, mirror: Run) -> None:
    """What it sends copies to is no source, by instance the first interface alone, by address that one; nobody there is
    a broken mirror, nobody well a note."""
    words = ("--name", "web", "--source", "tag:role=web", "--target", NLB)
    web.listeners[NLB] = [("UDP", 4789)]
    second = {**web.instances[f"i-{1:017x}"]["NetworkInterfaces"][0], "NetworkInterfaceId": f"eni-{101:017x}"}
    second |= {"Attachment": {"DeviceIndex": 1}, "PrivateIpAddresses": [{"PrivateIpAddress": "10.1.0.1"}]}
    web.instances[f"i-{1:017x}"]["NetworkInterfaces"].append(second)
    web.interfaces.add(second["NetworkInterfaceId"])
    for member, left in ((f"i-{1:017x}", 101), ("10.1.0.1", 1)):
        web.members[NLB] = [(member, "healthy")]
        _, plan, _ = mirror_json("plan", *words)
        ways = {one["machine"]: (one["way"], one["reason"]) for one in plan["machines"]}
        assert ways[f"i-{2:017x}"][0] == "native"
        assert ways[f"i-{1:017x}"][0] == "agent"
        assert "behind the target" in ways[f"i-{1:017x}"][1]
        alone = mirror_json("plan", "--name", "web", "--source", f"eni-{left:017x}", "--target", NLB)[1]
        assert [one["way"] for one in alone["machines"]] == ["native"]

    web.members[NLB] = [("10.9.9.9", "unhealthy")]
    code, made, _ = mirror_json("create", *words)
    assert (code, f"{NLB}: none of the 1 behind it is healthy" in made["warnings"]) == (0, True)
    code, state, _ = mirror_json("status", "--name", "web")
    assert (code, state["notes"]) == (0, [f"{NLB}: none of the 1 behind it is healthy"])
    web.members[NLB] = []
    code, state, _ = mirror_json("status", "--name", "web")
    assert (code, len(state["problems"])) == (1, 1)
    assert "has nobody behind its listener" in state["problems"][0]
    assert "has nobody behind" in mirror("plan", *words)[1]


def test_a_mirror_target_of_others_is_looked_through(web: Fake, mirror_json: Run, mirror: Run) -> None:
    """`tmt-ID`: one that is not there is told before anything is made; where it leads counts as if it were named; it is
    used and neither changed nor removed."""
    stranger(web)
    before = dict(web.objects["target"])
    named = "tmt-0123456789abcdef0"
    words = ("--name", "web", "--source", "tag:role=web", "--target")
    code, _, said = mirror("create", *words, named)
    assert (code, f"target: {named} does not exist" in said, web.writes()) == (2, True, [])
    web.objects["target"] = {named: {**web.objects["target"].pop("tmt-stranger"), "TrafficMirrorTargetId": named}}
    web.objects["session"]["tms-stranger"]["TrafficMirrorTargetId"] = named
    for number in range(20, 29):
        web.add_instance(number, tags={"role": "web"})

    code, plan, _ = mirror_json("plan", *words, named)

    assert code == 4
    assert any(text.startswith("11 sources for eni-") for text in plan["warnings"])
    assert mirror("plan", "--name", "web", "--source", TARGET, "--target", named)[1].count("is itself a mirror target")
    few = ("--name", "web", "--source", f"i-{1:017x},i-{2:017x}", "--target", named)
    assert mirror_json("create", *few)[0] == 0
    assert mirror_json("delete", "--name", "web", "--yes")[0] == 0
    assert list(web.objects["target"]) == [named]
    assert before["tmt-stranger"]["Tags"] == web.objects["target"][named]["Tags"]


def test_status_names_sources_that_stand_still_and_are_billed(web: Fake, mirror_json: Run, mirror: Run) -> None:
    """A stopped instance does not break the mirror, and its session costs: a note with the instance and the price."""
    mirror_json("create", *WEB)
    web.instances[f"i-{2:017x}"]["State"]["Name"] = "stopped"
    web.instances[f"i-{3:017x}"]["State"]["Name"] = "stopped"
    web.calls.clear()

    code, state, _ = mirror_json("status", "--name", "web")

    assert (code, state["works"], len(state["notes"])) == (0, True, 1)
    assert f"i-{2:017x}: stopped, and still billed: 1 x 0.015 USD/h" in state["notes"][0]
    assert [action for action, _ in web.calls].count("DescribeInstances") == 1
    assert "  note: i-" in mirror("status", "--name", "web")[1]


WORDS = (*WEB, "--filter", "tcp/443 local", "--dns")
STEPS = 9
"""Writes of WORDS: the filter, its DNS, four rules, the target, two sessions."""


@pytest.mark.parametrize("writes", range(1, STEPS + 1))
def test_a_crash_after_each_write_is_repaired(web: Fake, mirror_json: Run, writes: int) -> None:
    """SIGKILL after any write of create: the next run adopts what is there, and nothing is there twice."""
    stranger(web)
    killed_after(web, writes, ("aws", "create", *WORDS))

    assert mirror_json("create", *WORDS)[0] == 0

    assert mirror_json("plan", *WORDS)[0] == 0
    assert {kind: len(objects) for kind, objects in web.objects.items()} == {
        "filter": 2, "filter_rule": 4, "target": 2, "session": 3,
    }  # fmt: skip


def test_a_crash_is_repaired_though_lists_lag(web: Fake, mirror_json: Run) -> None:
    """Killed after the first create, and EC2 does not list the filter yet: the same token brings back the same one."""
    killed_after(web, 1, ("aws", "create", *WORDS))
    web.hidden_calls = 1

    assert mirror_json("create", *WORDS)[0] == 0
    assert len(web.objects["filter"]) == 1


@pytest.mark.parametrize("writes", [1, 3, 7])
def test_a_crash_during_delete_is_repaired(web: Fake, mirror_json: Run, writes: int) -> None:
    """SIGKILL midway through delete: the next delete removes the rest."""
    mirror_json("create", *WORDS)
    killed_after(web, writes, ("aws", "delete", "--name", "web", "--yes"))

    assert mirror_json("delete", "--name", "web", "--yes")[0] == 0
    assert not any(web.objects.values())


def test_the_write_count_is_right(web: Fake, mirror_json: Run) -> None:
    """The crash test covers every write that create does."""
    mirror_json("create", *WORDS)

    assert len(web.writes()) == STEPS


def test_a_lost_answer_makes_nothing_twice(web: Fake, mirror_json: Run) -> None:
    """The connection breaks after a create was done: botocore repeats it with our token."""
    web.faults += [(action, Lost()) for action in ("CreateTrafficMirrorFilter", "CreateTrafficMirrorSession")]

    assert mirror_json("create", *WEB)[0] == 0
    assert (len(web.objects["filter"]), len(web.objects["session"])) == (1, 2)


def test_throttling_and_late_news_are_waited_for(web: Fake, mirror_json: Run) -> None:
    """Two throttled calls, a filter not known yet and lists that lag behind: create succeeds all the same."""
    web.faults += [("CreateTrafficMirrorTarget", Refusal("RequestLimitExceeded", status=503))] * 2
    web.faults.append(("CreateTrafficMirrorFilterRule", Refusal("InvalidTrafficMirrorFilterId.NotFound")))

    def lag() -> None:
        web.hidden_calls = 1

    web.after_write = lag
    assert mirror_json("create", *WEB)[0] == 0
    assert len(web.objects["filter"]) == 1


def test_a_mirror_may_be_made_again_and_again(web: Fake, mirror_json: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """EC2 may answer a known token with what was deleted since; then a new one is used, however often that was."""
    monkeypatch.setattr("guestagent.mirror.aws.provider.PATIENCE_SECONDS", 0.3)
    for _ in range(4):
        assert mirror_json("create", *WEB)[0] == 0
        assert mirror_json("delete", "--name", "web", "--yes")[0] == 0

    assert mirror_json("create", *WEB)[0] == 0
    assert mirror_json("plan", *WEB)[0] == 0


def test_a_stranger_is_taken_over_only_by_name(web: Fake, mirror_json: Run) -> None:
    """--adopt marks the named session, keeps its number, and changes it; without it the stranger stays."""
    stranger(web)

    assert mirror_json("create", *WEB, "--adopt", "tms-stranger")[0] == 0

    adopted = web.objects["session"]["tms-stranger"]
    assert adopted["SessionNumber"] == 1
    assert {one["Key"] for one in adopted["Tags"]} == {"guestagent-managed", "guestagent-mirror"}
    assert len(web.objects["session"]) == 2
    assert mirror_json("plan", *WEB)[0] == 0


def test_dry_run_proves_permissions_and_writes_nothing(web: Fake, mirror_json: Run, mirror: Run) -> None:
    """Every write is asked with DryRun; a permission that lacks is a sentence with its name."""
    code, plan, _ = mirror_json("plan", *WORDS, "--dry-run")
    assert (code, plan["verified"]) == (4, "permissions")
    assert {step["proof"] for step in plan["steps"]} == {"proved"}
    assert all(body["DryRun"] for action, body in web.calls if not action.startswith("Describe"))
    assert not any(web.objects.values())

    web.denied = {"CreateTags"}
    code, _, said = mirror("plan", *WORDS, "--dry-run")
    assert code == 1
    assert "lacks ec2:CreateTags on " in said


def test_a_dry_run_names_all_that_lacks(web: Fake, mirror_json: Run) -> None:
    """The plan says which steps are refused, the error each reason once; the likes of a refused one are not asked for.

    What exists is asked about by its own identifier.
    """
    mirror_json("create", *WEB)
    web.denied = {"ModifyTrafficMirrorSession", "CreateTrafficMirrorFilterRule"}
    web.calls.clear()

    code, plan, said = mirror_json("plan", *WEB, "--packet-length", "99", "--filter", "tcp,udp", "--dry-run")

    assert (code, plan["verified"]) == (1, "reads-only")
    refused = [step for step in plan["steps"] if step.get("proof", "").startswith("refused: ")]
    assert {(step["op"], step["kind"]) for step in refused} == {("update", "session"), ("create", "rule")}
    assert len(refused) == 6
    for action in web.denied:
        assert said.count(f"lacks ec2:{action} on ") == 1
        assert web.writes().count(action) == 1
    (rule,) = [body for action, body in web.calls if action == "CreateTrafficMirrorFilterRule"]
    assert rule["TrafficMirrorFilterId"] in web.objects["filter"]


def test_one_refused_source_does_not_stop_the_others(web: Fake, mirror: Run) -> None:
    """EC2 has the last word on a type: that interface fails with a sentence, the others are mirrored."""
    web.unsupported = {f"eni-{1:017x}"}

    code, _, said = mirror("create", *WEB)

    assert code == 1
    assert "run the agent there" in said
    assert [one["NetworkInterfaceId"] for one in web.objects["session"].values()] == [f"eni-{2:017x}"]


@pytest.mark.parametrize(
    "fault, words",
    [
        (Refusal("TrafficMirrorFilterLimitExceeded"), "10,000"),
        (
            Refusal("UnauthorizedOperation", status=403),
            "lacks ec2:CreateTrafficMirrorFilter, or ec2:CreateTags for its tags;",
        ),
        (Refusal("SomethingNew", "as never seen"), "SomethingNew: as never seen"),
    ],
)
def test_an_error_of_the_api_is_a_sentence(web: Fake, mirror: Run, fault: Refusal, words: str) -> None:
    """The permission or the limit is named, what depends on it is not tried, and the exit code is 1."""
    web.faults.append(("CreateTrafficMirrorFilter", fault))

    code, _, said = mirror("create", *WEB)

    assert code == 1
    assert words in said
    assert "Traceback" not in said
    assert not web.objects["session"]


@pytest.mark.parametrize(
    "code",
    """
    UnauthorizedOperation RequestLimitExceeded NetworkInterfaceNotSupported InvalidNetworkInterfaceID.NotFound
    TrafficMirrorFilterInUse TrafficMirrorTargetInUseException TrafficMirrorFilterRuleAlreadyExists
    TrafficMirrorFilterLimitExceeded TrafficMirrorFilterRuleLimitExceeded TrafficMirrorSessionLimitExceeded
    TrafficMirrorTargetLimitExceeded TrafficMirrorSessionsPerInterfaceLimitExceeded
    TrafficMirrorSessionsPerTargetLimitExceeded TrafficMirrorSourcesPerTargetLimitExceeded
    InvalidTrafficMirrorFilterId.NotFound InvalidTrafficMirrorFilterRuleId.NotFound
    InvalidTrafficMirrorSessionId.NotFound InvalidTrafficMirrorTargetId.NotFound
    """.split(),
)
def test_every_documented_error_has_its_sentence(code: str) -> None:
    """Codes of EC2's error table for mirroring: none is passed on bare."""
    text = sentence("ec2", "CreateTrafficMirrorSession", code, "m")

    assert "AWS says" not in text
    assert text.endswith(f"({code})")


@pytest.mark.parametrize(
    "reason, words",
    [
        (
            "because no identity-based policy allows the ec2:CreateTags action. Encoded authorization failure: x",
            "the role may not: it lacks ec2:CreateTags on arn:aws:ec2:a:1:traffic-mirror-filter/*; `guestagent mirror",
        ),
        (
            "with an explicit deny in a service control policy. Encoded authorization failure message: x",
            "an explicit deny in the service control policy forbids ec2:CreateTags on arn:aws:",
        ),
        (
            "because no permissions boundary allows the ec2:CreateTags action",
            "the permissions boundary does not allow ec2:CreateTags on arn:aws:",
        ),
    ],
)
def test_a_refusal_names_what_was_refused(reason: str, words: str) -> None:
    """EC2 tells which permission of a call lacks, on what, and who denies it: that is said, not the call's own name."""
    message = (
        "You are not authorized to perform this operation. User: arn:aws:sts::1:assumed-role/r/s is not authorized to "
        f"perform: ec2:CreateTags on resource: arn:aws:ec2:a:1:traffic-mirror-filter/* {reason}"
    )

    assert words in sentence("ec2", "CreateTrafficMirrorFilter", "UnauthorizedOperation", message)


def test_delete_asks_for_yes_off_a_terminal(web: Fake, mirror: Run) -> None:
    """It lists what it would remove, and exits 2 without --yes."""
    mirror("create", *WEB)

    code, listed, said = mirror("delete", "--name", "web")

    assert code == 2
    assert "--yes" in said
    identifiers = [identifier for objects in web.objects.values() for identifier in objects]
    assert all(one in listed for one in identifiers)
    code, listed, said = mirror("delete", "--name", "web", "--json")
    assert (code, listed) == (2, "")
    assert all(one in said for one in identifiers)
    assert len(web.objects["session"]) == 2


def test_a_selection_of_nothing_removes_nothing(web: Fake, mirror: Run) -> None:
    """A tag that nothing bears any more is a mistake, not a wish to remove every session."""
    mirror("create", *WEB)

    assert mirror("create", "--name", "web", "--source", "tag:role=wbe", "--target", TARGET)[0] == 2
    assert mirror("create", "--name", "web", "--source", f"i-{77:017x}", "--target", TARGET)[0] == 2
    assert len(web.objects["session"]) == 2


def test_one_source_of_several_that_selects_nothing_is_told(web: Fake, mirror_json: Run) -> None:
    """A tag or a subnet may be empty for a while, or be a mistake: a note for each, and none for the others."""
    sources = "tag:role=web,tag:role=wbe,subnet-00000001,subnet-00000002"

    code, plan, _ = mirror_json("plan", "--source", sources)

    assert code == 0
    idle = [text for text in plan["warnings"] if "selects no instance" in text]
    assert idle == ["subnet-00000002 selects no instance now", "tag:role=wbe selects no instance now"]


def test_status_tells_what_is_broken(web: Fake, mirror_json: Run) -> None:
    """In order: 0. A load balancer without its listener, or a target that vanished: 1 and the reason."""
    web.listeners[NLB] = [("TCP", 4789), ("UDP", 53)]
    code, plan, _ = mirror_json("plan", "--name", "web", "--source", "tag:role=web", "--target", NLB)
    assert any("no UDP listener" in text for text in plan["warnings"])
    mirror_json("create", "--name", "web", "--source", "tag:role=web", "--target", NLB)

    code, state, _ = mirror_json("status", "--name", "web")
    assert (code, state["works"], state["sessions"]) == (1, False, 2)
    assert "no UDP listener" in state["problems"][0]
    web.listeners[NLB].append(("TCP_UDP", 4789))
    assert mirror_json("status", "--name", "web")[0] == 0
    del web.listeners[NLB]
    assert "does not exist any more" in mirror_json("status", "--name", "web")[1]["problems"][0]
    assert [one["name"] for one in mirror_json("list")[1]["mirrors"]] == ["web"]


def test_a_spec_may_be_a_file(web: Fake, mirror_json: Run, mirror: Run, tmp_path: Path) -> None:
    """mirror.toml has the flags' names as keys; a flag wins; an unknown key is an error with its name."""
    file = tmp_path / "mirror.toml"
    file.write_text(f'name = "web"\nsource = ["tag:role=web"]\ntarget = "{TARGET}"\nfilter = ["tcp/443", "not udp"]\n')
    assert mirror_json("create", "-f", str(file), "--direction", "ingress")[0] == 0
    assert {one["TrafficDirection"] for one in web.objects["filter_rule"].values()} == {"ingress"}

    file.write_text("warp = 9\n")
    code, _, said = mirror("plan", "-f", str(file))
    assert code == 2
    assert "warp" in said


@pytest.mark.parametrize(
    "words",
    [
        ("plan",),
        ("create", "--name", "web", "--source", "tag:a=b"),
        ("create", *WEB, "--filter", "tcp/80,tcp/443"),
        ("create", *WEB, "--filter", "sctp/80"),
        ("create", *WEB[:-1], "eni-0123456789"),
        ("plan", "--source", "self"),
        ("status",),
        ("delete", "--name", "Web"),
        ("plan", *WEB, "--user-data", "ud.yaml"),
    ],
)
def test_wrong_usage_is_exit_2(web: Fake, mirror: Run, words: tuple[str, ...]) -> None:
    """Nothing selected, no target, too many rules, no such target, `self` outside of EC2: one sentence, no write."""
    code, _, said = mirror(*words)

    assert code == 2, said
    assert said.startswith("guestagent: ")
    assert not web.writes()


@pytest.mark.parametrize(
    "changes, code, sentence",
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, 3, "no AWS credentials: run `aws configure`"),
        ({"AWS_SECRET_ACCESS_KEY": None}, 2, "missing: AWS_SECRET_ACCESS_KEY\n"),
        ({"AWS_DEFAULT_REGION": None}, 2, "no region: give --region"),
        ({"AWS_DEFAULT_REGION": "the moon"}, 2, "'the moon' doesn't match"),
        ({"AWS_PROFILE": "nobody"}, 2, "profile (nobody) could not be found\n"),
        ({"AWS_ENDPOINT_URL": "nowhere"}, 2, "Invalid endpoint: nowhere"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 1, "AWS was not reached: Could not connect"),
        ({"AWS_ENDPOINT_URL": "LOGIN PAGE"}, 1, "not AWS: is a proxy in between?"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_CONFIG_FILE": "SSO"}, 3, "credentials do not work: Error loading SSO Token"),
    ],
)
def test_a_wrong_environment_is_a_sentence(
    web: Fake,
    mirror: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    login_page: str,
    changes: dict[str, str | None],
    code: int,
    sentence: str,
) -> None:
    """Credentials, region, profile, endpoint, network: one line on what is wrong, the code for whose fault it is."""
    sso = tmp_path / "config"
    sso.write_text("[default]\nsso_start_url=https://a.example\nsso_region=a-b-1\nsso_account_id=1\nsso_role_name=r\n")
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, {"LOGIN PAGE": login_page, "SSO": str(sso)}.get(value, value))
    monkeypatch.setattr("guestagent.mirror.aws.provider.ATTEMPTS", 1)

    found, _, said = mirror("list")

    assert found == code, said
    assert sentence in said
    assert said.startswith("guestagent: ")
    assert said.count("\n") == 1


def test_without_the_extra_it_is_a_sentence(web: Fake, mirror: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No boto3: exit 3, and the command that installs it."""
    monkeypatch.setitem(sys.modules, "boto3", None)

    code, _, said = mirror("list")

    assert code == 3
    assert "pip install 'guestagent[aws]'" in said


MANUAL = Path(__file__).parents[2] / "docs" / "man" / "guestagent-mirror.1.md"


def test_the_manual_has_every_flag() -> None:
    """Each flag of the verb stands in its man page."""
    manual = MANUAL.read_text()
    flags = {name for option in VERBS["mirror"].options for name in option.names if name.startswith("--")}

    assert len(flags) > 15
    assert not {flag for flag in flags if f"**{flag}**" not in manual}


def test_what_manual_and_help_show_works(
    ec2: Fake, mirror: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line for AWS, in its order, with the manual's mirror.toml, in an account with what they name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("guestagent.mirror.aws.provider.PATIENCE_SECONDS", 0.2)
    manual = MANUAL.read_text()
    Path("mirror.toml").write_text(manual.partition("```toml\n")[2].partition("```")[0])
    ec2.add_instance(1, tags={"role": "web"}, vpc="vpc-0a1b2c3d")
    ec2.interfaces.add("eni-0a1b2c3d")
    head = "guestagent mirror aws "
    ran = []
    for text in (manual, VERBS["mirror"].epilog):
        for line in [one.strip() for one in text.splitlines() if one.strip().startswith(head)]:
            words = shlex.split(line.removeprefix(head))
            code, _, said = mirror(*words, *(["--yes"] if words[0] == "delete" else []))
            assert code in ((0, 4) if words[0] == "plan" else (0,)), (line, said)
            ran.append(words[0])
    assert ran == ["plan", "plan", "create", "status", "delete", "policy", "plan", "create", "plan", "delete"]


@pytest.mark.aws_live
def test_live_permissions(capsys: pytest.CaptureFixture[str]) -> None:
    """With real credentials and GUESTAGENT_LIVE_SPEC naming a mirror.toml: DryRun of every write; nothing is made."""
    spec = os.environ.get("GUESTAGENT_LIVE_SPEC")
    if not spec:
        pytest.skip("GUESTAGENT_LIVE_SPEC names no mirror.toml")
    assert main(["mirror", "aws", "plan", "-f", spec, "--dry-run", "--json"]) in (0, 4)
    assert json.loads(capsys.readouterr().out)["schema"] == "guestagent.mirror/1"
