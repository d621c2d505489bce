"""Another key for the repository, as docs/install.md says: a machine that got the file in time is never locked out."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guestagent import __version__
from tests.packaging.conftest import ANY_URL, Repository
from tests.packaging.machine import Machine
from tests.packaging.test_apt import SOURCES, UPDATE, documented
from tests.packaging.test_dnf import Dnf, distribution, dnf
from tests.repo.source import ROOT

__all__ = ["distribution", "dnf"]
SUCCESSOR = "Release of the next years <next@example.org>"
MAKE = f"{sys.executable} {ROOT}/packaging/repo.py --packages apt/pool --into . --url {ANY_URL} --key"


def run(command: str, directory: Path, environment: dict[str, str]) -> str:
    """What a line of a shell printed."""
    done = subprocess.run(
        ["sh", "-ec", command], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def sign(repository: Repository, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """The documented lines, with OLD or NEW as KEY, on the repository; it is what it was in the end."""
    home, before = tmp_path / "gnupg", tmp_path / "before"
    shutil.copytree(repository.directory, before)
    home.mkdir(mode=0o700)
    secret = run("gpg --batch --armor --export-secret-keys release@example.net", tmp_path, repository.environment)
    environment = {**os.environ, "GNUPGHOME": str(home)}
    subprocess.run(["gpg", "--batch", "--quiet", "--import"], input=secret, text=True, env=environment, check=True)
    run(
        f"gpg --batch --quiet --passphrase '' --quick-generate-key '{SUCCESSOR}' rsa2048 sign never",
        tmp_path,
        environment,
    )
    listed = run("gpg --batch --with-colons --list-secret-keys", tmp_path, environment)
    environment["OLD"], environment["NEW"] = re.findall("(?m)^fpr:+([0-9A-F]+):", listed)

    def sign_with(key: str) -> None:
        with repository.later():
            for command in documented("Another key"):
                line = re.sub(r"^make repo KEY=\S+ URL=\S+$", f"{MAKE} ${key}", command)
                run(line.replace("dist/repo/", ""), repository.directory, environment)

    yield sign_with
    run("gpgconf --kill all", tmp_path, environment)
    shutil.rmtree(repository.directory)
    before.rename(repository.directory)


@pytest.mark.root
def test_the_documented_rotation(
    machine: Machine, repository: Repository, dnf: Dnf, sign: Callable[[str], None]
) -> None:
    """The file with both keys serves before and after; without it apt says which key it lacks, and dnf fetches that."""
    old = repository.file("guestagent.sources")
    assert 0 == dnf("install", f"guestagent-{__version__}").returncode
    sign("OLD")
    both, said = repository.file("guestagent.sources"), []
    for file in (old, both, old, both):
        if len(said) == 2:
            sign("NEW")
        machine.write(SOURCES, file)
        said.append(machine.run(*UPDATE, check=False))
    upgraded, back = dnf("--refresh", "upgrade", "guestagent"), dnf("downgrade", f"guestagent-{__version__}")
    machine.path(SOURCES).unlink()
    machine.run(*UPDATE)

    assert [0, 0, 100, 0] == [one.returncode for one in said]
    assert "NO_PUBKEY" in said[2].stdout
    assert (0, 0) == (upgraded.returncode, back.returncode), upgraded.stdout + back.stdout
    assert "<next@example.org>" in upgraded.stderr
