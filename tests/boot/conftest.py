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

from guestagent import pki
from guestagent.lab.hosts import Host, Lab
from tests.boot import archive
from tests.boot.image import cached
from tests.boot.vm import HOST_ADDRESS, Vm, booted, lay_cable
from tests.lab.rig import Process, Rig, wait_for

AGENT = "i-boot-1"
"""The seed's instance id, by which the agent names itself."""
PATIENCE_SECONDS = 180.0
"""An emulated processor takes several times as long as a real one, and once more so where others work on it, too."""
TLS = {"ca": "ca.crt", "cert": "collector-1.crt", "key": "collector-1.key"}
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
        found = json.loads(self.vm.run("guestagent status --json", check=False).out or "{}")
        return next(iter(found.get("running", {}).values()), {"link": {"connected": False}})

    def wait_until_connected(self) -> None:
        """The agent has an answer from the collector."""
        wait_for(lambda: self.agent()["link"]["connected"], "the agent to be connected", PATIENCE_SECONDS)

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
def boot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boot]:
    """Everything is up when this returns, and gone after the last test; the figures are printed then."""
    directory = tmp_path_factory.mktemp("boot")
    repository, keys = directory / "repository", directory / "pki"
    archive.publish("1", repository)
    pki.make("init", "", (), str(keys))
    pki.make("collector", "collector-1", (HOST_ADDRESS,), str(keys))
    image = cached()
    with Lab() as lab:
        host = lab.host("host")
        lay_cable(host)
        rig = Rig(directory)
        host.start(archive.serve, repository)
        rig.start(host, "pki", "serve", "collector-1", "--dir", str(keys), "--listen", HOST_ADDRESS)
        tls = (f"--tls-{kind}={keys}/{name}" for kind, name in TLS.items())
        collector = rig.collect(host, *tls, scheme="tls")
        with booted(host, image, directory, rendered(host, repository, keys)) as vm:
            vm.wait_until_up()
            scene = Boot(vm, host, rig, collector, repository)
            try:
                yield scene
            finally:
                with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
                    sys.stderr.write(f"\nfigures of the boot test: {json.dumps(scene.figures, indent=2)}\n")
                with contextlib.suppress(Exception):
                    said = vm.run("cat /var/log/cloud-init-output.log; journalctl -b -o short-precise").out
                    (directory / "journal").write_text(said)
                archive.forget_key(repository)


def rendered(host: Host, repository: Path, keys: Path) -> str:
    """The user-data as an operator makes it: a token for one VM, and what it may know of the authority."""
    command = (sys.executable, "-m", "guestagent")
    token = keys.with_name("token")
    token.write_text(host.run([*command, "pki", "token", AGENT, "--dir", str(keys)]).stdout)
    return host.run(
        [
            *(*command, "cloud-init", "render", "--family", "apt"),
            *("--repository", archive.URL),
            *("--repository-key", str(repository / "guestagent.asc")),
            *("--to", f"tls://{HOST_ADDRESS}", "--ca", str(keys / "ca.crt"), "--full"),
            *("--tag", "role=web", "--enrol", HOST_ADDRESS, "--token-file", str(token)),
        ]
    ).stdout
