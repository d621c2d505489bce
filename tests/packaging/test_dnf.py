"""The life of the rpm as far as Debian's own rpm and dnf go: resolved, verified, installed, upgraded, removed.

RHEL and Amazon Linux themselves are not to be had here: stand-ins give the names and versions of their Pythons, and the
scripts run in the Debian root.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestagent import __version__
from tests.packaging.conftest import NEXT, Repository
from tests.packaging.machine import Machine
from tests.packaging.test_apt import CONFIG, ENABLED, altered

PYTHONS = {"python3": ("3.9.18", "3.9"), "python3.12": ("3.12.1", "3.12")}
"""As on RHEL 9: the default is too old for us, another stands beside it."""
Dnf = Callable[..., "subprocess.CompletedProcess[str]"]


def stand_in(name: str, version: str, provides: list[str], into: Path) -> None:
    """An empty rpm that is called so."""
    described = {"name": name, "arch": "amd64", "version": version, "maintainer": "test", "provides": provides}
    config = into / f"{name}.yaml"
    config.write_text(json.dumps({**described, "contents": [{"dst": f"/usr/share/{name}-stand-in", "type": "dir"}]}))
    nfpm = str(Path(sys.executable).with_name("nfpm"))
    subprocess.run([nfpm, "package", "-p", "rpm", "-f", str(config), "-t", str(into)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with what the packages need of a distribution."""
    into = tmp_path_factory.mktemp("distribution")
    for name, (version, abi) in PYTHONS.items():
        stand_in(name, version, [f"python(abi) = {abi}"], into)
    stand_in("systemd", "252", [], into)
    subprocess.run(["createrepo_c", "--quiet", str(into)], check=True)
    return into


@pytest.fixture
def dnf(machine: Machine, repository: Repository, distribution: Path, tmp_path: Path) -> Iterator[Dnf]:
    """dnf over the machine, with our repository's own file; what it installed is gone in the end."""
    repositories = tmp_path / "repos"
    repositories.mkdir()
    (repositories / "guestagent.repo").write_text(repository.file("guestagent.repo"))
    (repositories / "distribution.repo").write_text(
        f"[distribution]\nname=distribution\nbaseurl=file://{distribution}\ngpgcheck=0\n"
    )
    command = ["dnf", "-y", "--releasever=9", f"--installroot={machine.root}", f"--setopt=reposdir={repositories}"]
    command += [f"--setopt=cachedir={tmp_path / 'cache'}", f"--setopt=logdir={tmp_path}", "--setopt=plugins=0"]
    command += ["--setopt=install_weak_deps=0"]

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False)

    yield run
    run("remove", "guestagent", "guestagent-cloud", *PYTHONS, "systemd")


def verified(machine: Machine) -> str:
    """What rpm finds changed of the installed packages: nothing is empty."""
    command = ["rpm", "--root", str(machine.root), "-V", "guestagent"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.mark.root
def test_from_install_to_removal(machine: Machine, dnf: Dnf) -> None:
    """dnf takes the Python that is new enough, checks both signatures; upgrade and downgrade keep the config."""
    files = machine.files()
    first = dnf("install", f"guestagent-{__version__}", "guestagent-cloud")
    assert 0 == first.returncode, first.stdout + first.stderr
    assert "python3.12 " in first.stdout
    assert "set 'to' in" in first.stdout
    assert not machine.path(ENABLED).is_symlink()
    assert "" == verified(machine)
    edited = machine.path(CONFIG).read_text().replace("to = []", 'to = "tcp://10.0.0.9"')
    machine.path(CONFIG).write_text(edited)
    for verb, wanted in (("upgrade", NEXT), ("downgrade", __version__)):
        done = dnf(verb, f"guestagent-{wanted}")
        cached = {path.name for path in machine.path("/usr/lib/guestagent/guestagent/__pycache__").iterdir()}
        assert 0 == done.returncode, done.stdout + done.stderr
        assert f"guestagent {wanted}\n" == machine.run("guestagent", "--version").stdout
        assert edited == machine.path(CONFIG).read_text()
        assert "cli.cpython-311.pyc" in cached
    last = dnf("remove", "guestagent", "guestagent-cloud", *PYTHONS, "systemd")
    saved = machine.path(f"{CONFIG}.rpmsave")

    assert 0 == last.returncode, last.stdout + last.stderr
    assert edited == saved.read_text()
    saved.unlink()
    saved.parent.rmdir()
    assert set() == machine.files() - files
    machine.run("userdel", "guestagent")


@pytest.mark.root
def test_a_config_with_a_destination_is_enabled(machine: Machine, dnf: Dnf) -> None:
    """Laid before the package, as cloud-init does, it is kept and the service is enabled."""
    machine.write(CONFIG, 'to = "tls://collector.example.net"\n')
    done = dnf("install", "guestagent")
    text, enabled = machine.path(CONFIG).read_text(), machine.path(ENABLED).is_symlink()
    dnf("remove", "guestagent")
    for left in machine.path(CONFIG).parent.glob("*"):
        left.unlink()

    assert 0 == done.returncode, done.stdout + done.stderr
    assert 'to = "tls://collector.example.net"\n' == text
    assert enabled
    assert not machine.path(ENABLED).is_symlink()


@pytest.mark.root
@pytest.mark.parametrize("name", ["repodata/repomd.xml", f"guestagent-{NEXT}-1.x86_64.rpm"])
def test_what_was_altered_is_refused(machine: Machine, dnf: Dnf, repository: Repository, name: str) -> None:
    """One other byte in the metadata or in a package, and nothing is installed."""
    path = repository.directory / "rpm" / name
    before = altered(path)
    done = dnf("install", "guestagent")
    path.write_bytes(before)

    assert 1 == done.returncode, done.stdout
    assert not machine.path("/usr/bin/guestagent").exists()


def test_requirements_name_no_distribution(built: Path) -> None:
    """Beside rpm's own features the package asks for a Python and systemd, by names that all of them have."""
    (rpm,) = built.glob("guestagent-[0-9]*.x86_64.rpm")
    listed = subprocess.run(["rpm", "-qp", "--requires", str(rpm)], capture_output=True, text=True, check=True).stdout

    assert ["python(abi) >= 3.11", "systemd"] == [one for one in listed.splitlines() if not one.startswith("rpmlib(")]
