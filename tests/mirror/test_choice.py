"""Native or agent: the choice for each machine, its reason, and how few calls it takes."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from guestagent.mirror.aws.choice import survey
from guestagent.mirror.aws.facts import eligible
from guestagent.mirror.aws.model import Inventory, Machine, tags
from guestagent.mirror.show import MOST_LINES, choices_text
from guestagent.mirror.spec import Spec
from guestagent.mirror.survey import Choice
from tests.mirror.aws.fake import Fake
from tests.mirror.aws.words import TARGET

Run = Callable[..., tuple[int, Any, str]]


@pytest.mark.parametrize(
    "kind, verdict",
    [
        ("m5.large", "yes"),
        ("t3.micro", "yes"),
        ("t2.micro", "no"),
        ("c7gn.large", "no"),
        ("m8g.large", "unknown"),
        ("m8g.metal-24xl", "unknown"),
        ("p6-b200.48xlarge", "unknown"),
        ("trn2.48xlarge", "unknown"),
        ("g7e.2xlarge", "unknown"),
        ("mac-m4.metal", "unknown"),
        ("i7ie.large", "no"),
        ("hpc7g.4xlarge", "no"),
        ("p2.xlarge", "no"),
        ("i3.metal", "yes"),
        ("m7i.metal-24xl", "no"),
        ("u-6tb1.metal", "no"),
        ("u7i-12tb.224xlarge", "yes"),
        ("mac2-m2.metal", "yes"),
        ("quantum.large", "unknown"),
    ],
)
def test_the_table_of_families(kind: str, verdict: str) -> None:
    """On the list yes; newer than the newest of its letters there unknown, else no; bare metal has its own list."""
    assert eligible(kind)[0] == verdict


def test_each_machine_has_its_way_and_reason(ec2: Fake, mirror_json: Run, tmp_path: Path) -> None:
    """Type, full interfaces, targets, other interface types and stopped machines are told apart; nothing is planned."""
    ec2.add_instance(1, vpc="vpc-0000000a")
    ec2.add_instance(2, "t2.small", vpc="vpc-0000000a")
    ec2.add_instance(3, "m9z.large", vpc="vpc-0000000a", state="stopped")
    ec2.add_instance(4, vpc="vpc-0000000a", type="efa-only")
    full = ec2.add_instance(5, vpc="vpc-0000000a")
    ec2.add_instance(6, vpc="vpc-0000000b")
    ec2.add_instance(9, vpc="vpc-0000000a")
    ec2.objects["target"]["tmt-1"] = {"TrafficMirrorTargetId": "tmt-1", "NetworkInterfaceId": TARGET}
    for number in (1, 2, 3):
        ec2.objects["session"][f"tms-{number}"] = {
            "TrafficMirrorSessionId": f"tms-{number}",
            "TrafficMirrorFilterId": "tmf-1",
            "TrafficMirrorTargetId": "tmt-1",
            "NetworkInterfaceId": full,
            "SessionNumber": number,
        }
    file, key = tmp_path / "user-data", tmp_path / "key"
    key.write_text("-----BEGIN PGP PUBLIC KEY BLOCK-----\n")
    rendering = ("--family", "dnf", "--repository", "https://packages.example", "--repository-key", str(key))

    code, plan, _ = mirror_json(
        *("plan", "--vpc", "vpc-0000000a", "--user-data", str(file), "--collector", "tcp://10.0.0.9", *rendering)
    )

    assert code == 0
    assert (plan["name"], plan["steps"]) == ("", [])
    ways = {int(one["machine"][2:], 16): (one["way"], one["eligible"], one["reason"]) for one in plan["machines"]}
    assert {number: found[:2] for number, found in ways.items()} == {
        1: ("native", "yes"),
        2: ("agent", "no"),
        3: ("native", "unknown"),
        4: ("agent", "yes"),
        5: ("agent", "yes"),
        9: ("agent", "yes"),
    }
    for number, word in ((2, "t2.small"), (3, "last word"), (4, "efa-only"), (5, "3 other sessions"), (9, "target")):
        assert word in ways[number][2]
    assert any("not running" in text for text in plan["warnings"])
    config = yaml.safe_load(file.read_text())
    assert file.read_text().startswith("#cloud-config\n")
    assert config["write_files"][-1]["content"] == 'to = ["tcp://10.0.0.9"]\n'
    assert ["systemctl", "enable", "--now", "guestagent"] in config["runcmd"]


def test_the_table_says_all_of_each_machine(ec2: Fake, mirror: Run) -> None:
    """In a file or pipe each machine has its line: reason, cost, limits and MTU; a terminal has the first forty."""
    for number in range(1, 51):
        ec2.add_instance(number, "t2.small" if number == 50 else "m5.large", tags={"role": "web"})

    _, out, _ = mirror("plan", "--tag", "role=web")

    lines = [line for line in out.splitlines() if line.startswith(("  native", "  agent"))]
    assert len(lines) == 50
    native, agent = lines[0], lines[-1]
    for words in ("can be mirrored", "0.015 USD/h", "share the VM's bandwidth", "MTU up to 8947"):
        assert words in native
    for words in ("cannot be mirrored", "5 % of the VM's CPU", "10 % of the link", "MTU any"):
        assert words in agent
    choice = Choice("i-1", "", "m5.large", "native", "yes", "why")
    capped = choices_text([choice] * 50, MOST_LINES)
    assert len(capped) == MOST_LINES + 2
    assert "and 10 more" in capped[-2]


def test_five_thousand_interfaces_take_one_pass(ec2: Fake, mirror_json: Run) -> None:
    """Selected by tag, in pages of 1,000: five pages of instances and one call each for what mirrors there are."""
    for number in range(1, 5001):
        ec2.add_instance(number, tags={"role": "web"})
    ec2.add_instance(6000, tags={"role": "db"})

    code, plan, _ = mirror_json("plan", "--tag", "role=web", "--direction", "both")

    assert code == 0
    assert len(plan["machines"]) == 5000
    assert Counter(action for action, _ in ec2.calls) == {
        "DescribeInstances": 5,
        "DescribeTrafficMirrorFilters": 1,
        "DescribeTrafficMirrorTargets": 1,
        "DescribeTrafficMirrorSessions": 1,
    }


class Counted(dict[str, Any]):
    """A session that counts how often it is looked at."""

    looks = 0

    def __getitem__(self, key: str) -> Any:
        Counted.looks += 1
        return super().__getitem__(key)


def test_as_many_sessions_are_looked_at_a_few_times_each() -> None:
    """With a session on each of the machines the work grows with their number, not with its square."""
    count = 500
    machines = tuple(Machine(f"i-{one}", "", "m5.large", "running", (f"eni-{one}",)) for one in range(count))
    fields = {"TrafficMirrorTargetId": "tmt-1", "TrafficMirrorFilterId": "tmf-1", "SessionNumber": 1}
    sessions = tuple(
        Counted(TrafficMirrorSessionId=f"tms-{one}", NetworkInterfaceId=f"eni-{one}", Tags=tags("web"), **fields)
        for one in range(count)
    )
    Counted.looks = 0

    found = survey(Spec(name="web", target=TARGET), Inventory(machines, sessions=sessions, place="arn:x"))

    assert sum(one.kind == "session" for one in found.wanted) == count
    assert Counted.looks < 20 * count


def test_an_interface_target_takes_so_many(ec2: Fake, mirror_json: Run) -> None:
    """Beyond ten sources a warning, beyond a hundred the rest is the agent's; those that it has stay."""
    for number in range(100, 205):
        ec2.add_instance(number, tags={"role": "web"})
    ec2.add_instance(9)

    _, plan, _ = mirror_json("plan", "--name", "web", "--tag", "role=web", "--target", TARGET)

    ways = Counter(one["way"] for one in plan["machines"])
    assert ways == {"native": 100, "agent": 5}
    assert any("largest size" in text for text in plan["warnings"])
    assert json.dumps(plan)
