"""`guestagent cloud-init render`: flags and the files they name become one text."""

import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from guestagent.cloudinit.recipe import CA_PATH, CERT_PATH, KEY_PATH, Recipe
from guestagent.cloudinit.render import FORMS
from guestagent.config import load_run
from guestagent.errors import ConfigError, RunError
from guestagent.values import tags

SETTINGS = (
    *("to", "interface", "filter", "slice", "keep", "seed", "dedupe"),
    *("cpu", "rate", "packets", "yield", "full", "ring", "metrics", "allow_cleartext"),
)
"""Flags that become keys of the agent's config under the same name."""
MOST_FILE_BYTES = 12 * 1024
"""EC2 takes 16 KB of user-data, the least of the clouds."""
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+~]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9a-fA-F:]{2,39}\](:[0-9]{1,5})?")
_PLAIN = re.compile(r"[\n\r\x20-\x7e]*")


def render(flags: dict[str, Any]) -> int:
    """Write the text to --output or to standard output. Raises ConfigError, RunError."""
    write(FORMS[flags["form"]](recipe_of(flags), flags["family"]), flags["output"] or "", "--output")
    return 0


def write(text: str, path: str, where: str) -> None:
    """Into a file, or to standard output. Raises RunError."""
    if not path:
        sys.stdout.write(text)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{where}: {path} can't be written: {error.strerror}") from error


def recipe_of(flags: dict[str, Any]) -> Recipe:
    """The recipe that the flags ask for, checked as the agent will check it. Raises ConfigError."""
    settings = {key: flags[key] for key in SETTINGS if flags.get(key) is not None}
    if not settings.get("to"):
        raise ConfigError("no --to: name the collector that the agents send to, as tls://collector.example")
    ca = _pem(flags.get("ca") or "", "--ca", "CERTIFICATE")
    if not ca and any(str(one).startswith("tls:") for one in settings["to"]):
        raise ConfigError(
            "no --ca: tls:// needs the authority that vouches for the collector, `guestagent pki` makes one"
        )
    tls = {"ca": CA_PATH, "cert": CERT_PATH, "key": KEY_PATH} if ca else {}
    load_run(None, {**settings, **{f"tls_{key}": path for key, path in tls.items()}})
    if tls:
        settings["tls"] = tls
    if flags.get("tag"):
        settings["tags"] = tags(dict(_pair(one) for one in flags["tag"]), "--tag")
    return Recipe(
        repository=_url(flags["repository"], "--repository"),
        repository_key=_pem(flags["repository_key"], "--repository-key", "PGP PUBLIC KEY BLOCK"),
        settings=settings,
        pin=_version(flags.get("pin") or ""),
        proxy=_url(flags["proxy"], "--proxy") if flags.get("proxy") else "",
        ca=ca,
        **_enrolment(flags, ca),
    )


def _enrolment(flags: dict[str, Any], ca: str) -> dict[str, str]:
    """The two fields of a recipe that bring a certificate."""
    where, path = flags.get("enrol") or "", flags.get("token_file") or ""
    if not where and not path:
        return {}
    if not (where and path and ca):
        raise ConfigError("--enrol, --token-file and --ca belong together: who signs, what for, and whom to believe")
    if not _HOST.fullmatch(where):
        raise ConfigError(f"--enrol: {where!r} is no address: write HOST or HOST:PORT")
    token = _read(path, "--token-file").strip()
    if not token.isalnum():
        raise ConfigError(f"--token-file: {path} holds no token: `guestagent pki token` makes one")
    return {"enrol": where, "token": token}


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--tag: {text!r} is no tag: write NAME=TEXT")
    return name, value


def _url(text: str, where: str) -> str:
    """An http or https URL without its last slash; it becomes a line of a package manager's settings."""
    try:
        parts = urlsplit(text)
        is_plain = text.isprintable() and not set(text) & set(" \"'\\;$`")
    except ValueError as error:
        raise ConfigError(f"{where}: {text!r} is no URL: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or not is_plain:
        raise ConfigError(f"{where}: {text!r} is no URL: write http://HOST/PATH or https://HOST/PATH")
    if parts.password or parts.username:
        raise ConfigError(f"{where}: everybody on the VM could read the name or password in the URL: leave it out")
    return text.rstrip("/")


def _version(text: str) -> str:
    if text and not _VERSION.fullmatch(text):
        raise ConfigError(f"--pin: {text!r} is no version: write it as 1.2.3")
    return text


def _pem(path: str, where: str, kind: str) -> str:
    """The armoured text in a file; empty for none. What is named KEY without PUBLIC is refused."""
    if not path:
        return ""
    text = _read(path, where)
    if "PRIVATE KEY" in text:
        raise ConfigError(
            f"{where}: {path} holds a private key, which everybody on the VM could read: give the public one"
        )
    if f"-----BEGIN {kind}-----" not in text or len(text) > MOST_FILE_BYTES or not _PLAIN.fullmatch(text):
        raise ConfigError(f"{where}: {path} holds no {kind} in ASCII armour")
    return text


def _read(path: str, where: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(MOST_FILE_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"{where}: {path} can't be read: {reason}") from error
