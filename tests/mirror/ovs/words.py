"""What the tests of `mirror ovs` say and mean: a tunnel, a choice, and all that a mirror may touch."""

from collections.abc import Callable
from typing import Any

from tests.mirror.ovsdb_server import Json, OvsdbServer

Run = Callable[..., tuple[int, Any, str]]
VXLAN = "vxlan://10.0.0.9?vni=7"
WEB = ("--name", "web", "--source", "port:vm1", "--target", VXLAN)


def state(server: OvsdbServer) -> list[dict[str, Json]]:
    """All that a mirror may touch, but for the count of changes."""
    return [server.rows(table) for table in ("Bridge", "Port", "Interface", "Mirror")]


def one_mirror(server: OvsdbServer) -> Json:
    ((_, row),) = server.rows("Mirror").items()
    return row
