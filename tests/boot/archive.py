"""The signed repository that the VM installs from, built and served as an operator does it."""

import os
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[2]
PORT = 8000


def publish(release: str, into: Path) -> None:
    """`make packages` and `make repo` with this release number; the second time into the same place, an upgrade."""
    packages = into.with_name("packages")
    subprocess.run(
        [sys.executable, ROOT / "packaging" / "packages.py", "--release", release, "--into", packages], check=True
    )
    _private_repo(packages, into)


def _private_repo(packages: Path, into: Path) -> None:
    home = into.with_name("gnupg")
    env = {**os.environ, "GNUPGHOME": str(home)}
    if not home.exists():
        home.mkdir(mode=0o700)
        subprocess.run(
            ["gpg", "--batch", "-q", "--quick-gen-key", "--passphrase", "", "repo <r@x>", "ed25519", "sign", "never"],
            env=env,
            check=True,
        )
    apt = into / "apt"
    release = apt / "dists" / "stable"
    binary = release / "main" / "binary-amd64"
    binary.mkdir(parents=True, exist_ok=True)
    (apt / "pool").mkdir(exist_ok=True)
    for deb in packages.glob("guestagent_*amd64.deb"):
        shutil.copy(deb, apt / "pool")
    text = subprocess.run(["apt-ftparchive", "packages", "pool"], cwd=apt, check=True, capture_output=True).stdout
    (binary / "Packages").write_bytes(text)
    (release / "Release").unlink(missing_ok=True)
    (release / "InRelease").unlink(missing_ok=True)
    options = [
        word
        for key, value in {"Suite": "stable", "Components": "main", "Architectures": "amd64"}.items()
        for word in ("-o", f"APT::FTPArchive::Release::{key}={value}")
    ]
    (release / "Release").write_bytes(
        subprocess.run(["apt-ftparchive", *options, "release", release], check=True, capture_output=True).stdout
    )
    subprocess.run(
        ["gpg", "--batch", "--yes", "--clearsign", "-o", release / "InRelease", release / "Release"],
        env=env,
        check=True,
    )
    with (into / "guestagent.asc").open("wb") as file:
        subprocess.run(["gpg", "--armor", "--export"], env=env, check=True, stdout=file)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Say nothing: what was fetched is seen by what is installed."""


def serve(directory: Path) -> None:
    """A static web server, until terminated; runs on a host of the lab."""
    ThreadingHTTPServer(("", PORT), partial(_Quiet, directory=directory)).serve_forever()
