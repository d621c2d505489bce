"""`guestagent mirror` on a terminal, a pseudo-terminal here: the line of progress and the question of delete."""

import os
import pty
import sys
from collections.abc import Callable

import pytest

from guestagent.cli import main
from guestagent.mirror.terminal import OVER
from tests.mirror.aws.fake import Fake
from tests.mirror.aws.words import WEB

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
    """Reading shows itself, then each step how many are done of how many, over the one before; the last one ends it."""
    code, shown = on_terminal("create", *WEB)

    assert code == 0
    first, note, cleared, *states = shown.replace("\r\n", "\n").split(OVER)
    assert (first, note, cleared) == ("", "reading what is there ...", "")
    total = len(web.writes())
    assert [one.split(" ")[0] for one in states] == [f"{done}/{total}" for done in range(total + 1)]
    assert states[0].startswith(f"0/{total} create filter web")
    assert states[-1] == f"{total}/{total} done\n"


def test_asking_for_permissions_shows_how_far_it_is(web: Fake, on_terminal: Talk) -> None:
    """A dry run is a call for each step, of which there may be thousands."""
    code, shown = on_terminal("plan", *WEB, "--dry-run")

    assert code == 4
    states = shown.replace("\r\n", "\n").split(OVER)[3:]
    total = len(states) - 1
    assert states[0] == f"0/{total} ask for create filter web"
    assert states[-1] == f"{total}/{total} asked\n"


def test_nothing_to_do_shows_nothing(web: Fake, on_terminal: Talk) -> None:
    """Run again, create leaves the line empty."""
    on_terminal("create", *WEB)

    assert on_terminal("create", *WEB) == (0, f"{OVER}reading what is there ...{OVER}")


@pytest.mark.parametrize("answer, code, left", [("n\n", 1, 2), ("\n", 1, 2), ("y\n", 0, 0), ("yes\n", 0, 0)])
def test_delete_asks(web: Fake, on_terminal: Talk, answer: str, code: int, left: int) -> None:
    """Only yes deletes; the question says how many objects."""
    on_terminal("create", *WEB)
    count = sum(len(objects) for objects in web.objects.values())

    found, shown = on_terminal("delete", "--name", "web", answer=answer)

    assert found == code
    assert f"delete these {count} objects? [y/N]" in shown
    assert len(web.objects["session"]) == left
