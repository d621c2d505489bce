"""What ends a verb is said in one sentence, with whose fault it is."""

import subprocess
import sys

import pytest

MAIN = "import sys; sys.modules[{!r}] = None; from guestagent.cli import main; sys.exit(main({!r}))"
COLLECT = ["collect", "--listen", "tcp://127.0.0.1:0", "--write", "captures"]


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
    done = subprocess.run(
        [sys.executable, "-c", MAIN.format(module, verb)], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert done.stderr.startswith(sentence)
