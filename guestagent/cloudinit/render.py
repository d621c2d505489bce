"""A recipe as text that cloud-init takes. Pure.

User-data is a cloud-config. Vendor-data is a shell script: of a vendor's cloud-config cloud-init drops each list that
the user's own has, too, such as `packages` and `runcmd`, but it runs a vendor's script beside whatever the user asks.
"""

import json
import shlex
from collections.abc import Callable, Sequence

from guestagent.cloudinit.recipe import FAMILIES, OWN, File, Recipe, commands, own_files

_END_OF_FILE = "END_OF_GUESTAGENT_FILE"


def user_data(recipe: Recipe, family: str) -> str:
    """A `#cloud-config`."""
    before = FAMILIES[family].files(recipe)
    lines = [
        "#cloud-config",
        "# Made by `guestagent cloud-init render`. Everybody on the machine may read this: no lasting secret is in it.",
        "package_update: true",
        "packages: [guestagent]",
        "write_files:",
        *(line for file in [*before, *own_files(recipe)] for line in _entry(file)),
        "runcmd:",
        # JSON texts are YAML texts.
        *(f"  - {json.dumps(command)}" for command in commands(recipe)),
    ]
    return "\n".join(lines) + "\n"


def vendor_data(recipe: Recipe, family: str) -> str:
    """A shell script."""
    recipe_lines = [
        "#!/bin/sh",
        "# Made by `guestagent cloud-init render --form vendor-data`: brings the agent, once for each instance.",
        "set -eu",
        "! systemctl -q is-enabled guestagent 2>/dev/null || exit 0",
        "put() { # PATH MODE OWNER",
        '    mkdir -p "${1%/*}"',
        '    cat > "$1"',
        '    chown "$3" "$1"',
        '    chmod "$2" "$1"',
        "}",
        *_puts(FAMILIES[family].files(recipe)),
        FAMILIES[family].install.rstrip("\n"),
        *_puts(own_files(recipe)),
        *(shlex.join(command) for command in commands(recipe)),
    ]
    return "\n".join(recipe_lines) + "\n"


def openstack_vendor_data(recipe: Recipe, family: str) -> str:
    """The JSON file that Nova's `vendordata_jsonfile_path` names."""
    return json.dumps({"cloud-init": vendor_data(recipe, family)}, indent=2) + "\n"


FORMS: dict[str, Callable[[Recipe, str], str]] = {
    "user-data": user_data,
    "vendor-data": vendor_data,
    "openstack": openstack_vendor_data,
}


def _entry(file: File) -> list[str]:
    """A list item of `write_files`; a literal block, whose lines YAML takes as they are."""
    return [
        f"  - path: {file.path}",
        f"    owner: {file.owner}",
        f'    permissions: "{file.mode}"',
        *(["    defer: true"] if file.owner == OWN else []),
        # The indentation is said: a first line of the text may begin with spaces of its own.
        "    content: |2",
        *(f"      {line}" if line else "" for line in file.text.rstrip("\n").split("\n")),
    ]


def _puts(files: Sequence[File]) -> list[str]:
    """Here-documents, whose lines the shell takes as they are."""
    lines = []
    for file in files:
        lines.append(f"put {file.path} {file.mode} {file.owner} <<'{_END_OF_FILE}'")
        lines += [*file.text.rstrip("\n").split("\n"), _END_OF_FILE]
    return lines
