"""The project names no developer's machine and no package host: it must build the same anywhere."""

import re

import pytest

from tests.repo.source import ROOT, project_files

# Written in halves, so that this file does not match itself.
HOME_FOLDERS = ["/ho" + "me/", "/Us" + "ers/", "/wo" + "rk/", "/ro" + "ot/"]
PACKAGE_HOSTS = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "npm" + "js.",
    "deb.deb" + "ian.org",
    "archive.ubu" + "ntu.com",
]
FORBIDDEN = re.compile(
    "|".join([rf"(?<![\w.~$}}>-]){folder}\w" for folder in HOME_FOLDERS] + [re.escape(host) for host in PACKAGE_HOSTS])
)


def complaints(name: str, text: str) -> list[str]:
    """A sentence for each line that names a place which only one machine has."""
    return [
        f"{name}:{number} names {match[0]!r}: say it without a machine's path or a package host"
        for number, line in enumerate(text.splitlines(), 1)
        if (match := FORBIDDEN.search(line))
    ]


def test_no_file_names_a_machine_or_a_package_host() -> None:
    """No text file of the project holds a home folder or the host of a package registry."""
    found = []
    for path in project_files():
        content = path.read_bytes()
        if b"\0" not in content:
            found += complaints(path.relative_to(ROOT).as_posix(), content.decode("utf-8", errors="replace"))

    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", [f"see {folder}someone" for folder in HOME_FOLDERS])
def test_a_home_folder_is_caught(line: str) -> None:
    """A path into someone's home folder earns one complaint."""
    assert len(complaints("README.md", line)) == 1


@pytest.mark.parametrize("host", PACKAGE_HOSTS)
def test_a_package_host_is_caught(host: str) -> None:
    """The host of a registry earns one complaint."""
    assert len(complaints("Makefile", f"--index-url https://{host}/simple")) == 1


@pytest.mark.parametrize(
    "line", ["/run/guestagent/x.sock", "${prefix}/ho" + "me/x", "net" + "/wo" + "rk/x", "ho" + "me/x"]
)
def test_other_paths_pass(line: str) -> None:
    """System paths and relative ones earn no complaint."""
    assert not complaints("README.md", line)
