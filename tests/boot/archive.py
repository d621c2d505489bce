"""The signed repository that the VM installs from, built by the project's own commands and served by a plain server."""

import os
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.boot.vm import HOST_ADDRESS

ROOT = Path(__file__).parents[2]
PORT = 8000
URL = f"http://{HOST_ADDRESS}:{PORT}"
SIGNER = "guestagent-boot-test"


def publish(release: str, into: Path) -> None:
    """`make packages` with this release number, and `make repo`; into the same place once more, that is an upgrade."""
    packages, home = into.with_name("packages"), into.with_name("gnupg")
    environment = {**os.environ, "GNUPGHOME": str(home)}
    if not home.exists():
        home.mkdir(mode=0o700)
        key = ["gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", SIGNER, "rsa3072", "sign"]
        subprocess.run(key, env=environment, check=True)

    def run(script: str, *words: object) -> None:
        command = [sys.executable, str(ROOT / "packaging" / script), *map(str, words)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)

    run("packages.py", "--release", release, "--into", packages)
    for other in packages.glob("*.rpm"):
        other.unlink()  # the VM is Debian's; signing these takes longer than all else
    run("repo.py", "--key", SIGNER, "--url", URL, "--packages", packages, "--into", into)


def forget_key(into: Path) -> None:
    """End what gpg started for the key."""
    environment = {**os.environ, "GNUPGHOME": str(into.with_name("gnupg"))}
    subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=False)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Say nothing: what was fetched is seen by what is installed."""


def serve(directory: Path) -> None:
    """A static web server, until terminated; runs on a host of the lab."""
    ThreadingHTTPServer(("", PORT), partial(_Quiet, directory=directory)).serve_forever()
