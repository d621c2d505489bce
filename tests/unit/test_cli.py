"""What ends a verb is said in one sentence, with whose fault it is."""

import subprocess
import sys

import pytest

MAIN = "import sys; sys.modules[{!r}] = None; from guestagent.cli import main; sys.exit(main({!r}))"
COLLECT = ["collect", "--listen", "tcp://127.0.0.1:0", "--write", "captures"]


def ends_with(script: str, code: int, sentence: str) -> None:
    """A Python of its own runs the script and says one line."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert done.stderr.startswith(sentence)


@pytest.mark.parametrize(
    "module, verb, code, sentence",
    [
        ("psutil", COLLECT, 3, f"guestagent: {sys.executable} lacks the module psutil: install its package (psutil: "),
        ("select", COLLECT, 3, f"guestagent: {sys.executable} lacks the module select of Python's own library:"),
        ("guestagent.collect", COLLECT, 1, "guestagent: a bug of ours, ModuleNotFoundError: "),
    ],
)
def test_a_module_that_is_missing_is_named(module: str, verb: list[str], code: int, sentence: str) -> None:
    """One of another package is the host's to mend, one of our own is a bug; no traceback either way."""
    ends_with(MAIN.format(module, verb), code, sentence)


FAILING = """
import resource, sys
from guestagent import cli
def fail(flags): raise {}("error return without exception set")
cli.VERBS["collect"] = cli.VERBS["collect"]._replace(run=fail)
resource.setrlimit(resource.RLIMIT_AS, ({}, resource.RLIM_INFINITY))
sys.exit(cli.main({!r}))
"""


@pytest.mark.parametrize(
    "error, limit, code, sentence",
    [
        ("MemoryError", "resource.RLIM_INFINITY", 3, "guestagent: memory ran out: "),
        ("SystemError", "1 << 30", 3, "guestagent: memory ran out: "),
        ("SystemError", "resource.RLIM_INFINITY", 1, "guestagent: a bug of ours, SystemError: "),
    ],
)
def test_python_that_gets_no_memory_is_told_as_such(error: str, limit: str, code: int, sentence: str) -> None:
    """CPython fails in disorder where it gets none; without a limit on its memory that is a bug."""
    ends_with(FAILING.format(error, limit, COLLECT), code, sentence)
