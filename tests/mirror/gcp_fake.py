"""Compute Engine's Packet Mirroring over HTTP: the library's own message classes say what a request may hold.

Parameters and fields are those of the library (google-cloud-compute); paths, semantics, limits and reasons of errors
are of Google's reference and documentation. Nothing here was compared with Google itself.
"""

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from google.cloud import compute_v1 as compute
from google.protobuf.json_format import ParseError

Body = dict[str, Any]
PROJECT, REGION, ZONES = "acme", "europe-west3", ("europe-west3-a", "europe-west3-b", "us-central1-a")
HOST = "https://www.googleapis.com/compute/v1/"
BASE = f"projects/{PROJECT}/regions/{REGION}"
NETWORK = f"projects/{PROJECT}/global/networks/prod"
COLLECTOR = f"{BASE}/forwardingRules/sensors"
NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
MOST = {"instances": 50, "subnetworks": 5, "tags": 5}
MOST_OF_PAGE = 500
USED = {
    "compute.forwardingRules.use": "forwardingRules/sensors",
    "compute.instances.get": "instances/any",
    "compute.networks.mirror": "networks/prod",
    "compute.subnetworks.mirror": "subnetworks/any",
}
"""Permissions on what a new or changed policy names, and an example of each."""
PROTOCOLS = {"tcp", "udp", "icmp", "esp", "ah", "ipip", "sctp"}


class Refusal(Exception):
    """An error of the API."""

    def __init__(self, status: int, reason: str, message: str = "as the test says") -> None:
        super().__init__(reason)
        self.status, self.reason, self.message = status, reason, message


class Lost(Exception):
    """The call was done and its answer never arrives."""


@dataclass
class Operation:
    """A change under way: done when `left` further requests have come, of whatever kind."""

    name: str
    target: str
    perform: Callable[[], None]
    left: int
    error: tuple[int, str, str] | None = None
    is_done: bool = False


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


@dataclass
class Fake:
    """The project. `faults` are (handler or *, Refusal or Lost), each consumed by one call; `calls` is what arrived."""

    policies: dict[str, Body] = field(default_factory=dict)
    instances: list[Body] = field(default_factory=list)
    rules: dict[str, Body] = field(default_factory=dict)
    subnetworks: set[str] = field(default_factory=set)
    operations: dict[str, Operation] = field(default_factory=dict)
    request_ids: dict[tuple[str, str], str] = field(default_factory=dict)
    faults: list[tuple[str, Exception]] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    """Status, code and message of the operations that come next."""
    calls: list[tuple[str, Body]] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    silent_zones: set[str] = field(default_factory=set)
    quota: int = 100
    slowness: int = 2
    after_write: Callable[[], None] = lambda: None
    """Called when a write was taken and is not yet answered."""

    def __post_init__(self) -> None:
        self.reset()
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _take(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                content = self.rfile.read(size).decode()
                with fake.lock:
                    status, answer = fake.answer(self.command, self.path, content, self.headers.get("Authorization"))
                if status == 0:
                    self.close_connection = True
                    return
                payload = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = do_PATCH = do_DELETE = _take

            def log_message(self, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

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

    # -- the wire -------------------------------------------------------------------------------------------------

    def answer(self, method: str, target: str, content: str, authorization: str | None) -> tuple[int, Body]:
        """Status and body; status 0 hangs up."""
        self._advance()
        try:
            if not (authorization or "").startswith("Bearer "):
                raise Refusal(401, "required", "Login Required")
            found, request = self._parse(method, target, content)
            self.calls.append((found.handler, request))
            answer = self._perform(found, request)
        except Lost:
            return 0, {}
        except Refusal as error:
            entry = {"reason": error.reason, "message": error.message, "domain": "global"}
            return error.status, {"error": {"code": error.status, "message": error.message, "errors": [entry]}}
        return 200, answer

    def _parse(self, method: str, target: str, content: str) -> tuple[Route, Body]:
        """The route, and path, query and body as one request of the library's class."""
        parts = urlsplit(target)
        for one in ROUTES:
            match = one.path.fullmatch(parts.path)
            if match and one.method == method:
                break
        else:
            raise Refusal(404, "notFound", f"no such path: {method} {parts.path}")
        values: Body = {name: unquote(text) for name, text in match.groupdict().items()}
        for name, text in parse_qsl(parts.query, keep_blank_values=True):
            values[name] = text == "true" if text in ("true", "false") else text
        if content:
            if not one.body:
                raise Refusal(400, "parseError", "this method takes no body")
            values[one.body] = json.loads(content)
        elif one.body:
            raise Refusal(400, "required", "this method needs a body")
        try:
            # An unknown field or parameter, or a wrong type, is an error of the class.
            one.request.from_json(json.dumps(values), ignore_unknown_fields=False)
        except ParseError as error:
            raise Refusal(400, "invalid", str(error)) from error
        return one, values

    def _perform(self, found: Route, request: Body) -> Body:
        fault = next((one for one in self.faults if one[0] in ("*", found.handler)), None)
        if fault:
            self.faults.remove(fault)
            if not isinstance(fault[1], Lost):
                raise fault[1]
        if request["project"] != PROJECT:
            raise Refusal(404, "notFound", f"The resource 'projects/{request['project']}' was not found")
        if found.permission in self.denied:
            place = f"projects/{PROJECT}"
            raise Refusal(403, "forbidden", f"Required '{found.permission}' permission for '{place}'")
        for permission in sorted(self.denied.intersection(USED if found.handler in ("insert", "patch") else ())):
            raise Refusal(403, "forbidden", f"Required '{permission}' permission for '{USED[permission]}'")
        answer: Body = getattr(self, f"do_{found.handler}")(request)
        if found.handler in ("insert", "patch", "delete"):
            self.after_write()
        if fault:
            raise fault[1]
        return answer

    # -- operations -----------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        for one in self.operations.values():
            one.left -= 1
            if one.left <= 0 and not one.is_done:
                one.is_done = True
                if not one.error:
                    one.perform()

    def _operate(self, kind: str, request: Body, target: str, perform: Callable[[], None]) -> Body:
        """An operation, or the one that this request id began already."""
        request_id = request.get("requestId", "")
        if request_id:
            try:
                valid = uuid.UUID(request_id).int != 0
            except ValueError:
                valid = False
            if not valid:
                raise Refusal(400, "invalid", "Invalid value for field 'requestId'")
        name = f"operation-{len(self.operations)}"
        error = self.failures.pop(0) if self.failures else None
        self.operations[name] = Operation(name, target, perform, self.slowness, error)
        if request_id:
            self.request_ids[kind, request_id] = name
        return self._view(self.operations[name])

    def _known(self, kind: str, request: Body) -> Body | None:
        name = self.request_ids.get((kind, request.get("requestId", "")))
        return self._view(self.operations[name]) if name else None

    def _view(self, one: Operation) -> Body:
        status = "DONE" if one.is_done else "RUNNING"
        made: Body = {"name": one.name, "status": status, "targetLink": HOST + one.target, "kind": "compute#operation"}
        if one.is_done and one.error:
            made["httpErrorStatusCode"] = one.error[0]
            made["error"] = {"errors": [{"code": one.error[1], "message": one.error[2]}]}
        return made

    def do_wait(self, request: Body) -> Body:
        if request["operation"] not in self.operations:
            raise Refusal(404, "notFound", "The operation was not found")
        return self._view(self.operations[request["operation"]])

    # -- policies -------------------------------------------------------------------------------------------------

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

    # -- the rest -------------------------------------------------------------------------------------------------

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


def zone_of(machine: Body) -> str:
    return str(machine["zone"].rpartition("/")[2])


def short(url: str) -> str:
    return url.removeprefix(HOST)


def full(raw: Body) -> Body:
    """A policy as the API gives it back: references are full URLs."""
    made = json.loads(json.dumps(raw))
    resources = made.get("mirroredResources", {})
    for one in (
        made["network"],
        made["collectorIlb"],
        *resources.get("instances", ()),
        *resources.get("subnetworks", ()),
    ):
        one["url"] = HOST + short(one["url"])
    return made  # type: ignore[no-any-return]


def merge_patch(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    made = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merge_patch(made.get(key), value)
    return made


def page(request: Body, found: list[Body]) -> tuple[list[Body], str]:
    """Part of a list, and the token of the next."""
    size = int(request.get("maxResults", MOST_OF_PAGE))
    if not 0 < size <= MOST_OF_PAGE:
        raise Refusal(400, "invalid", "Invalid value for field 'maxResults'")
    start = int(request.get("pageToken") or 0)
    return found[start : start + size], str(start + size) if start + size < len(found) else ""


def labels_of(text: str) -> list[tuple[str, str]]:
    """`(labels.KEY = VALUE) AND (...)`; nothing else is a filter here."""
    if not text:
        return []
    found = [re.fullmatch(r"\(labels\.([a-z][\w-]*) = ([\w-]*)\)", part) for part in text.split(" AND ")]
    if not all(found):
        raise Refusal(400, "invalid", "Invalid value for field 'filter'")
    return [(one[1], one[2]) for one in found if one]


def fake_project() -> Iterator[Fake]:
    """For a fixture."""
    fake = Fake()
    try:
        yield fake
    finally:
        fake.close()
