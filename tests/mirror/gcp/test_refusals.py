"""What Google refuses, or does not answer, is a sentence of `mirror gcp`."""

import json
import sys
from pathlib import Path

import pytest

from tests.mirror.gcp.choice import WEB, Run, named
from tests.mirror.gcp.fake import Fake
from tests.mirror.gcp.words import BASE, Refusal


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
