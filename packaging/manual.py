"""Manual pages and completions, from what the command itself knows."""

import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from origin import PACKAGING, ROOT, epoch, version

sys.path.insert(0, str(ROOT))

import shtab

from guestagent.cli import VERBS, build_parser
from guestagent.flags import Option

SEE_ALSO = "**guestagent**(1), **guestagent-mirror**(1), **guestagent.toml**(5), **tcpdump**(1), **pcap-filter**(7)"
COMMAND = (
    "The agent, `run`, copies what crosses the VM's own NIC from a ring of the kernel to a collector, `collect`, which "
    "writes pcapng, feeds an IDS through a TAP device, or hands on to sensors. Every selected packet is delivered byte "
    "for byte or counted by the reason why not."
)
CONFIG = (
    "TOML. The keys have the names of the flags of **guestagent run**, `_` for `-`, and a flag wins. A key that is not "
    "known, or a value out of its range, is an error that names it. The file must belong to root or to the user of the "
    "agent and may be written by nobody else. **systemctl reload guestagent** reads it again; where it is wrong, what "
    "was in force stays."
)
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/guestagent",
    "zsh": "usr/share/zsh/vendor-completions/_guestagent",
}


def command_page() -> str:
    """guestagent.1 as markdown, from the table of verbs."""
    parts = [
        "# NAME\n\nguestagent - copies the traffic of a VM's own NIC to a collector and accounts for every packet",
        "# SYNOPSIS\n\n**guestagent** *VERB* [*options*]",
        f"# DESCRIPTION\n\n{COMMAND}",
        "# VERBS",
    ]
    for name, verb in VERBS.items():
        parts.append(f"## guestagent {name}\n\n{verb.help[0].upper()}{verb.help[1:]}.")
        if name == "mirror":
            parts.append("See **guestagent-mirror**(1).")
        else:
            parts += map(_definition, verb.options)
            if verb.epilog:
                parts.append(re.sub(r"(?m)^", "    ", verb.epilog.removeprefix("examples:\n")))
    parts += [
        "# EXIT STATUS",
        *_definitions(
            ("**0**", "Done."),
            ("**1**", "Failed while running."),
            ("**2**", "Wrong flags or config."),
            ("**3**", "This host lacks a privilege or a feature of the kernel."),
            ("**4**", "`mirror plan` has changes."),
            ("**130**", "Interrupted at the keyboard."),
        ),
        "# FILES",
        *_definitions(
            ("*/etc/guestagent/guestagent.toml*", "The agent's config: **guestagent.toml**(5)."),
            ("*/etc/guestagent/collect.toml*", "The collector's."),
            ("*/run/guestagent*", "Status sockets, which **guestagent status** asks."),
            ("*/var/lib/guestagent*", "What the service guestagent-collector writes."),
        ),
        f"# SEE ALSO\n\n{SEE_ALSO}",
    ]
    return "\n\n".join(parts)


def _definition(option: Option) -> str:
    metavar = str(option.more.get("metavar", "" if option.more.get("action") else option.names[-1].strip("-").upper()))
    names = ", ".join(f"**{one}**" for one in option.names)
    again = " Repeatable." if option.more.get("action") == "append" else ""
    text = f"{option.help}.".replace("%%", "%")
    choices = ", ".join(option.more.get("choices", ()))
    return f"{names} *{choices or metavar}*\n:   {text}{again}" if metavar else f"{names}\n:   {text}"


def _definitions(*pairs: tuple[str, str]) -> Iterable[str]:
    return (f"{term}\n:   {text}" for term, text in pairs)


def config_page(example: str) -> str:
    """guestagent.toml.5 as markdown, from the config that the package lays: each run of keys with what stands above."""
    opening, *sections = re.split(r"(?m)^# -- (.*?) -+$", example)
    parts = [
        "# NAME\n\nguestagent.toml - what the agent copies, where to, and what it may cost",
        f"# DESCRIPTION\n\n{CONFIG}",
        "# THE KEY THAT MUST BE SET",
        *_entries(opening),
    ]
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        parts += [f"# {title.upper()}", *_entries(text)]
    return "\n\n".join([*parts, f"# SEE ALSO\n\n{SEE_ALSO}"])


def _entries(text: str) -> Iterable[str]:
    key = re.compile(r'#?((?:[a-z_]+|"[^"]+") = .*|\[[a-z]+\])$')
    for paragraph in re.findall(r"(?m)((?:^# .*\n)+)((?:^(?:#[a-z\[\"]|[a-z]).*\n)+)", text):
        said = " ".join(line.removeprefix("# ") for line in paragraph[0].splitlines())
        keys = [found[1] for line in paragraph[1].splitlines() if (found := key.match(line))]
        # A value in quotation marks or brackets is to be shown as it is typed.
        yield f"`{'`, `'.join(keys)}`\n:   {said}"


def write_page(markdown: str, path: Path) -> None:
    """Set one page, whose name ends in its section, as roff."""
    name, section = path.stem, path.suffix.removeprefix(".")
    date = datetime.fromtimestamp(epoch(), UTC).strftime("%Y-%m-%d")
    # go-md2man takes the first heading for the title where there is none; ours replaces it.
    body = markdown if markdown.startswith("%") else f"% {name}\n\n{markdown}"
    done = subprocess.run(["go-md2man"], input=body, capture_output=True, text=True, check=True)
    title = f'.TH "{name.upper()}" "{section}" "{date}" "guestagent {version()}" "guestagent"\n'
    path.write_text(title + re.sub(r"(?m)^\.TH.*\n", "", done.stdout), encoding="utf-8")


def write_manual(into: Path) -> None:
    """man1 and man5 below this directory."""
    mirror = (ROOT / "docs" / "man" / "guestagent-mirror.1.md").read_text(encoding="utf-8")
    example = (PACKAGING / "etc" / "guestagent.toml").read_text(encoding="utf-8")
    pages = {
        "man1/guestagent.1": command_page(),
        "man1/guestagent-mirror.1": mirror,
        "man5/guestagent.toml.5": config_page(example),
    }
    for name, markdown in pages.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        write_page(markdown, into / name)


def completion(shell: str) -> str:
    """The script that completes the command's verbs and flags."""
    return shtab.complete(build_parser(), shell=shell)
