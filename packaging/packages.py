"""`make packages`: guestagent and guestagent-cloud as deb and rpm, in dist/. Same input, same bytes.

What travels where is the table FILES; what the packages say of themselves is in nfpm/.
"""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from manual import COMPLETIONS, completion, write_manual
from origin import BUILD, DIST, PACKAGING, ROOT, epoch, version
from sbom import bill_of_materials
from wheels import unpack

FILES = {
    "command.sh": "usr/bin/guestagent",
    "systemd/guestagent.service": "usr/lib/systemd/system/guestagent.service",
    "systemd/guestagent-collector.service": "usr/lib/systemd/system/guestagent-collector.service",
    "systemd/guestagent-tap-collector.service": "usr/lib/systemd/system/guestagent-tap-collector.service",
    "sysusers.conf": "usr/lib/sysusers.d/guestagent.conf",
    "tmpfiles.conf": "usr/lib/tmpfiles.d/guestagent.conf",
    "grafana/guestagent.json": "usr/share/guestagent/grafana/guestagent.json",
    "prometheus/alerts.yml": "usr/share/guestagent/prometheus/alerts.yml",
}
"""Of packaging/: where it lies on the machine."""
ARCHITECTURES = {"guestagent": ("amd64", "arm64"), "guestagent-cloud": ("all",)}
LIBRARIES = {"guestagent": "usr/lib/guestagent", "guestagent-cloud": "usr/share/guestagent-cloud"}
"""Of each package; the first holds machine code, the second is of all architectures."""
FORMATS = ("deb", "rpm")
MAINTAINER = "guestagent maintainers <maintainers@guestagent.invalid>"


def lay(package: str, architecture: str, release: str) -> Path:
    """The directory that nfpm runs in: root/ as on the machine, beside it documents, config, scripts and changelog."""
    stage = BUILD / "stage" / f"{package}-{architecture}"
    shutil.rmtree(stage, ignore_errors=True)
    root = stage / "root"
    unpack(package, architecture, root / LIBRARIES[package])
    if package == "guestagent":
        _lay_base(root)
        _lay_manual(stage / "documents")
    _copy(PACKAGING / "copyright" / package, stage / "documents" / "copyright")
    _copy(PACKAGING / "lint" / f"{package}.lintian", stage / "documents" / "lintian")
    (stage / "documents" / "sbom.cdx.json").write_text(bill_of_materials(root / LIBRARIES[package], package))
    _copy(ROOT / "LICENSE", stage / "documents" / "LICENSE")
    _compress(ROOT / "CHANGELOG.md", stage / "documents" / "changelog.gz")
    for name in ("etc", "scripts"):
        shutil.copytree(PACKAGING / name, stage / name)
    shutil.copy(PACKAGING / "nfpm" / f"{package}.yaml", stage / "nfpm.yaml")
    (stage / "changelog.yaml").write_text(json.dumps(history(release)), encoding="utf-8")
    for path in stage.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        os.utime(path, (epoch(), epoch()))
    return stage


def _lay_base(root: Path) -> None:
    for source in sorted((ROOT / "guestagent").rglob("*.py")):
        _copy(source, root / LIBRARIES["guestagent"] / source.relative_to(ROOT))
    for name, place in FILES.items():
        _copy(PACKAGING / name, root / place)
    for shell, place in COMPLETIONS.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(completion(shell), encoding="utf-8")


def _lay_manual(into: Path) -> None:
    write_manual(into)
    for page in [*into.rglob("*.[15]")]:
        _compress(page, page.with_name(f"{page.name}.gz"))
        page.unlink()


def _compress(source: Path, destination: Path) -> None:
    """Without name and time in it: the same bytes each time."""
    destination.write_bytes(gzip.compress(source.read_bytes(), 9, mtime=0))


def _copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)


def history(release: str) -> list[dict[str, object]]:
    """The packager's own changelog (https://github.com/goreleaser/chglog); what is new for users is CHANGELOG.md."""
    entry = {
        "semver": f"{version()}-{release}",
        "date": datetime.fromtimestamp(epoch(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "packager": MAINTAINER,
        "deb": {"urgency": "medium", "distributions": ["stable"]},
        "changes": [{"note": f"guestagent {version()}: what is new stands in changelog.gz beside this file."}],
    }
    return [entry]


def build(package: str, architecture: str, release: str, into: Path) -> list[Path]:
    """deb and rpm of one architecture."""
    stage = lay(package, architecture, release)
    environment = {
        **os.environ,
        "ARCH": architecture,
        "VERSION": version(),
        "RELEASE": release,
        "SOURCE_DATE_EPOCH": str(epoch()),
    }
    before = set(into.iterdir())
    nfpm = Path(sys.executable).with_name("nfpm")
    for form in FORMATS:
        command = [str(nfpm), "package", "--packager", form, "--target", str(into)]
        done = subprocess.run(command, cwd=stage, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"nfpm could not make the {form} of {package}: {done.stdout}{done.stderr}")
    return sorted(set(into.iterdir()) - before)


def make(into: Path, release: str) -> list[Path]:
    """All packages of all architectures, in this empty directory."""
    return [
        path
        for package, architectures in ARCHITECTURES.items()
        for architecture in architectures
        for path in build(package, architecture, release, into)
    ]


def main() -> None:
    """Into dist/packages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", default="1", help="counts packages of one version; default: 1")
    parser.add_argument("--into", type=Path, default=DIST / "packages")
    flags = parser.parse_args()
    shutil.rmtree(flags.into, ignore_errors=True)
    flags.into.mkdir(parents=True)
    for path in make(flags.into.resolve(), flags.release):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path}")


if __name__ == "__main__":
    main()
