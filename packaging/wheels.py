"""The libraries that travel in the packages: wheels held to their hashes, unpacked less what never runs."""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from origin import BUILD, PACKAGING

PLATFORMS = {
    "amd64": ("manylinux2010_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64"),
    "arm64": ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64"),
    "all": ("any",),
}
"""Package architecture: wheel tags that its machines run, from glibc 2.12 on."""

LEFT_OUT = (
    # pip's book-keeping; nothing is uninstalled by pip here, and parts of what it lists are not there
    *("*.dist-info/RECORD", "*.dist-info/WHEEL", "*.dist-info/top_level.txt", "*.dist-info/entry_points.txt"),
    # other systems
    *(f"psutil/_ps{name}.py" for name in ("aix", "bsd", "osx", "sunos", "windows")),
    *("prometheus_client/twisted/*", "*.data/*", "boto3/examples/*", "*/tests/*"),
    # other work of Open vSwitch's libraries
    *("ovs/_json.c", "ovs/flow/*", "ovs/flowviz/*", "ovsdbapp/schema/*"),
)
SOURCES = ("ovs",)
"""Published without a wheel; what it has beside Python is optional."""
SERVICES = ("ec2", "elbv2", "sts", "sso", "sso-oidc", "signin")
"""Of the 400 services that botocore describes: what `mirror` calls, and what finds its credentials."""


def unpack(package: str, architecture: str, into: Path) -> None:
    """Unpack what packaging/vendor/PACKAGE.txt names; the network is asked where a wheel is not in build/ yet."""
    pinned, store = _pinned(package), BUILD / "wheels" / f"{package}-{architecture}"
    options = [f"--no-binary={name}" for name in SOURCES]
    options += ["--python-version=3.11", "--implementation=cp", "--abi=abi3", "--abi=none"]
    options += [f"--platform={tag}" for tag in PLATFORMS[architecture]]
    with tempfile.TemporaryDirectory() as backend:
        if any(name in SOURCES for name in pinned):
            _unpack_backend(Path(backend))
            options.append("--no-build-isolation")
        _download(package, store, *options, PYTHONPATH=backend)
    for name, version in pinned.items():
        if name in SOURCES:
            _unpack_source(store, name, version, into)
            continue
        with zipfile.ZipFile(_wheel(store, name, version)) as archive:
            for member in _wanted([one for one in archive.namelist() if not one.endswith("/")]):
                archive.extract(member, into)


def _pinned(package: str) -> dict[str, str]:
    """Version by name."""
    lines = (PACKAGING / "vendor" / f"{package}.txt").read_text().splitlines()
    return {name: rest.split()[0] for name, _, rest in (line.partition("==") for line in lines) if rest}


def _download(package: str, store: Path, *options: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--requirement", str(PACKAGING / "vendor" / f"{package}.txt")]
    command += ["--find-links", str(store), "--dest", str(store), "--only-binary=:all:", *options]
    subprocess.run(command, env={**os.environ, **environment}, check=True)


def _wheel(store: Path, name: str, version: str) -> Path:
    (found,) = store.glob(f"{name.replace('-', '_')}-{version}-*.whl")
    return found


def _unpack_backend(into: Path) -> None:
    """By which pip reads the name of a source: it would fetch the newest of that day by itself, and run it."""
    store = BUILD / "wheels" / "backend"
    _download("backend", store)
    for name, version in _pinned("backend").items():
        with zipfile.ZipFile(_wheel(store, name, version)) as archive:
            archive.extractall(into)


def _unpack_source(store: Path, name: str, version: str, into: Path) -> None:
    """The package as it lies in the source distribution, and its PKG-INFO where a wheel has the same text."""
    top = f"{name}-{version}"
    with tarfile.open(store / f"{top}.tar.gz") as archive:
        files = {one.name.removeprefix(f"{top}/"): one for one in archive if one.isfile()}
        for path in (*_wanted([one for one in files if one.startswith(f"{name}/")]), "PKG-INFO"):
            place = into / (path if path != "PKG-INFO" else f"{top}.dist-info/METADATA")
            place.parent.mkdir(parents=True, exist_ok=True)
            data = archive.extractfile(files[path])
            assert data is not None, "it is a file"
            place.write_bytes(data.read())


def _wanted(names: Sequence[str]) -> Iterator[str]:
    kept = _newest_of_services(names)
    for name in names:
        left_out = any(fnmatch(name, pattern) for pattern in LEFT_OUT)
        if not left_out and (not (found := _SERVICE.match(name)) or found[0] in kept):
            yield name


_SERVICE = re.compile(r"(?:botocore|boto3)/data/(?P<service>[^/]+)/[^/]+/")
"""The directory of one version of one service's interface; the files beside the services lie higher."""


def _newest_of_services(names: Iterable[str]) -> set[str]:
    """Of each service that we need the directory of its newest version; the dates they are called by sort."""
    newest: dict[str, str] = {}
    for found in filter(None, map(_SERVICE.match, sorted(names))):
        newest[found["service"]] = found[0]
    return {directory for service, directory in newest.items() if service in SERVICES}
