"""How each method of the library's clients is reached, and what it needs: the table that the fake serves by."""

import re
from dataclasses import dataclass
from typing import Any

from google.cloud import compute_v1 as compute


@dataclass
class Route:
    """A method of a client: how it is reached, the class of its request, which field is the body, what it needs."""

    method: str
    path: re.Pattern[str]
    request: Any
    handler: str
    permission: str
    body: str = ""


def route(method: str, path: str, request: Any, handler: str, permission: str, body: str = "") -> Route:
    """A row; `{name}` in the path is a field of the request."""
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
    return Route(method, re.compile(f"/compute/v1/projects/{pattern}"), request, handler, permission, body)


MIRRORINGS = "{project}/regions/{region}/packetMirrorings"
BODY = "packetMirroringResource"
ROUTES = (
    route("POST", MIRRORINGS, compute.InsertPacketMirroringRequest, "insert", "compute.packetMirrorings.create", BODY),
    route("GET", MIRRORINGS, compute.ListPacketMirroringsRequest, "list_them", "compute.packetMirrorings.list"),
    route(
        "GET",
        f"{MIRRORINGS}/{{packetMirroring}}",
        compute.GetPacketMirroringRequest,
        "get",
        "compute.packetMirrorings.get",
    ),
    route(
        "PATCH",
        f"{MIRRORINGS}/{{packetMirroring}}",
        compute.PatchPacketMirroringRequest,
        "patch",
        "compute.packetMirrorings.update",
        BODY,
    ),
    route(
        "DELETE",
        f"{MIRRORINGS}/{{packetMirroring}}",
        compute.DeletePacketMirroringRequest,
        "delete",
        "compute.packetMirrorings.delete",
    ),
    route(
        "POST",
        f"{MIRRORINGS}/{{resource}}/testIamPermissions",
        compute.TestIamPermissionsPacketMirroringRequest,
        "test_permissions",
        "",
        "testPermissionsRequestResource",
    ),
    route(
        "POST",
        "{project}/regions/{region}/operations/{operation}/wait",
        compute.WaitRegionOperationRequest,
        "wait",
        "compute.regionOperations.get",
    ),
    route(
        "GET",
        "{project}/aggregated/instances",
        compute.AggregatedListInstancesRequest,
        "list_instances",
        "compute.instances.list",
    ),
    route(
        "GET",
        "{project}/regions/{region}/forwardingRules/{forwardingRule}",
        compute.GetForwardingRuleRequest,
        "get_rule",
        "compute.forwardingRules.get",
    ),
    route("GET", "{project}", compute.GetProjectRequest, "get_project", "compute.projects.get"),
)
USED = {
    "compute.forwardingRules.use": "forwardingRules/sensors",
    "compute.instances.get": "instances/any",
    "compute.networks.mirror": "networks/prod",
    "compute.subnetworks.mirror": "subnetworks/any",
}
"""Permissions on what a new or changed policy names, and an example of each."""
