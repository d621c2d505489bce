"""The examples for Terraform and Ansible are read by the tools' own parsers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLOUDINIT = Path(__file__).parents[2] / "cloudinit"


def test_terraform_parses() -> None:
    """The HCL is well-formed and hands the rendered file over as user-data."""
    hcl2 = pytest.importorskip("hcl2")
    with (CLOUDINIT / "terraform" / "main.tf").open() as file:
        content = hcl2.load(file)
    resources = {kind.strip('"') for one in content["resource"] for kind in one}

    assert {"aws_launch_template", "aws_autoscaling_group"} <= resources
    assert "user-data" in str(content)


def test_ansible_takes_the_playbook(tmp_path: Path) -> None:
    """`ansible-playbook --syntax-check` finds every module and option it names, and refuses one misspelt."""
    pytest.importorskip("ansible")
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "--syntax-check", "-i", "localhost,"]
    environment = {**os.environ, "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_LOCALHOST_WARNING": "false"}
    text = (CLOUDINIT / "ansible" / "guestagent.yml").read_text()
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(text.replace("ansible.builtin.apt:", "ansible.builtin.aptt:"))

    def check(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, path], env=environment, capture_output=True, text=True, check=False)

    done = check(CLOUDINIT / "ansible" / "guestagent.yml")
    assert done.returncode == 0, done.stderr
    assert check(wrong).returncode != 0
