"""Facts of Google's Packet Mirroring that no API tells. Pure.

Source: the reference of packetMirrorings (Compute Engine API v1, revision of 2026-11-06) and the Packet Mirroring page
of the VPC documentation as of FACTS_DATE. Google's own answer is final.
"""

FACTS_DATE = "2026-11"

MOST_OF_POLICY = {"instances": 50, "subnetworks": 5, "tags": 5}
"""What one policy may name. The reference has the first two; five tags are the documentation's."""
DEFAULT_PRIORITY = 1000
"""Of a policy that says none; the lowest number wins, and one policy applies to an instance."""
PAGE = 500
"""The most that Compute Engine gives in one answer."""
QUOTA = "PACKET_MIRRORINGS"
"""Policies of a project, as the project's own answer names it."""
PROTOCOL_NAMES = {1: "icmp", 4: "ipip", 6: "tcp", 17: "udp", 50: "esp", 51: "ah", 132: "sctp"}
"""Those that the API has names for; others go by number."""
COST = "what Google's price list asks for the mirrored bytes, and for the load balancer"
LIMITS = "made on the VM's host: copies share the VM's own bandwidth"
MTU = "any that the collector's network has, too"
NEWER_WAY = (
    "Google recommends Network Security Integration for new deployments; this is Packet Mirroring, which sends the "
    "copies to an internal load balancer"
)


def eligible(machine_type: str) -> tuple[str, str]:
    """`yes` or `unknown`, and the reason: the documentation names no type of VM that cannot be mirrored."""
    if machine_type.endswith("-metal"):
        return (
            "unknown",
            f"the documentation of {FACTS_DATE} does not say whether bare metal can: Google has the last word",
        )
    return "yes", f"Packet Mirroring takes VMs of every type (documentation of {FACTS_DATE})"
