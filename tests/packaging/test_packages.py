"""What is in the packages: the same bytes each time, nothing that linters mind, every file with its purpose."""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guestagent import __version__
from tests.packaging.conftest import NEXT, script
from tests.packaging.machine import copy_of_project
from tests.repo.source import ROOT

KINDS = ("guestagent_*_amd64.deb", "guestagent_*_arm64.deb", "guestagent-cloud_*_all.deb")
KINDS_RPM = ("guestagent-[0-9]*.x86_64.rpm", "guestagent-[0-9]*.aarch64.rpm", "guestagent-cloud-*.noarch.rpm")


def sums(directory: Path) -> dict[str, str]:
    """Name and hash of each file."""
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in directory.iterdir()}


def packed(deb: Path, place: str) -> bytes:
    """One file of a deb."""
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], capture_output=True, check=True).stdout
    return subprocess.run(["tar", "-xO", f".{place}"], input=tar, capture_output=True, check=True).stdout


def test_the_same_input_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    """A build of the same files in another directory, told the same time, gives equal packages; all kinds are there."""
    seconds = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=True)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": seconds.stdout.strip()}
    project = copy_of_project(tmp_path / "project")
    script("packages.py", root=project, environment=environment)

    assert sums(built) == sums(project / "dist" / "packages")
    for kind in KINDS + KINDS_RPM:
        assert 1 == len([*built.glob(kind)]), kind


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]])
def test_lintian_is_content(built: Path, kind: str) -> None:
    """No error, warning or hint but those that packaging/lint answers with a reason, and none of these is stale."""
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    (path,) = built.glob(kind)
    command = ["lintian", "--allow-root", "--display-info", "--fail-on", "error,warning,info", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert not re.findall("(?m)^[EWI]: .*", done.stdout)


def test_rpmlint_is_content(built: Path) -> None:
    """No error or warning but those that packaging/lint answers with a reason."""
    if shutil.which("rpmlint") is None:
        pytest.skip("rpmlint is not installed")
    command = ["rpmlint", "-c", str(ROOT / "packaging/lint/rpmlint.toml"), *map(str, sorted(built.glob("*.rpm")))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert "0 errors, 0 warnings" in done.stdout, done.stdout


def test_the_base_package_is_light(built: Path) -> None:
    """Below 3 MB installed, without an SDK, and both formats carry the same files beside their documents."""
    (deb,) = built.glob(KINDS[0])
    (rpm,) = built.glob(KINDS_RPM[0])
    size = subprocess.run(["dpkg-deb", "-f", str(deb), "Installed-Size"], capture_output=True, text=True, check=True)
    listed = subprocess.run(["dpkg-deb", "-c", str(deb)], capture_output=True, text=True, check=True).stdout
    in_deb = {line.split()[-1].removeprefix(".") for line in listed.splitlines() if not line.endswith("/")}
    in_rpm = {*subprocess.run(["rpm", "-qlp", str(rpm)], capture_output=True, text=True, check=True).stdout.split()}
    own = re.compile(r"/usr/share/(doc|lintian|licenses)/")

    assert int(size.stdout) < 3_000
    assert not [name for name in in_deb if re.search("/(boto|requests|cryptography|scapy)", name)]
    assert {name for name in in_deb if not own.match(name)} <= in_rpm


@pytest.mark.parametrize("package, kind", [("guestagent", KINDS[0]), ("guestagent-cloud", KINDS[2])])
def test_the_bill_of_materials_names_what_travels(built: Path, package: str, kind: str) -> None:
    """CycloneDX with each pinned library, by version, and the package itself."""
    (deb,) = built.glob(kind)
    bill = json.loads(packed(deb, f"/usr/share/doc/{package}/sbom.cdx.json"))
    pinned = re.findall(r"(?m)^([a-z0-9_-]+)==(\S+)", (ROOT / f"packaging/vendor/{package}.txt").read_text())

    assert "CycloneDX" == bill["bomFormat"]
    assert (package, __version__) == (
        bill["metadata"]["component"]["name"],
        bill["metadata"]["component"]["version"],
    )
    assert sorted(pinned) == sorted((one["name"].replace("_", "-"), one["version"]) for one in bill["components"])


@pytest.mark.parametrize("page", ["guestagent.1", "guestagent-mirror.1", "guestagent.toml.5"])
def test_a_manual_page_reads(built: Path, page: str, tmp_path: Path) -> None:
    """man sets each page without a warning, and it has a name that apropos finds."""
    (deb,) = built.glob(KINDS[0])
    path = tmp_path / page
    path.write_bytes(gzip.decompress(packed(deb, f"/usr/share/man/man{page[-1]}/{page}.gz")))
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(path)], capture_output=True, check=False
    )
    named = subprocess.run(["lexgrog", str(path)], capture_output=True, text=True, check=False)

    assert b"" == done.stderr
    assert f'"{page[:-2]} - ' in named.stdout


def test_the_shell_completes(built: Path, tmp_path: Path) -> None:
    """bash offers verbs, and of a verb its flags, from what the package lays."""
    (deb,) = built.glob(KINDS[0])
    completion = tmp_path / "completion"
    completion.write_bytes(packed(deb, "/usr/share/bash-completion/completions/guestagent"))
    asked = """
        source "$1"
        COMP_WORDS=(guestagent ru) COMP_CWORD=1; _shtab_guestagent guestagent ru guestagent; echo "${COMPREPLY[@]}"
        COMP_WORDS=(guestagent run --inter) COMP_CWORD=2
        _shtab_guestagent guestagent --inter run; echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", asked, "bash", str(completion)], capture_output=True, text=True, check=True)

    assert "run\n--interface\n" == done.stdout


def test_a_release_is_complete(released: Path, keyring: dict[str, str]) -> None:
    """Wheel, sdist, packages and bills of materials stand in SHA256SUMS, which is right and signed."""
    release = released / NEXT
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=release, capture_output=True, text=True, check=False
    )
    verified = subprocess.run(
        ["gpg", "--verify", "SHA256SUMS.asc", "SHA256SUMS"],
        cwd=release,
        env=keyring,
        capture_output=True,
        check=False,
    )
    names = {one.name for one in release.iterdir()} - {"SHA256SUMS", "SHA256SUMS.asc"}

    assert 0 == checked.returncode == verified.returncode
    assert names == {line.split(":")[0] for line in checked.stdout.splitlines()}
    assert {f"guestagent-{NEXT}-py3-none-any.whl", f"guestagent-{NEXT}.tar.gz", f"guestagent-{NEXT}.cdx.json"} <= names
    assert 6 == len([name for name in names if name.endswith((".deb", ".rpm"))])


def test_the_key_is_one(released: Path, keyring: dict[str, str], tmp_path: Path) -> None:
    """What machines get is the signer's key alone; a name of two keys or none is refused before anything is made."""
    shown = subprocess.run(
        ["gpg", "--batch", "--with-colons", "--show-keys", str(released / "repo" / "guestagent.asc")],
        env=keyring,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 1 == shown.count("pub:")
    assert "<release@example.net>" in shown
    for name, said in (("example.net", "gpg has 2 secret keys 'example.net': name one by"), ("x y", "no secret key")):
        words = ["--key", name, "--url", "http://x", "--packages", str(released / NEXT), "--into", str(tmp_path / "to")]
        command = [sys.executable, str(ROOT / "packaging/repo.py"), *words]
        done = subprocess.run(command, env=keyring, capture_output=True, text=True, check=False)
        assert (1, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
        assert said in done.stderr
        assert not (tmp_path / "to").exists()


def test_a_release_without_its_changelog_is_refused() -> None:
    """The version of this checkout has no part of its own in CHANGELOG.md yet: one sentence, nothing built."""
    if f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text():
        pytest.skip("this is a release")
    command = [sys.executable, str(ROOT / "packaging/release.py"), "--key", "x", "--url", "http://x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert 1 == done.returncode
    assert (
        f"CHANGELOG.md has no part [{__version__}]: name what is Unreleased by version and date first\n" == done.stderr
    )


def test_nothing_is_fetched_that_has_no_hash(built: Path, tmp_path: Path) -> None:
    """With all that packaging/vendor pins in build/ no index is asked, not even for what reads the name of a source."""
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PYTHONPATH": "packaging"}
    code = f"from pathlib import Path; import wheels; wheels.unpack('guestagent-cloud', 'all', Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)

    assert (tmp_path / "ovs" / "stream.py").exists()
