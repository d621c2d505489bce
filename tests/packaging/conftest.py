"""What the packaging tests share: packages of this version and the next, their signed repository, a fresh root."""

import fcntl
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.packaging.machine import Machine, copy_of_project, fresh
from tests.repo.source import ROOT

NEXT = "9.9.9"
"""A later version than any of ours."""
ANY_URL = "http://packages.example.net"
SIGNER = 'Release "100 %name" (apt & rpm) <release@example.net>'
"""Of a shape that shells, rpm's macros and gpg could each take for something else."""
STRANGER = "Release of others <others@example.net>"


class Repository(NamedTuple):
    """What `make repo` made, a copy of each process of pytest, and where it is served."""

    directory: Path
    url: str
    environment: dict[str, str]
    """With GNUPGHOME, for whoever signs again."""

    def file(self, name: str) -> str:
        """guestagent.sources or guestagent.repo, for where this copy is."""
        return (self.directory / name).read_text().replace(ANY_URL, self.url)

    @contextmanager
    def later(self) -> Iterator[None]:
        """What is signed meanwhile is newer by seconds, by which apt asks for what has changed."""
        signed = self.directory / "apt/dists/stable/InRelease"
        changed_at = signed.stat().st_mtime
        yield
        os.utime(signed, times=(changed_at + 10, changed_at + 10))


def script(name: str, *words: str, root: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """Run one of packaging/."""
    command = [sys.executable, str(root / "packaging" / name), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A directory that one process of pytest makes and all of them use."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    into, made = shared / name, shared / f"{name}.made"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(into, ignore_errors=True)
            make(into)
            made.touch()
    return into


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of this checkout."""
    if shutil.which("go-md2man") is None:
        pytest.skip("go-md2man is not installed")
    return once(tmp_path_factory, "built", lambda into: script("packages.py", "--into", str(into)) and None)


@pytest.fixture(scope="session")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose gpg has the secret key of SIGNER, and one of STRANGER, that nothing is signed with."""

    def make(home: Path) -> None:
        home.mkdir(mode=0o700)
        command = ["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key"]
        environment = {**os.environ, "GNUPGHOME": str(home)}
        for name, kind in ((STRANGER, "ed25519"), (SIGNER, "rsa2048")):
            subprocess.run([*command, name, kind, "sign", "never"], env=environment, check=True, capture_output=True)

    environment = {**os.environ, "GNUPGHOME": str(once(tmp_path_factory, "gnupg", make))}
    yield environment
    subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False)


@pytest.fixture(scope="session")
def released(built: Path, keyring: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dist/ of a later version that was released into the repository of this one."""

    def make(project: Path) -> None:
        copy_of_project(project, NEXT)
        into, signing = project / "dist" / "repo", ["--key", SIGNER, "--url", ANY_URL]
        script("repo.py", *signing, "--packages", str(built), "--into", str(into), environment=keyring)
        script("release.py", *signing, root=project, environment={**keyring, "SOURCE_DATE_EPOCH": "1800000000"})

    return once(tmp_path_factory, "next", make) / "dist"


@pytest.fixture(scope="session")
def repository(
    released: Path, keyring: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Repository]:
    """Both versions, on loopback."""
    directory = tmp_path_factory.mktemp("repository") / "repo"
    shutil.copytree(released / "repo", directory)
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Repository(directory, f"http://127.0.0.1:{server.server_port}", keyring)
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
