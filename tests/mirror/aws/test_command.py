"""`guestagent mirror aws` as it is typed: delete and status, spec files, wrong usage, the manual."""

import json
import os
import shlex
from pathlib import Path

import pytest

from guestagent.cli import VERBS, main
from tests.mirror.aws.fake import Fake
from tests.mirror.aws.words import NLB, TARGET, WEB, Run


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


MANUAL = Path(__file__).parents[3] / "docs" / "man" / "guestagent-mirror.1.md"


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
