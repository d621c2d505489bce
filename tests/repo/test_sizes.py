"""Small pieces: files and functions fit on a few screens, each module says what it is for, and only the edge prints."""

import ast

import pytest

from tests.repo.source import PACKAGE, modules

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAY_PRINT = ("cli.py", "check.py", "demo.py", "observe/")
"""Where a person is addressed; everything else logs or returns."""


def complaints(name: str, text: str) -> list[str]:
    """A sentence for each rule that one file of the package breaks; `name` is relative to the package."""
    tree = ast.parse(text, name)
    found = []
    if (lines := len(text.splitlines())) > MAX_FILE_LINES:
        found.append(f"{name} has {lines} lines; split it by idea at {MAX_FILE_LINES}")
    if tree.body and not (ast.get_docstring(tree) or "").strip():
        found.append(f"{name} has no docstring: say in one sentence what it is for")
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found.append(
                        f"{name}:{node.lineno} {node.name} has {lines} lines; split it at {MAX_FUNCTION_LINES}"
                    )
            case ast.Call(func=ast.Name(id="print")) if not name.startswith(MAY_PRINT):
                found.append(f"{name}:{node.lineno} prints; log it, or return it to the command line")
    return found


def test_each_file_is_small_and_says_what_it_is_for() -> None:
    """No file of the package breaks a size limit, lacks its docstring or prints where it may not."""
    files = modules()
    found = [
        complaint
        for path in files
        for complaint in complaints(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    ]

    assert files
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "name, text",
    [
        ("capture/ring.py", '"""Doc."""\n' + "x = 1\n" * MAX_FILE_LINES),
        ("capture/ring.py", '"""Doc."""\ndef long():\n' + "    x = 1\n" * MAX_FUNCTION_LINES),
        (
            "capture/ring.py",
            '"""Doc."""\nclass A:\n    async def long(self):\n' + "        x = 1\n" * MAX_FUNCTION_LINES,
        ),
        ("capture/ring.py", "import json\n"),
        ("capture/__init__.py", '""" """\nimport json\n'),
        ("capture/ring.py", '"""Doc."""\nprint("here")\n'),
    ],
    ids=["file", "function", "method", "docstring", "blank-docstring", "print"],
)
def test_a_broken_rule_is_caught(name: str, text: str) -> None:
    """Each planted violation earns exactly one complaint."""
    assert len(complaints(name, text)) == 1


@pytest.mark.parametrize(
    "name, text",
    [
        ("capture/ring.py", '"""Doc."""\n' + "x = 1\n" * (MAX_FILE_LINES - 1)),
        ("capture/ring.py", '"""Doc."""\ndef long():\n' + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)),
        ("capture/__init__.py", ""),
        ("cli.py", '"""Doc."""\nprint("here")\n'),
        ("observe/status.py", '"""Doc."""\nprint("here")\n'),
    ],
    ids=["file", "function", "empty-init", "cli", "status"],
)
def test_what_just_fits_passes(name: str, text: str) -> None:
    """The limit itself, an empty package file and the printing edge earn no complaint."""
    assert not complaints(name, text)
