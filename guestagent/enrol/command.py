"""The three commands of enrolment: `pki token`, `pki serve` at the authority, `enrol` in the VM."""

import sys
import time
from pathlib import Path
from typing import Any

from guestagent.config import load_run
from guestagent.endpoint import parse_endpoint
from guestagent.enrol import tokens
from guestagent.enrol.client import enrol
from guestagent.errors import ConfigError, HostError
from guestagent.pki import NEEDS

DEFAULT_PORT = 4796


def make_token(flags: dict[str, Any]) -> int:
    """Print a token for the names that `pki token NAMES` gives."""
    names = flags["name"] or ""
    if not names:
        raise ConfigError("pki token: whose? Give a name, or a pattern as 'web-*'")
    token = tokens.grant(Path(flags["dir"]), names, flags["minutes"], flags["uses"], time.time())
    sys.stdout.write(f"{token}\n")
    return 0


def serve_authority(flags: dict[str, Any]) -> int:
    """Sign for those who show one, until interrupted."""
    if not flags["name"] or not flags["listen"]:
        raise ConfigError("pki serve: give the name of its certificate and --listen HOST:PORT")
    try:
        from guestagent.enrol.server import serve
    except ImportError:
        raise HostError(NEEDS) from None
    return serve(Path(flags["dir"]), flags["name"], *address(flags["listen"], "--listen"))


def enrol_here(flags: dict[str, Any]) -> int:
    """Get this VM's certificate."""
    config = load_run(flags["config"], {})
    host, port = address(flags["authority"], "enrol")
    sys.stdout.write(f"{enrol(config, flags['config'], host, port, flags['token_file'])}\n")
    return 0


def address(text: str, where: str) -> tuple[str, int]:
    """HOST[:PORT]. Raises ConfigError."""
    has_port = text.rpartition(":")[2].isdecimal() and not text.endswith("]") and (text.count(":") == 1 or "]:" in text)
    found = parse_endpoint(f"tls://{text}" if has_port else f"tls://{text}:{DEFAULT_PORT}", where)
    return found.host, found.port
