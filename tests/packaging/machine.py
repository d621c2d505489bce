"""A fresh Debian root, the packages' home in the tests: made once by debootstrap, kept as an archive, unpacked anew."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.repo.source import ROOT

RELEASE = "bookworm"
KEPT = Path("/var/cache/guestagent-tests")
"""Making a root takes a minute, unpacking one two seconds."""
BROUGHT = "systemd,python3"
"""What every cloud image has beyond the minimum; with them in the root no test needs Debian's mirror."""
NOT_COMPARED = re.compile(
    "^/(proc|sys|dev|tmp|root|run/lock|var/cache|var/log"
    # What apt, dnf, dpkg and the like keep of their own work, whatever the package.
    "|var/lib/(apt|dnf|dpkg|rpm|systemd)|etc/dnf|etc/(passwd|group|g?shadow)-"
    # On RHEL it is the distribution's.
    "|usr/share/licenses$)(/|$)"
)


def debian_mirror() -> str:
    """Where this machine gets Debian from."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {RELEASE}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return found[0] if found else ""


def _debootstrap(seed: Path, archive: Path) -> None:
    """Make a root and keep it as an archive."""
    command = ["debootstrap", "--variant=minbase", f"--include={BROUGHT}", RELEASE, str(seed)]
    subprocess.run([*command, *filter(None, [debian_mirror()])], check=True, capture_output=True)
    archive.parent.mkdir(parents=True, exist_ok=True)
    made = archive.with_suffix(f".{os.getpid()}")
    pack = ["tar", "--one-file-system", "--exclude=./var/cache/apt/archives/*.deb", "-C", str(seed)]
    subprocess.run([*pack, "-cf", str(made), "."], check=True)
    made.rename(archive)
    shutil.rmtree(seed)


def fresh(into: Path) -> "Machine":
    """A minimal Debian in this directory."""
    archive = KEPT / f"{RELEASE}-{BROUGHT}.tar"
    if not archive.exists():
        _debootstrap(into.with_name("seed"), archive)
    into.mkdir()
    subprocess.run(["tar", "-C", str(into), "-xf", str(archive)], check=True)
    machine = Machine(into)
    # Started services would be this machine's own: a chroot has no systemd. apt asks this first.
    machine.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
    for leftover in (into / "etc/apt/sources.list", into / "etc/apt/sources.list.d/debian.sources"):
        leftover.unlink(missing_ok=True)
    return machine


class Machine:
    """One root directory and what a user does in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command inside, its output and errors together."""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND": "noninteractive",
            "LC_ALL": "C.UTF-8",
        }
        command = ["chroot", str(self.root), *words]
        done = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}"
        return done

    def path(self, inside: str) -> Path:
        """A file of it, as the host sees it."""
        return self.root / inside.lstrip("/")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Make or replace a file."""
        self.path(inside).parent.mkdir(parents=True, exist_ok=True)
        self.path(inside).write_text(text)
        self.path(inside).chmod(mode)

    def files(self) -> set[str]:
        """Everything in it that a package may be blamed for."""
        return {one for one in self._walk() if not NOT_COMPARED.search(one)}

    def _walk(self) -> Iterator[str]:
        for folder, directories, names in os.walk(self.root):
            inside = f"/{Path(folder).relative_to(self.root)}".replace("/.", "/").rstrip("/")
            yield from (f"{inside}/{name}" for name in (*directories, *names))

    def accounts(self) -> str:
        """Users and groups."""
        return "".join(self.path(f"/etc/{name}").read_text() for name in ("passwd", "group"))


def copy_of_project(into: Path, version: str = "") -> Path:
    """The tracked files elsewhere, without git; as the next release where a version is given."""
    into.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, into / name)
    # What is held by hash need not be fetched again.
    shutil.copytree(ROOT / "build" / "wheels", into / "build" / "wheels")
    if version:
        home, changes = into / "guestagent" / "__init__.py", into / "CHANGELOG.md"
        home.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', home.read_text()))
        part = f"## [Unreleased]\n\n## [{version}] - 2026-12-01"
        changes.write_text(changes.read_text().replace("## [Unreleased]", part, 1))
    return into
