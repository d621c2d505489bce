"""The life of the deb in a fresh Debian: added from the signed repository, upgraded, taken back, removed, purged."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestagent import __version__
from guestagent.mirror.providers import LOCAL
from tests.mirror.ovsdb_server import OvsdbServer
from tests.packaging.conftest import NEXT, Repository
from tests.packaging.machine import Machine
from tests.repo.source import ROOT

CONFIG = "/etc/guestagent/guestagent.toml"
SOURCES = "/etc/apt/sources.list.d/guestagent.sources"
ENABLED = "/etc/systemd/system/multi-user.target.wants/guestagent.service"
UPDATE = ("apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any")
SDK = """
import boto3, requests, tenacity
session = boto3.session.Session("x", "x", region_name="eu-west-1")
print([session.client(name) for name in ("ec2", "elbv2", "sts")])
"""
"""What `mirror` asks of guestagent-cloud."""
CLOUD = "install the package guestagent-cloud"
INSTALL = ("apt-get", "install", "-q", "-y", "--no-install-recommends")


@pytest.fixture
def added(machine: Machine, repository: Repository) -> Iterator[Machine]:
    """A machine that has the repository's file and knows its packages; in the end it has neither."""
    machine.write(SOURCES, repository.file("guestagent.sources"))
    machine.run(*UPDATE)
    yield machine
    machine.run("apt-get", "purge", "-q", "-y", "guestagent", "guestagent-cloud", check=False)
    machine.path(SOURCES).unlink()
    machine.run(*UPDATE)


def version_of(machine: Machine) -> str:
    """What the installed command says."""
    return machine.run("guestagent", "--version").stdout.split()[-1]


def documented(heading: str) -> list[str]:
    """The commands of docs/install.md below a heading."""
    text = (ROOT / "docs" / "install.md").read_text()
    (part,) = re.findall(rf"(?ms)^## {heading}$(.*?)(?=^## |\Z)", text)
    return [line for block in re.findall(r"(?s)```sh\n(.*?)```", part) for line in block.splitlines()]


@pytest.mark.root
def test_the_documented_way(machine: Machine, repository: Repository) -> None:
    """docs/install.md command for command: the file, the installation, the one line, the enabling; back, on, gone."""
    fetch, install, edit, check, enable = documented("Debian and Ubuntu")
    upgrade, downgrade, purge = documented("Upgrade, downgrade, removal")
    (place,) = re.findall(r"^curl -fsSo (\S+) https://\S+/guestagent\.sources$", fetch)
    machine.write(place, repository.file("guestagent.sources"))
    for command in (install, edit, enable):
        machine.run("sh", "-c", command.replace(" --now ", " "))  # a chroot has no manager that could start it
    config, is_enabled = machine.path(CONFIG).read_text(), machine.path(ENABLED).is_symlink()
    versions = [version_of(machine)]
    for command in (re.sub(r"=[\d.]+-1$", f"={__version__}-1", downgrade), upgrade):
        machine.run("sh", "-c", f"{command} -y")
        versions.append(version_of(machine))
    machine.run("sh", "-c", f"{purge} -y")
    machine.path(place).unlink()
    machine.run(*UPDATE)

    assert f"guestagent check -c {CONFIG}" == check
    assert re.findall('(?m)^to = "tls://collector.example.net"$', config)
    assert is_enabled
    assert [NEXT, __version__, NEXT] == versions
    assert not machine.path(CONFIG).exists()


@pytest.mark.root
def test_mirror_works_or_says_what_to_install(added: Machine) -> None:
    """The installed command reads a real ovsdb-server; what guestagent-cloud lacks is one sentence with the command."""
    added.run(*INSTALL, "guestagent")
    said = {name: added.run("guestagent", "mirror", name, "list", check=False) for name in ("aws", "gcp", "ovs")}
    added.run(*INSTALL, "guestagent-cloud")
    server = OvsdbServer(added.path("/run/ovsdb"))
    try:
        listed = added.run("guestagent", "mirror", "ovs", "list", "--db", "unix:/run/ovsdb/db.sock")
    finally:
        server.stop()
        shutil.rmtree(added.path("/run/ovsdb"))

    assert "no mirror of ours here\n" == listed.stdout
    assert [3, 3, 3] == [one.returncode for one in said.values()]
    for name in ("aws", "ovs"):
        assert re.fullmatch(rf"guestagent: mirror {name} needs the module \w+: {CLOUD}\n", said[name].stdout)
    pip = "/usr/bin/python3.11 -m pip install --target /usr/local/lib/guestagent 'google-cloud-compute>="
    assert f"guestagent: mirror gcp needs the module google: {pip}" in said["gcp"].stdout
    assert f"{LOCAL}\n" in added.path("/usr/bin/guestagent").read_text()


@pytest.mark.root
def test_a_purge_leaves_nothing(added: Machine) -> None:
    """After install, a run as the service would, and purge, files, users and groups are what they were."""
    files, accounts = added.files(), added.accounts()
    added.run(*INSTALL, "guestagent", "guestagent-cloud")
    installed = added.files() - files
    added.run("systemctl", "enable", "guestagent")
    added.path("/run/guestagent").mkdir()
    said = added.run("guestagent", "--version").stdout
    added.run("sh", "-c", f"PYTHONPATH=/usr/share/guestagent-cloud python3 -c '{SDK}'")
    user = added.run("getent", "passwd", "guestagent").stdout
    added.run("apt-get", "purge", "-q", "-y", "guestagent", "guestagent-cloud")

    assert f"guestagent {NEXT}\n" == said
    assert user.endswith(":/usr/sbin/nologin\n")
    assert {"/usr/bin/guestagent", CONFIG, "/usr/share/man/man1/guestagent.1.gz"} <= installed
    assert set() == added.files() - files
    assert set() == files - added.files()
    assert accounts == added.accounts()


@pytest.mark.root
def test_captures_outlive_a_purge(added: Machine) -> None:
    """What a collector wrote is its owner's: it stays, and so does the user it belongs to."""
    added.run(*INSTALL, "guestagent")
    added.write("/var/lib/guestagent/captures/web-1/1.pcapng", "x")
    said = added.run("apt-get", "purge", "-q", "-y", "guestagent").stdout
    kept = added.path("/var/lib/guestagent/captures/web-1/1.pcapng")

    assert kept.exists()
    assert "captures are kept in /var/lib/guestagent" in said
    assert added.run("getent", "passwd", "guestagent").stdout
    kept.unlink()
    added.run("rm", "-r", "/var/lib/guestagent")
    added.run("userdel", "guestagent")


@pytest.mark.root
def test_the_first_start_says_what_to_set(added: Machine) -> None:
    """Nothing is enabled, the install says what to do, and the service's own command ends with the sentence and 2."""
    said = added.run(*INSTALL, "guestagent").stdout
    (command,) = re.findall(r"(?m)^ExecStart=(.*)$", added.path("/lib/systemd/system/guestagent.service").read_text())
    started = added.run(
        "setpriv", "--reuid=guestagent", "--regid=guestagent", "--clear-groups", *command.split(), check=False
    )
    collector = added.run("guestagent", "collect", "--config", "/etc/guestagent/collect.toml", check=False)

    assert f"set 'to' in {CONFIG}, then: systemctl enable --now guestagent" in said
    assert not added.path(ENABLED).is_symlink()
    assert 2 == started.returncode == collector.returncode
    assert f"guestagent: {CONFIG}: to: no destination" in started.stdout
    assert "no --listen" in collector.stdout


@pytest.mark.root
def test_a_config_with_a_destination_is_enabled(added: Machine) -> None:
    """Laid before the package, as cloud-init does, it is kept and the service is enabled without another command."""
    added.write(CONFIG, 'to = "tls://collector.example.net"\n')
    added.run(*INSTALL, "-o", "Dpkg::Options::=--force-confold", "guestagent")

    assert 'to = "tls://collector.example.net"\n' == added.path(CONFIG).read_text()
    assert added.path(ENABLED).is_symlink()
    added.run("apt-get", "purge", "-q", "-y", "guestagent")
    assert not added.path(ENABLED).is_symlink()


@pytest.mark.root
def test_upgrade_and_downgrade_keep_the_config(added: Machine) -> None:
    """There and back: the edited config and the enabled service stay, and byte-code is that of the files in force."""
    added.run(*INSTALL, f"guestagent={__version__}-1")
    edited = added.path(CONFIG).read_text().replace("to = []", 'to = "tcp://10.0.0.9"')
    added.path(CONFIG).write_text(edited)
    added.run("systemctl", "enable", "guestagent")
    versions = [version_of(added)]
    for wanted in (f"guestagent={NEXT}-1", f"guestagent={__version__}-1"):
        added.run(*INSTALL, "--allow-downgrades", wanted)
        versions.append(version_of(added))
    cached = {path.name for path in added.path("/usr/lib/guestagent/guestagent/__pycache__").iterdir()}

    assert [__version__, NEXT, __version__] == versions
    assert edited == added.path(CONFIG).read_text()
    assert added.path(ENABLED).is_symlink()
    assert "cli.cpython-311.pyc" in cached


@pytest.mark.root
def test_another_python_gets_its_byte_code(added: Machine) -> None:
    """When a Python is unpacked, dpkg has us make byte-code again."""
    added.run(*INSTALL, "guestagent")
    cached = added.path("/usr/lib/guestagent/guestagent/__pycache__/cli.cpython-311.pyc")
    cached.unlink()
    added.run("dpkg-trigger", "--by-package=dpkg", "/usr/bin/python3.11")
    added.run("dpkg", "--triggers-only", "guestagent")

    assert cached.exists()


def altered(path: Path) -> bytes:
    """Change one byte in the middle of a file; what it was."""
    before = path.read_bytes()
    half = len(before) // 2
    path.write_bytes(before[:half] + bytes([before[half] ^ 1]) + before[half + 1 :])
    return before


@pytest.mark.root
@pytest.mark.parametrize("name", ["InRelease", "main/binary-amd64/Packages.gz"])
def test_altered_metadata_is_refused(added: Machine, repository: Repository, name: str) -> None:
    """One other byte in what is signed, or in what that lists, and apt-get update fails."""
    path = repository.directory / "apt/dists/stable" / name
    plain = path.with_suffix("")
    hidden = plain.rename(plain.with_name("hidden")) if name.endswith(".gz") else None
    added.run("sh", "-c", "rm -rf /var/lib/apt/lists/*")
    before = altered(path)
    said = added.run(*UPDATE, check=False)
    path.write_bytes(before)
    if hidden:
        hidden.rename(plain)

    assert 100 == said.returncode, said.stdout
    assert re.search("invalid|not valid|BADSIG|NOSPLIT|not signed|Hash Sum mismatch", said.stdout), said.stdout
    added.run(*UPDATE)


@pytest.mark.root
def test_an_altered_package_is_refused(added: Machine, repository: Repository) -> None:
    """One other byte in the deb, and apt does not unpack it."""
    path = repository.directory / f"apt/pool/guestagent_{NEXT}-1_amd64.deb"
    before = altered(path)
    added.run("apt-get", "clean")
    said = added.run(*INSTALL, "guestagent", check=False)
    path.write_bytes(before)

    assert 100 == said.returncode
    assert "Hash Sum mismatch" in said.stdout
    assert not added.path("/usr/bin/guestagent").exists()


@pytest.mark.root
def test_another_key_is_refused(added: Machine, repository: Repository, tmp_path: Path) -> None:
    """A Release that somebody else signed is not taken, whatever it lists."""
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    environment = {**repository.environment, "GNUPGHOME": str(home)}
    gpg = ["gpg", "--batch", "--yes", "--quiet", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-generate-key", "other", "ed25519", "sign", "never"], env=environment, check=True)
    dist = repository.directory / "apt/dists/stable"
    before = (dist / "InRelease").read_bytes()
    with repository.later():
        subprocess.run([*gpg, "--clearsign", "-o", "InRelease", "Release"], cwd=dist, env=environment, check=True)
    subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False)
    said = added.run(*UPDATE, check=False)
    (dist / "InRelease").write_bytes(before)

    assert 100 == said.returncode
    assert "NO_PUBKEY" in said.stdout
