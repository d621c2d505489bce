"""The custom role that we print, against what the calls of a whole life need.

Google publishes no data set of permissions that a package brings; which call needs which is of its documentation.
"""

import json
from collections.abc import Callable
from typing import Any

from guestagent.mirror.gcp.policy import CALLS
from tests.mirror.gcp.choice import WEB
from tests.mirror.gcp.fake import Fake
from tests.mirror.gcp.routes import ROUTES, USED

Run = Callable[..., tuple[int, Any, str]]


def test_every_call_is_granted_and_nothing_else(project: Fake, mirror_gcp: Run, mirror_gcp_json: Run) -> None:
    """The permissions of the role are those of the calls in a life of a mirror, and those for what a policy names."""
    project.add_vm("web-1", labels={"role": "web"})
    mirror_gcp_json("create", *WEB)
    project.slowness = 9
    mirror_gcp_json("plan", *WEB, "--filter", "tcp", "--dry-run")
    mirror_gcp_json("create", *WEB, "--filter", "tcp")
    mirror_gcp_json("delete", "--name", "web", "--yes")
    permissions = {one.handler: one.permission for one in ROUTES}
    seen = {permissions[handler] for handler, _ in project.calls} - {""}

    code, printed, _ = mirror_gcp("policy")

    role = json.loads(printed)
    assert code == 0
    # `get` follows a name that is taken, which happens after a crash.
    assert set(role["includedPermissions"]) == seen | {"compute.packetMirrorings.get", *USED}


def test_both_tables_agree() -> None:
    """Our table of calls and the fake's routes name the same permissions."""
    assert sorted(CALLS.values()) == sorted(one.permission for one in ROUTES)


def test_without_one_permission_its_name_is_said(project: Fake, mirror_gcp: Run) -> None:
    """Take any permission of a call, or on what a policy names, away: the command fails and names it."""
    project.add_vm("web-1", labels={"role": "web"})
    for permission in ("compute.instances.list", "compute.packetMirrorings.create", "compute.projects.get", *USED):
        project.denied = {permission}
        code, _, said = mirror_gcp("create", *WEB)
        assert code == 1
        assert f"lacks {permission} on " in said
