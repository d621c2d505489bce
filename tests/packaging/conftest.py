"""What the packaging tests share: packages of this version and the next, their signed repository, a fresh root."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.packaging.machine import Machine, copy_of_project, fresh
from tests.repo.source import ROOT

NEXT = "9.9.9"
"""A later version than any of ours."""
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All in one process: the packages, their repository and the Debian root are made once and take a minute."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.xdist_group("packaging"))


class Repository(NamedTuple):
    """What `make repo` made, and where it is served."""

    directory: Path
    url: str
    environment: dict[str, str]
    """With GNUPGHOME, for whoever signs again."""


def script(name: str, *words: str, root: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """Run one of packaging/."""
    command = [sys.executable, str(root / "packaging" / name), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of this checkout."""
    if shutil.which("dpkg-deb") is None or shutil.which("go-md2man") is None:
        pytest.skip("go-md2man is not installed")
    into = tmp_path_factory.mktemp("packages") / "built"
    script("packages.py", "--into", str(into))
    return into


@pytest.fixture(scope="session")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose gpg has a secret key `guestagent-test` and no other."""
    home = tmp_path_factory.mktemp("gnupg")
    home.chmod(0o700)
    environment = {**os.environ, "GNUPGHOME": str(home)}
    command = ["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", "guestagent-test", "rsa2048"]
    subprocess.run([*command, "sign", "never"], env=environment, check=True, capture_output=True)
    yield environment
    subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False)


@pytest.fixture(scope="session")
def repository(built: Path, keyring: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """This version, and then the next one released into the same repository, on loopback."""
    project = copy_of_project(tmp_path_factory.mktemp("next") / "project", NEXT)
    directory = project / "dist" / "repo"
    directory.mkdir(parents=True)
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        signing = ["--key", "guestagent-test", "--url", url]
        script("repo.py", *signing, "--packages", str(built), "--into", str(directory), environment=keyring)
        script("release.py", *signing, root=project, environment={**keyring, "SOURCE_DATE_EPOCH": "1800000000"})
        yield Repository(directory, url, keyring)
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """One Debian root for all tests, each of which leaves it as it was."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for chroot")
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    return fresh(tmp_path_factory.mktemp("machine") / "root")
