"""The changelog keeps its form, and the version stands in one place."""

import re
import tomllib

import pytest

from guestagent import __version__
from tests.repo.source import ROOT, project_files

SECTIONS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
RELEASE = re.compile(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d")
VERSION = re.compile(r"""^\s*(?:__version__|version)\s*(?::\s*\w+\s*)?=\s*["']""", re.MULTILINE)
"""An assignment of a version, in Python or TOML."""


def complaints(text: str) -> list[str]:
    """A sentence for each departure of a changelog from its form."""
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    found = []
    if headings[:1] != ["[Unreleased]"]:
        found.append("the first heading of CHANGELOG.md is not '## [Unreleased]'")
    found += [f"'## {one}' is not '[1.2.3] - 2026-01-31'" for one in headings[1:] if not RELEASE.fullmatch(one)]
    for release in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        name = release.splitlines()[0]
        sections = re.findall(r"^### (.*)$", release, re.MULTILINE)
        if sections != [one for one in SECTIONS if one in sections]:
            found.append(f"{name}: sections are {sections}; allowed, in this order, each once: {SECTIONS}")
    return found


def test_the_changelog_has_its_form() -> None:
    """CHANGELOG.md opens with Unreleased, and all sections have known names in their order."""
    assert not complaints((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        "# Changelog\n\n## [0.1.0] - 2026-01-31\n",
        "# Changelog\n",
        "## [Unreleased]\n\n## 0.1.0\n",
        "## [Unreleased]\n\n### Fixed\n\n### Added\n",
        "## [Unreleased]\n\n### New\n",
        "## [Unreleased]\n\n### Added\n\n### Added\n",
    ],
)
def test_a_changelog_out_of_form_is_caught(text: str) -> None:
    """Each planted departure earns one complaint."""
    assert len(complaints(text)) == 1


def version_homes(texts: dict[str, str]) -> list[str]:
    """Names of the files that assign a version."""
    return sorted(name for name, text in texts.items() if VERSION.search(text))


def test_the_version_stands_in_one_place() -> None:
    """Only guestagent/__init__.py assigns a version; the build reads it there, and it is one that sorts."""
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in project_files()
        if path.name == "pyproject.toml" or (path.suffix == ".py" and "tests" not in path.relative_to(ROOT).parts)
    }
    project = tomllib.loads(texts["pyproject.toml"])

    assert version_homes(texts) == ["guestagent/__init__.py"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "guestagent/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", __version__)


def test_a_second_version_is_caught() -> None:
    """A version in pyproject.toml or in another module is found; other uses of the word are not."""
    texts = {
        "pyproject.toml": '[project]\nname = "guestagent"\nversion = "0.1.0"\n',
        "guestagent/cli.py": '__version__: str = "0.1.0"\n',
        "guestagent/wire.py": 'VERSION = 1\nversion_text = "1"\npython_version = "3.11"\n',
    }

    assert version_homes(texts) == ["guestagent/cli.py", "pyproject.toml"]
