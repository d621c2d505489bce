"""The tree as the rules of tests/repo see it: its files, and what each module imports."""

import ast
import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "guestagent"

NOT_OURS = {".git", ".venv", "captures", "dist", "build", "__pycache__"}
"""Folders that a tree without git may hold beside the project's own files, caches (dot and _cache) apart."""


def modules() -> list[Path]:
    """Each Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def project_files() -> list[Path]:
    """Each file that is tracked, or would be by `git add .`; without git, each that does not look made by a tool."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = list(_walk())
    return sorted(path for name in listed if name and (path := ROOT / name).is_file())


def _walk() -> Iterator[str]:
    for folder, inner, names in os.walk(ROOT):
        inner[:] = [name for name in inner if name not in NOT_OURS and not name.endswith("_cache")]
        yield from (os.path.join(folder, name) for name in names)


def parse(path: Path) -> ast.Module:
    """The syntax tree of one file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.Module, module: str = "guestagent.unknown") -> list[tuple[int, str]]:
    """(line, dotted name) of every import anywhere in a module, functions and TYPE_CHECKING included.

    `from a.b import c` is `a.b.c`, since c may be a module; so is `import_module("a.b.c")` with a literal.
    `module` resolves relative imports: the module's dotted name, where a package ends in `.__init__`.
    """
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [(node.lineno, alias.name) for alias in names]
            case ast.ImportFrom(module=name, names=names, level=level):
                base = ".".join(module.split(".")[:-level]) if level else ""
                origin = ".".join(part for part in (base, name) if part)
                found += [(node.lineno, f"{origin}.{alias.name}") for alias in names]
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                absolute = importlib.util.resolve_name(name, module.rpartition(".")[0])
                found.append((node.lineno, absolute))
    return found


def dotted(path: Path) -> str:
    """`guestagent.capture.block` of guestagent/capture/block.py; a package ends in `.__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)
