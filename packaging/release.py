"""`make release KEY=... URL=...`: all that a release is, in dist/VERSION: wheel, sdist, packages, bills of materials,
SHA256SUMS with its signature; and the repository, in dist/repo.

The version is guestagent/__init__.py's, and CHANGELOG.md must have a part for it.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import packages
import repo
from origin import BUILD, DIST, ROOT, epoch, version


def python_distributions(into: Path) -> None:
    """Wheel and sdist; hatchling takes its times from SOURCE_DATE_EPOCH."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into), str(ROOT)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"wheel and sdist could not be built: {done.stdout}{done.stderr}")


def write_sums(directory: Path, key: str) -> None:
    """SHA256SUMS as sha256sum --check takes it, and its signature."""
    names = sorted(one.name for one in directory.iterdir())
    lines = [f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (directory / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    repo.run(["gpg", "--batch", "--yes", "--local-user", key, "--armor", "--detach-sign", "SHA256SUMS"], directory)


def main() -> None:
    """Everything, from a commit that CHANGELOG.md describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--key", required=True, help="signs: a secret key in gpg's keyring")
    parser.add_argument("--url", required=True, help="where machines will find the repository")
    flags = parser.parse_args()
    if not re.search(
        rf"^## \[{re.escape(version())}\] - ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    ):
        raise SystemExit(f"CHANGELOG.md has no part [{version()}]: name what is Unreleased by version and date first")
    key = repo.secret_key(flags.key)
    into = DIST / version()
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    packages.make(into, "1")
    repo.make(into, DIST / "repo", key, flags.url.rstrip("/"))
    python_distributions(into)
    for package, (architecture, *_) in packages.ARCHITECTURES.items():
        bill = BUILD / "stage" / f"{package}-{architecture}" / "documents" / "sbom.cdx.json"
        shutil.copy(bill, into / f"{package}-{version()}.cdx.json")
    write_sums(into, key)
    print(f"{into}: {len([*into.iterdir()])} files; {DIST / 'repo'}: for {flags.url}")


if __name__ == "__main__":
    main()
