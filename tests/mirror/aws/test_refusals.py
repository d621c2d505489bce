"""What AWS refuses, or does not answer, is a sentence of `mirror aws`, and nothing more is changed than was proved."""

import sys
from pathlib import Path

import pytest

from guestagent.mirror.aws.errors import sentence
from tests.mirror.aws.fake import Fake
from tests.mirror.aws.wire import Refusal
from tests.mirror.aws.words import WEB, WORDS, Run, stranger


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
