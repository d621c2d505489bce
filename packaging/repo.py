"""`make repo KEY=...`: an apt and an rpm repository of dist/packages with signed metadata, for any static web server.

What dist/repo holds already stays, so that machines can be pinned to a version and go back to it. Machines need one
file, guestagent.sources or guestagent.repo, which says where the repository is and which key signs it.
"""

import argparse
import gzip
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from origin import DIST

SUITE, COMPONENT = "stable", "main"
ARCHITECTURES = ("amd64", "arm64")


def run(command: Sequence[str | Path], cwd: Path) -> str:
    """What the tool printed; its own words where it failed."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def secret_key(name: str) -> str:
    """The fingerprint of the one secret key in gpg's keyring (GNUPGHOME) that `name` fits.

    All tools get that: rpmsign takes a name for a macro, and gpg exports every key that a part of a name fits.
    """
    command = ["gpg", "--batch", "--with-colons", "--list-secret-keys", "--", name]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    rows = [line.split(":") for line in listed.splitlines()]
    found = [after[9] for row, after in pairwise(rows) if row[0] == "sec"]
    if not found:
        raise SystemExit(f"gpg has no secret key {name!r}: name one of 'gpg --list-secret-keys', or import it")
    if len(found) > 1:
        raise SystemExit(f"gpg has {len(found)} secret keys {name!r}: name one by its fingerprint, {', '.join(found)}")
    return found[0]


def apt_repository(apt: Path, key: str) -> None:
    """dists/ over pool/: an index for each architecture, a Release over them, signed inside and beside."""
    dist = apt / "dists" / SUITE
    shutil.rmtree(dist, ignore_errors=True)
    for architecture in ARCHITECTURES:
        index = dist / COMPONENT / f"binary-{architecture}"
        index.mkdir(parents=True)
        text = run(["apt-ftparchive", "--arch", architecture, "packages", "pool"], apt).encode()
        (index / "Packages").write_bytes(text)
        (index / "Packages.gz").write_bytes(gzip.compress(text, 9, mtime=0))
    fields = {
        "Origin": "guestagent",
        "Label": "guestagent",
        "Suite": SUITE,
        "Codename": SUITE,
        "Components": COMPONENT,
        "Architectures": " ".join(ARCHITECTURES),
    }
    options = [word for name, value in fields.items() for word in ("-o", f"APT::FTPArchive::Release::{name}={value}")]
    # Written last: apt-ftparchive lists what is in the directory.
    release = run(["apt-ftparchive", *options, "release", dist], apt)
    (dist / "Release").write_text(release, encoding="utf-8")
    sign = ["gpg", "--batch", "--yes", "--local-user", key]
    run([*sign, "--clearsign", "--output", "InRelease", "Release"], dist)
    run([*sign, "--armor", "--detach-sign", "--output", "Release.gpg", "Release"], dist)


def rpm_repository(rpm: Path, key: str) -> None:
    """Signed metadata over the packages, which are signed themselves."""
    run(["createrepo_c", "--quiet", "--general-compress-type=gz", "."], rpm)
    sign = ["gpg", "--batch", "--yes", "--local-user", key, "--armor", "--detach-sign"]
    run([*sign, "repodata/repomd.xml"], rpm)


def sign_packages(new: Sequence[Path], key: str) -> None:
    """Into the packages themselves, as dnf wants it beside the signed metadata."""
    # Debian's rpm does not know where gpg is.
    options = ["--define", f"_gpg_name {key}", "--define", f"__gpg {shutil.which('gpg')}"]
    run(["rpmsign", *options, "--addsign", *new], new[0].parent)


def write_sources(into: Path, url: str, public_key: str) -> None:
    """The file that a machine needs, for apt with the key inside (apt 2.4 or later), for dnf with its place."""
    inside = "\n".join(f" {line or '.'}" for line in public_key.strip().splitlines())
    (into / "guestagent.sources").write_text(
        f"Types: deb\nURIs: {url}/apt\nSuites: {SUITE}\nComponents: {COMPONENT}\nSigned-By:\n{inside}\n",
        encoding="utf-8",
    )
    (into / "guestagent.repo").write_text(
        f"[guestagent]\nname=guestagent\nbaseurl={url}/rpm\nenabled=1\ngpgcheck=1\nrepo_gpgcheck=1\n"
        f"gpgkey={url}/guestagent.asc\n",
        encoding="utf-8",
    )


def _add(packages: Path, pattern: str, into: Path, prepare: Callable[[Sequence[Path]], None] | None = None) -> None:
    """Copy those that are not there, all or none; of one version the first stays, since machines have its hash."""
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent) as scratch:
        for one in packages.glob(pattern):
            if not (into / one.name).exists():
                shutil.copyfile(one, Path(scratch) / one.name)
        new = sorted(Path(scratch).iterdir())
        if new and prepare:
            prepare(new)
        for one in new:
            one.rename(into / one.name)


def make(packages: Path, into: Path, key: str, url: str) -> None:
    """The whole repository. `key` is the fingerprint of a secret key of gpg's keyring (GNUPGHOME)."""
    public_key = run(["gpg", "--batch", "--armor", "--export", key], packages)
    _add(packages, "*.deb", into / "apt" / "pool")
    _add(packages, "*.rpm", into / "rpm", lambda new: sign_packages(new, key))
    apt_repository(into / "apt", key)
    rpm_repository(into / "rpm", key)
    (into / "guestagent.asc").write_text(public_key, encoding="utf-8")
    write_sources(into, url, public_key)


def main() -> None:
    """From dist/packages to dist/repo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--key", required=True, help="signs packages and metadata: a secret key in gpg's keyring")
    parser.add_argument("--url", required=True, help="where machines will find the repository")
    parser.add_argument("--packages", type=Path, default=DIST / "packages")
    parser.add_argument("--into", type=Path, default=DIST / "repo")
    flags = parser.parse_args()
    if not any(flags.packages.glob("*.deb")):
        raise SystemExit(f"{flags.packages} holds no packages: run 'make packages' first")
    make(flags.packages.resolve(), flags.into.resolve(), secret_key(flags.key), flags.url.rstrip("/"))
    print(f"{flags.into}: put it on a web server as {flags.url}")


if __name__ == "__main__":
    main()
