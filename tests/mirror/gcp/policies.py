"""Policies of packet mirroring: what Google takes of each field, and what it refuses."""

import re
from ipaddress import ip_network

from google.cloud import compute_v1 as compute

from tests.mirror.gcp.project import Project
from tests.mirror.gcp.routes import BODY
from tests.mirror.gcp.words import BASE, REGION, Body, Refusal, full, merge_patch, page, short, zone_of

NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
MOST = {"instances": 50, "subnetworks": 5, "tags": 5}
PROTOCOLS = {"tcp", "udp", "icmp", "esp", "ah", "ipip", "sctp"}


class Policies(Project):
    """By name; each change is an operation."""

    def _get(self, name: str) -> Body:
        if name not in self.policies:
            raise Refusal(404, "notFound", f"The resource '{BASE}/packetMirrorings/{name}' was not found")
        return self.policies[name]

    def _check_ready(self, name: str) -> None:
        target = f"{BASE}/packetMirrorings/{name}"
        if any(one.target == target and not one.is_done for one in self.operations.values()):
            raise Refusal(400, "resourceNotReady", f"The resource '{target}' is not ready")

    def do_insert(self, request: Body) -> Body:
        known = self._known("insert", request)
        if known:
            return known
        raw = request[BODY]
        for name in ("name", "network", "collectorIlb", "mirroredResources"):
            if not raw.get(name):
                raise Refusal(400, "required", f"Required field 'resource.{name}' not specified")
        target = f"{BASE}/packetMirrorings/{raw['name']}"
        pending = {one.target for one in self.operations.values() if not one.is_done}
        if raw["name"] in self.policies or target in pending:
            raise Refusal(409, "alreadyExists", f"The resource '{target}' already exists")
        if len(self.policies) >= self.quota:
            raise Refusal(403, "quotaExceeded", f"Quota 'PACKET_MIRRORINGS' exceeded.  Limit: {self.quota}.0 globally.")
        self.check(raw)

        def perform() -> None:
            self.policies[raw["name"]] = {"priority": 1000, "enable": "TRUE", **full(raw)}

        return self._operate("insert", request, target, perform)

    def do_patch(self, request: Body) -> Body:
        """JSON merge patch (RFC 7396), as the reference says; network, name and region stay."""
        known = self._known("patch", request)
        if known:
            return known
        name = request["packetMirroring"]
        old = self._get(name)
        self._check_ready(name)
        new = full(merge_patch(old, request[BODY]))
        for one in ("name", "network"):
            if new[one] != old[one]:
                raise Refusal(400, "invalid", f"Invalid value for field 'resource.{one}': it cannot be changed")
        self.check(new)

        def perform() -> None:
            self.policies[name] = new

        return self._operate("patch", request, f"{BASE}/packetMirrorings/{name}", perform)

    def do_delete(self, request: Body) -> Body:
        known = self._known("delete", request)
        if known:
            return known
        name = request["packetMirroring"]
        self._get(name)
        self._check_ready(name)

        def perform() -> None:
            self.policies.pop(name, None)

        return self._operate("delete", request, f"{BASE}/packetMirrorings/{name}", perform)

    def do_get(self, request: Body) -> Body:
        return self._get(request["packetMirroring"])

    def do_list_them(self, request: Body) -> Body:
        found, following = page(request, [self.policies[name] for name in sorted(self.policies)])
        return {"items": found, "nextPageToken": following}

    def do_test_permissions(self, request: Body) -> Body:
        self._get(request["resource"])
        asked = request["testPermissionsRequestResource"].get("permissions", ())
        return {"permissions": [one for one in asked if one not in self.denied]}

    def check(self, raw: Body) -> None:
        """What the reference says of each field."""
        invalid: list[str] = []
        resources = raw.get("mirroredResources", {})
        machines = {short(one["selfLink"]): one for one in self.instances}
        network = short(raw["network"]["url"])
        rule = self.rules.get(short(raw["collectorIlb"]["url"]))
        if not NAME.fullmatch(raw["name"]):
            invalid.append("name")
        if not rule or rule["loadBalancingScheme"] != "INTERNAL" or not rule["isMirroringCollector"]:
            invalid.append("collectorIlb")
        if raw.get("enable", "TRUE") not in compute.PacketMirroring.Enable.__members__:
            invalid.append("enable")
        if raw.get("filter", {}).get("direction", "BOTH") not in compute.PacketMirroringFilter.Direction.__members__:
            invalid.append("filter.direction")
        if not any(resources.get(kind) for kind in MOST):
            invalid.append("mirroredResources")
        invalid += [f"mirroredResources.{kind}" for kind, most in MOST.items() if len(resources.get(kind, ())) > most]
        for one in resources.get("instances", ()):
            machine = machines.get(short(one["url"]))
            if not machine or network not in {short(nic["network"]) for nic in machine["networkInterfaces"]}:
                invalid.append("mirroredResources.instances")
            elif not zone_of(machine).startswith(f"{REGION}-"):
                invalid.append("mirroredResources.instances.zone")
        for one in resources.get("subnetworks", ()):
            if short(one["url"]) not in self.subnetworks:
                invalid.append("mirroredResources.subnetworks")
        for one in raw.get("filter", {}).get("cidrRanges", ()):
            try:
                ip_network(one)
            except ValueError:
                invalid.append("filter.cidrRanges")
        for one in raw.get("filter", {}).get("IPProtocols", ()):
            if one not in PROTOCOLS and not (one.isdecimal() and int(one) <= 255):
                invalid.append("filter.IPProtocols")
        if invalid:
            raise Refusal(400, "invalid", f"Invalid value for field 'resource.{invalid[0]}'")
