"""A crash at any transaction of `mirror ovs`, or two runs at once, is mended; what is ours no more stays."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.mirror.ovs.words import WEB, Run, state
from tests.mirror.ovsdb_server import Json, OvsdbServer, Proxy, Severed

pytest.importorskip("ovsdbapp")


def killed(proxy: Proxy, transaction: int, answered: bool, words: tuple[str, ...]) -> None:
    """Run the command as a user does, and SIGKILL it at this transaction, before the server has it or after."""
    process: list[subprocess.Popen[bytes]] = []
    left = [transaction]

    def strike(request: Json) -> None:
        left[0] -= request["method"] == "transact"
        if left[0] == 0:
            os.kill(process[0].pid, signal.SIGKILL)
            process[0].wait()
            raise Severed

    if answered:
        proxy.after = strike
    else:
        proxy.before = strike
    command = [sys.executable, "-m", "guestagent", "mirror", "ovs", *words, "--db", proxy.db]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        process.append(child)
    assert child.returncode == -signal.SIGKILL
    proxy.before = proxy.after = lambda request: None


TRANSACTIONS = 2
"""Of a create with a tunnel: the tunnel with a mirror that selects nothing, and what it selects."""


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("transaction", range(1, TRANSACTIONS + 1))
def test_a_crash_at_a_transaction_is_repaired(
    switch: OvsdbServer, mirror: Run, proxy: Proxy, transaction: int, answered: bool
) -> None:
    """SIGKILL before or after the server did it: a tunnel is never without its mirror, the next run goes on, nothing is
    there twice; the same for delete."""
    before = state(switch)
    killed(proxy, transaction, answered, ("create", *WEB))
    assert len(switch.rows("Mirror")) == switch.vsctl("list-ports br0").count("ga-web")
    assert mirror("create", *WEB)[0] == 0
    assert mirror("status", "--name", "web")[0] == 0
    assert len(switch.rows("Mirror")) == 1

    killed(proxy, 1, answered, ("delete", "--name", "web", "--yes"))
    assert mirror("delete", "--name", "web", "--yes")[0] == 0
    assert state(switch) == before


def test_two_at_once_make_one(
    switch: OvsdbServer, mirror: Run, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the look and the transaction somebody else makes the same mirror: the second finds it, and makes none."""
    ran = []

    def overtake(request: Json) -> None:
        if request["method"] == "transact" and not ran:
            ran.append(
                subprocess.run(
                    [sys.executable, "-m", "guestagent", "mirror", "ovs", "create", *WEB, "--db", switch.db], check=True
                )
            )

    proxy.before = overtake
    assert mirror("create", *WEB, db=proxy.db)[0] == 0

    assert ran
    assert len(switch.rows("Mirror")) == 1
    assert "ga-web-2" not in switch.vsctl("show")


@pytest.mark.parametrize(
    "words",
    [("delete", "--name", "web", "--yes"), ("create", *WEB, "--packet-length", "64")],
    ids=["delete", "update"],
)
def test_what_is_ours_no_more_is_left_alone(
    switch: OvsdbServer, mirror: Run, proxy: Proxy, words: tuple[str, ...]
) -> None:
    """Between the look and the transaction somebody takes our mark off: refused, and nothing else changes."""
    mirror("create", *WEB)
    after: list[Any] = []

    def take(request: Json) -> None:
        if request["method"] == "transact" and not after:
            switch.vsctl("clear mirror web external_ids")
            after.append(state(switch))

    proxy.before = take
    code, _, said = mirror(*words, db=proxy.db)

    assert (code, "took our mark off" in said) == (1, True)
    assert [state(switch)] == after
