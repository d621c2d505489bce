"""Compute Engine's Packet Mirroring over HTTP: the library's own message classes say what a request may hold.

Parameters and fields are those of the library (google-cloud-compute); paths, semantics, limits and reasons of errors
are of Google's reference and documentation. Nothing here was compared with Google itself.
"""

from collections.abc import Iterator
from typing import Any

from tests.mirror.gcp.policies import Policies
from tests.mirror.gcp.words import (
    BASE,
    COLLECTOR,
    HOST,
    NETWORK,
    PROJECT,
    REGION,
    ZONES,
    Body,
    Refusal,
    labels_of,
    page,
    zone_of,
)


class Fake(Policies):
    """The project, with all that mirroring needs of it."""

    def do_get_rule(self, request: Body) -> Body:
        name = f"projects/{request['project']}/regions/{request['region']}/forwardingRules/{request['forwardingRule']}"
        if name not in self.rules:
            raise Refusal(404, "notFound", f"The resource '{name}' was not found")
        return self.rules[name]

    def do_get_project(self, request: Body) -> Body:
        return {
            "name": PROJECT,
            "quotas": [
                {"metric": "NETWORKS", "limit": 5, "usage": 1},
                {"metric": "PACKET_MIRRORINGS", "limit": self.quota, "usage": len(self.policies)},
            ],
        }

    def do_list_instances(self, request: Body) -> Body:
        wanted = labels_of(request.get("filter", ""))
        found = [one for one in self.instances if all(one["labels"].get(key) == value for key, value in wanted)]
        found = [one for one in found if zone_of(one) not in self.silent_zones]
        paged, following = page(request, found)
        warning = {"code": "NO_RESULTS_ON_PAGE", "message": "There are no results for scope on this page."}
        scopes: dict[str, Body] = {f"zones/{zone}": {"warning": warning} for zone in ZONES}
        for one in paged:
            scope = f"zones/{zone_of(one)}"
            scopes[scope] = {"instances": [*scopes[scope].get("instances", ()), one]}
        for zone in self.silent_zones:
            scopes[f"zones/{zone}"] = {
                "warning": {"code": "UNREACHABLE", "message": "A given scope cannot be reached."}
            }
        return {"items": scopes, "nextPageToken": following}

    # -- for the tests --------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """An empty project with one collector and three subnetworks."""
        for one in (self.policies, self.rules, self.operations, self.request_ids):
            one.clear()
        for many in (self.instances, self.faults, self.failures, self.calls):
            many.clear()
        self.denied, self.silent_zones = set(), set()
        self.quota, self.slowness, self.after_write = 100, 2, lambda: None
        self.subnetworks = {f"{BASE}/subnetworks/{name}" for name in ("web", "db", "ops")}
        self.add_rule("sensors")

    def add_rule(self, name: str, *, is_collector: bool = True, scheme: str = "INTERNAL", region: str = REGION) -> str:
        """A forwarding rule in the network `prod`; its short URL."""
        url = f"projects/{PROJECT}/regions/{region}/forwardingRules/{name}"
        self.rules[url] = {
            "name": name,
            "selfLink": HOST + url,
            "network": HOST + NETWORK,
            "loadBalancingScheme": scheme,
            "isMirroringCollector": is_collector,
        }
        return url

    def add_vm(self, name: str, zone: str = ZONES[0], **more: Any) -> str:
        """A VM in the subnetwork `web` of the network `prod`; its short URL."""
        url = f"projects/{PROJECT}/zones/{zone}/instances/{name}"
        subnetworks = f"{HOST}projects/{PROJECT}/regions/{zone.rpartition('-')[0]}/subnetworks"
        self.instances.append(
            {
                "id": str(1000 + len(self.instances)),
                "name": name,
                "selfLink": HOST + url,
                "zone": f"{HOST}projects/{PROJECT}/zones/{zone}",
                "machineType": f"{HOST}projects/{PROJECT}/zones/{zone}/machineTypes/{more.get('kind', 'e2-medium')}",
                "status": "RUNNING",
                "labels": more.get("labels", {}),
                "tags": {"items": list(more.get("tags", ()))},
                "networkInterfaces": [
                    {
                        "network": f"{HOST}projects/{PROJECT}/global/networks/{more.get('network', 'prod')}",
                        "subnetwork": f"{subnetworks}/{more.get('subnet', 'web')}",
                    }
                ],
            }
        )
        return url

    def add_policy(self, name: str, **more: Any) -> Body:
        """A policy that somebody made by other means."""
        resources = {
            "instances": [{"url": HOST + url} for url in more.pop("instances", ())],
            "subnetworks": [{"url": HOST + url} for url in more.pop("subnetworks", ())],
            "tags": list(more.pop("tags", ())),
        }
        self.policies[name] = {
            "name": name,
            "network": {"url": HOST + NETWORK},
            "collectorIlb": {"url": HOST + COLLECTOR},
            "mirroredResources": resources,
            "priority": 1000,
            "enable": "TRUE",
            **more,
        }
        return self.policies[name]

    def settle(self) -> None:
        """All operations come to their end."""
        while any(not one.is_done for one in self.operations.values()):
            self._advance()

    def writes(self) -> list[str]:
        """The methods that were to change something."""
        return [handler for handler, _ in self.calls if handler in ("insert", "patch", "delete")]


def fake_project() -> Iterator[Fake]:
    """For a fixture."""
    fake = Fake()
    try:
        yield fake
    finally:
        fake.close()
