"""`guestagent mirror gcp` as it is typed: dry run, status, the choice for each machine."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

from guestagent.cli import main
from tests.mirror.gcp.choice import WEB, Run
from tests.mirror.gcp.fake import Fake
from tests.mirror.gcp.words import BASE, COLLECTOR


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
