"""A real ovsdb-server with two bridges, a proxy before it, and the command pointed there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guestagent.cli import main
from guestagent.mirror.ovs import provider as ovs
from tests.mirror.ovs.words import Run
from tests.mirror.ovsdb_server import OvsdbServer, Proxy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OvsdbServer]:
    """One for all tests of this file, emptied for each."""
    one = OvsdbServer(tmp_path_factory.mktemp("ovsdb"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ovs, "LOOK_SECONDS", 0.0)  # there is no switch that would tell anything
        yield one
    one.stop()


@pytest.fixture
def switch(server: OvsdbServer) -> OvsdbServer:
    """Two bridges: vm1, vm2 and col0 on br0, vm3 and col1 on br1; vm1 and vm3 bear role=web."""
    server.reset()
    server.vsctl(
        "add-br br0 -- add-br br1 -- add-port br0 vm1 -- add-port br0 vm2 -- add-port br0 col0 -- add-port br1 vm3 -- "
        "add-port br1 col1 -- set interface vm1 external_ids:role=web external_ids:vm-id=w1 -- "
        "set interface vm3 external_ids:role=web"
    )
    return server


@pytest.fixture
def proxy(switch: OvsdbServer, tmp_path: Path) -> Iterator[Proxy]:
    """Between the command and the server."""
    one = Proxy(tmp_path, switch)
    yield one
    one.stop()


@pytest.fixture
def mirror(switch: OvsdbServer, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `guestagent mirror ovs ... --json`: exit code, document, errors."""

    def run(action: str, *words: str, db: str = switch.db) -> tuple[int, Any, str]:
        code = main(["mirror", "ovs", action, "--db", db, "--json", *words])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run
