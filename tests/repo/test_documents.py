"""What the documents tell people to type is what the command understands."""

import re
import shlex
from pathlib import Path

import pytest

from guestagent.cli import build_parser
from guestagent.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_SHELL = re.compile(r"```(?:sh|console)\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(r"^(?:\$ |VM +|Peer +)?(?:sudo )?(?:\.venv/bin/)?guestagent (.+)$", re.MULTILINE)
_LINK = re.compile(r"\]\((?!http)([^)#]+)\)")


def commands(text: str) -> list[list[str]]:
    """The words behind `guestagent` of every command in a shell block."""
    lines = [line for block in _SHELL.findall(text) for line in _COMMAND.findall(block.replace("\\\n", " "))]
    return [shlex.split(line.partition("|")[0], comments=True) for line in lines]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_document_parses(path: Path) -> None:
    """Verbs and flags that a document shows exist, with the values it gives them."""
    parser = build_parser()
    for words in commands(path.read_text()):
        if words[-1:] != ["--help"]:
            parser.parse_args(words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    """A link to a file of the project names one that is there."""
    for target in _LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), target


def test_a_wrong_flag_in_a_document_is_found() -> None:
    """Red first: a flag that is not there is refused."""
    ((words),) = commands("```sh\nsudo guestagent run --warp 9\n```")
    with pytest.raises(ConfigError, match="warp"):
        build_parser().parse_args(words)


def test_readme_shows_commands() -> None:
    """The extraction finds something to check."""
    assert len(commands(DOCUMENTS[0].read_text())) >= 2
