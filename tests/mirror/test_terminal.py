"""`guestagent mirror` on a terminal, a pseudo-terminal here: the line of progress and the question of delete."""

import os
import pty
import sys
from collections.abc import Callable

import pytest

from guestagent.cli import main
from tests.mirror.ec2_fake import Fake
from tests.mirror.test_aws import WEB

Talk = Callable[..., tuple[int, str]]


def read_all(terminal: int) -> str:
    """What was written to it; one read gives a part."""
    os.set_blocking(terminal, False)
    found = b""
    try:
        while True:
            found += os.read(terminal, 65536)
    except BlockingIOError:
        return found.decode()


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Runs the command with standard input and error on a terminal: exit code, and what that shows."""

    def run(*words: str, answer: str = "") -> tuple[int, str]:
        ours, theirs = pty.openpty()
        os.write(ours, answer.encode())
        with os.fdopen(theirs, "r+b", buffering=0) as raw, open(raw.fileno(), closefd=False) as stdin:
            with open(raw.fileno(), "w", closefd=False) as stderr, monkeypatch.context() as patch:
                patch.setattr(sys, "stdin", stdin)
                patch.setattr(sys, "stderr", stderr)
                code = main(["mirror", "aws", *words])
            shown = read_all(ours)
        os.close(ours)
        return code, shown

    return run


@pytest.fixture
def web(ec2: Fake) -> Fake:
    """Two web servers and a sensor."""
    for number in (1, 2):
        ec2.add_instance(number, tags={"role": "web"})
    ec2.add_instance(9)
    return ec2


def test_progress_is_one_line_that_is_written_over(web: Fake, on_terminal: Talk) -> None:
    """Each step shows how many are done of how many, over the one before, and the last one ends the line."""
    code, shown = on_terminal("create", *WEB)

    assert code == 0
    states = shown.replace("\r\n", "\n").split("\r\x1b[K")
    assert states[0] == ""
    total = len(web.writes())
    assert [one.split(" ")[0] for one in states[1:]] == [f"{done}/{total}" for done in range(total + 1)]
    assert states[1].startswith(f"0/{total} create filter web")
    assert states[-1] == f"{total}/{total} done\n"


@pytest.mark.parametrize("answer, code, left", [("n\n", 1, 2), ("\n", 1, 2), ("y\n", 0, 0), ("yes\n", 0, 0)])
def test_delete_asks(web: Fake, on_terminal: Talk, answer: str, code: int, left: int) -> None:
    """Only yes deletes; the question says how many objects."""
    on_terminal("create", *WEB)
    count = sum(len(objects) for objects in web.objects.values())

    found, shown = on_terminal("delete", "--name", "web", answer=answer)

    assert found == code
    assert f"delete these {count} objects? [y/N]" in shown
    assert len(web.objects["session"]) == left
