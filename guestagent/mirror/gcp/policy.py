"""GCP: the custom role of `mirror gcp`, as `gcloud iam roles create --file` takes it. Pure."""

from typing import Any

CALLS = {
    ("instances", "aggregated_list"): "compute.instances.list",
    ("forwarding_rules", "get"): "compute.forwardingRules.get",
    ("packet_mirrorings", "list"): "compute.packetMirrorings.list",
    ("packet_mirrorings", "get"): "compute.packetMirrorings.get",
    ("packet_mirrorings", "insert"): "compute.packetMirrorings.create",
    ("packet_mirrorings", "patch"): "compute.packetMirrorings.update",
    ("packet_mirrorings", "delete"): "compute.packetMirrorings.delete",
    ("packet_mirrorings", "test_iam_permissions"): "",
    ("region_operations", "wait"): "compute.regionOperations.get",
    ("projects", "get"): "compute.projects.get",
}
"""Client and method: the permission that the call needs; asking for one's own permissions needs none."""
USES = (
    "compute.forwardingRules.use",
    "compute.instances.get",
    "compute.networks.mirror",
    "compute.subnetworks.mirror",
)
"""Asked for on what a new or changed policy names."""


def document() -> dict[str, Any]:
    """All that `mirror gcp` calls and uses, and nothing else."""
    return {
        "title": "guestagent mirror",
        "description": "Packet Mirroring: plan, create, list, status, delete",
        "stage": "GA",
        "includedPermissions": sorted({*filter(None, CALLS.values()), *USES}),
    }
