"""One VM for the whole test: booted, installed from the repository by cloud-init, tapped by a collector on the host."""

import base64
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from guestagent.lab.hosts import Host, Lab
from tests.boot import archive
from tests.boot.image import cached
from tests.boot.vm import HOST_ADDRESS, Vm, booted, lay_cable
from tests.lab.rig import Process, Rig

AGENT = "i-boot-1"
"""The seed's instance id, by which the agent names itself."""
CONFIG = "/etc/guestagent/guestagent.toml"


@dataclass
class Boot:
    """The scene: the VM, the host that it hangs on, the collector there."""

    vm: Vm
    host: Host
    rig: Rig
    collector: Process
    repository: Path
    figures: dict[str, Any] = field(default_factory=dict)

    def collected(self) -> dict[str, Any]:
        """The collector's books of this VM."""
        return self.collector.status()["agents"].get(AGENT, {})

    def agent(self) -> dict[str, Any]:
        """The agent's own snapshot, by the command that an operator types."""
        (snapshot,) = json.loads(self.vm.run("guestagent status --json").out)["running"].values()
        return snapshot

    def interface(self) -> dict[str, Any]:
        """The ledger of its one interface."""
        (ledger,) = self.agent()["interfaces"].values()
        return ledger

    def configure(self, text: str) -> None:
        """Write the config in place; owner and mode stay."""
        encoded = base64.b64encode(text.encode()).decode()
        self.vm.run(f"echo {encoded} | base64 -d > {CONFIG}")

    def journal(self) -> str:
        """What the unit said in this boot."""
        return self.vm.run("journalctl -b -u guestagent -o cat").out

    def run_there(self, script: Path) -> dict[str, Any]:
        """Run a Python script on the installed package; what it prints as JSON."""
        encoded = base64.b64encode(script.read_bytes()).decode()
        out = self.vm.run(f"echo {encoded} | base64 -d | PYTHONPATH=/usr/lib/guestagent python3 -P -").out
        return json.loads(out)


@pytest.fixture(scope="session")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boot]:
    """Everything is up when this returns, and gone after the last test; the figures are printed then."""
    directory = tmp_path_factory.mktemp("boot")
    repository = directory / "repository"
    archive.publish("1", repository)
    image = cached()
    with Lab() as lab:
        host = lab.host("host")
        rig = Rig(directory)
        user_data = rendered(host, repository)
        lay_cable(host)
        host.start(archive.serve, repository)
        collector = rig.collect(host)
        with booted(host, image, directory, user_data) as vm:
            vm.wait_until_up()
            scene = Boot(vm, host, rig, collector, repository)
            try:
                yield scene
            finally:
                sys.stderr.write(f"\nfigures of the boot test: {json.dumps(scene.figures, indent=2)}\n")
                with contextlib.suppress(Exception):
                    (directory / "journal").write_text(vm.run("journalctl -b -o short-precise").out)


def rendered(host: Host, repository: Path) -> str:
    """The user-data as an operator makes it."""
    return host.run(
        [
            *(sys.executable, "-m", "guestagent", "cloud-init", "render", "--family", "apt"),
            *("--repository", f"http://{HOST_ADDRESS}:{archive.PORT}"),
            *("--repository-key", str(repository / "guestagent.asc")),
            *("--to", f"tcp://{HOST_ADDRESS}", "--full"),
        ]
    ).stdout
