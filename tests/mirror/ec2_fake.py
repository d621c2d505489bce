"""EC2's mirroring, and the listeners of ELB, over HTTP: botocore's own service models say what a request may hold.

The schema of requests and answers is botocore's; semantics, limits and error codes are of the Traffic Mirroring guide
and the EC2 error table. Nothing here was compared with AWS itself.
"""

import functools
import secrets
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

import botocore.session
from botocore.model import OperationModel, ServiceModel, Shape

Body = dict[str, Any]
SERVICES = {"2016-11-15": "ec2", "2015-12-01": "elbv2"}
LIMITS = {"sessions_per_interface": 3, "rules": 10, "sources_per_target": 10}
PREFIX = {"filter": "tmf-", "filter_rule": "tmfr-", "target": "tmt-", "session": "tms-"}
NAMES = {"filter": "Filter", "filter_rule": "FilterRule", "target": "Target", "session": "Session"}


UNAUTHORIZED = (
    "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/mirror is not authorized "
    "to perform: ec2:{0} on resource: arn:aws:ec2:eu-central-1:123456789012:* because no identity-based policy allows "
    "the ec2:{0} action. Encoded authorization failure message: x"
)


class Refusal(Exception):
    """An error of the API."""

    def __init__(self, code: str, message: str = "as the test says", status: int = 400) -> None:
        super().__init__(code)
        self.code, self.message, self.status = code, message, status


class Lost(Exception):
    """The call was done and its answer never arrives: what a crash of the caller looks like from here."""


# -- the wire, by botocore's model -------------------------------------------------------------------------------------


class Decoder:
    """A form body as the parameters of one operation; what the model does not know is refused as EC2 does."""

    def __init__(self, form: dict[str, str], service: str) -> None:
        self.form, self.is_ec2 = form, service == "ec2"
        self.used: set[str] = set()

    def decode(self, operation: OperationModel) -> Body:
        body = self._value(operation.input_shape, "") if operation.input_shape else {}
        unknown = sorted(set(self.form) - self.used - {"Action", "Version"})
        if unknown:
            raise Refusal("UnknownParameter", f"The parameter {unknown[0]} is not recognized")
        return body or {}

    def _value(self, shape: Shape, key: str) -> Any:
        match shape.type_name:
            case "structure":
                return self._structure(shape, key)
            case "list":
                return self._list(shape, key)
        if key not in self.form:
            return None
        self.used.add(key)
        return scalar(shape, key, self.form[key])

    def _structure(self, shape: Shape, key: str) -> Body | None:
        found = {}
        for name, member in shape.members.items():
            value = self._value(member, f"{key}.{self._key(name, member)}".lstrip("."))
            if value is not None:
                found[name] = value
        if key and not found:
            return None
        for name in shape.metadata.get("required", ()):
            if name not in found:
                raise Refusal("MissingParameter", f"The request must contain the parameter {name}")
        return found

    def _key(self, name: str, member: Shape) -> str:
        if not self.is_ec2:
            return str(member.serialization.get("name", name))
        if "queryName" in member.serialization:
            return str(member.serialization["queryName"])
        text = str(member.serialization.get("name", name))
        return text[0].upper() + text[1:]

    def _list(self, shape: Shape, key: str) -> list[Any] | None:
        base = key if self.is_ec2 else f"{key}.member"
        found: list[Any] = []
        while any(
            one == f"{base}.{len(found) + 1}" or one.startswith(f"{base}.{len(found) + 1}.") for one in self.form
        ):
            found.append(self._value(shape.member, f"{base}.{len(found) + 1}"))
        return found or None


def scalar(shape: Shape, key: str, text: str) -> Any:
    """A typed value in its bounds, or InvalidParameterValue."""
    wrong = Refusal("InvalidParameterValue", f"Value ({text}) for parameter {key} is invalid.")
    if shape.type_name == "boolean":
        if text not in ("true", "false"):
            raise wrong
        return text == "true"
    if shape.type_name in ("integer", "long"):
        if not text.lstrip("-").isdecimal():
            raise wrong
        value = int(text)
        if not shape.metadata.get("min", value) <= value <= shape.metadata.get("max", value):
            raise wrong
        return value
    if shape.metadata.get("enum") and text not in shape.metadata["enum"]:
        raise wrong
    return text


def encode(shape: Shape, value: Any, name: str, *, is_ec2: bool) -> str:
    """One value as XML, by the output shape; what the shape does not know fails here, in the fake."""
    if shape.type_name == "structure":
        unknown = set(value) - set(shape.members)
        assert not unknown, f"the fake answers with {unknown}, which {shape.name} has not"
        inner = "".join(
            encode(member, value[key], str(member.serialization.get("name", key)), is_ec2=is_ec2)
            for key, member in shape.members.items()
            if value.get(key) is not None
        )
    elif shape.type_name == "list":
        inner = "".join(encode(shape.member, one, "item" if is_ec2 else "member", is_ec2=is_ec2) for one in value)
    else:
        inner = str(value).lower() if isinstance(value, bool) else escape(str(value))
    return f"<{name}>{inner}</{name}>"


@functools.cache
def models() -> dict[str, ServiceModel]:
    """Read once: EC2's is 6 MB."""
    return {name: botocore.session.get_session().get_service_model(name) for name in SERVICES.values()}


class Fake:
    """The account. `faults` are (action or *, Refusal or Lost), each consumed by one call; `calls` is what arrived."""

    def __init__(self) -> None:
        self.models = models()
        self.objects: dict[str, dict[str, Body]] = {kind: {} for kind in PREFIX}
        self.instances: dict[str, Body] = {}
        self.interfaces: set[str] = set()
        self.listeners: dict[str, list[tuple[str, int]]] = {}
        self.members: dict[str, list[tuple[str, str]]] = {}
        """By load balancer, what its listeners send to: instance or address, and its health. Else one that is well."""
        self.endpoints: dict[str, str] = {}
        """VPC endpoints and their types."""
        self.tokens: dict[tuple[str, str], tuple[Body, Body]] = {}
        self.faults: list[tuple[str, Exception]] = []
        self.calls: list[tuple[str, Body]] = []
        self.unsupported: set[str] = set()
        self.denied: set[str] = set()
        self.hidden_calls = 0
        """So many describe calls do not show what was made last: eventual consistency."""
        self.after_write: Callable[[], None] = lambda: None
        """Called when a write was done and not yet answered."""
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode(), keep_blank_values=True)
                with fake.lock:
                    status, text = fake.answer({key: values[0] for key, values in form.items()})
                if status == 0:
                    self.close_connection = True
                    return
                payload = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, form: dict[str, str]) -> tuple[int, str]:
        """Status and body; status 0 hangs up."""
        service, action = SERVICES.get(form.get("Version", ""), "ec2"), form.get("Action", "")
        try:
            if action not in self.models[service].operation_names:
                raise Refusal("InvalidAction", f"The action {action} is not valid")
            operation = self.models[service].operation_model(action)
            body = Decoder(form, service).decode(operation)
            self.calls.append((action, dict(body)))
            result = self._perform(action, body)
        except Lost:
            return 0, ""
        except Refusal as error:
            return error.status, error_xml(error, service)
        inner = encode(operation.output_shape, result, "R", is_ec2=service == "ec2") if operation.output_shape else ""
        inner = inner.removeprefix("<R>").removesuffix("</R>")
        if service == "elbv2":
            inner = f"<{action}Result>{inner}</{action}Result>"
        return 200, f"<{action}Response><requestId>r</requestId>{inner}</{action}Response>"

    def _perform(self, action: str, body: Body) -> Body:
        fault = next((one for one in self.faults if one[0] in ("*", action)), None)
        if fault:
            self.faults.remove(fault)
            if not isinstance(fault[1], Lost):
                raise fault[1]
        for one in (action, *(("CreateTags",) if "TagSpecifications" in body else ())):
            if one in self.denied:
                raise Refusal("UnauthorizedOperation", UNAUTHORIZED.format(one), 403)
        handler: Callable[[Body], Body] | None = getattr(self, f"do_{action}", None)
        if handler is None:
            raise Refusal("Unsupported", f"the fake has no {action}")
        if body.pop("DryRun", False):
            raise Refusal("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)
        result = self._once(action, body, handler)
        if not action.startswith("Describe"):
            self.after_write()
        if fault:
            raise fault[1]
        return result

    def _once(self, action: str, body: Body, handler: Callable[[Body], Body]) -> Body:
        token = body.pop("ClientToken", None)
        if token is None:
            return handler(body)
        if len(token) > 64:
            raise Refusal("InvalidParameterValue", "the token is longer than 64")
        known = self.tokens.get((action, token))
        if known:
            if known[0] != body:
                raise Refusal("IdempotentParameterMismatch")
            return known[1]
        result = handler(body)
        self.tokens[action, token] = (body, result)
        return result

    # -- shared parts ---------------------------------------------------------------------------------------------

    def _get(self, kind: str, identifier: str) -> Body:
        if identifier not in self.objects[kind]:
            raise Refusal(f"InvalidTrafficMirror{NAMES[kind]}Id.NotFound", f"{identifier} does not exist")
        return self.objects[kind][identifier]

    def _add(self, kind: str, body: Body, fields: Body) -> Body:
        identifier = PREFIX[kind] + secrets.token_hex(8) + "0"
        tags: list[Body] = []
        for one in body.get("TagSpecifications", ()):
            if one["ResourceType"] != f"traffic-mirror-{kind.replace('_', '-')}":
                raise Refusal("InvalidParameterValue", "the tags are for another type of resource")
            tags += one["Tags"]
        made = {f"TrafficMirror{NAMES[kind]}Id": identifier, **fields, "Tags": tags}
        if "Description" in body:
            made["Description"] = body["Description"]
        self.objects[kind][identifier] = made
        return made

    def _page(self, body: Body, found: list[Body], key: str) -> Body:
        start, size = int(body.get("NextToken", "0")), body.get("MaxResults", 1000)
        if not 5 <= size <= 1000:
            raise Refusal("InvalidParameterValue", "MaxResults is 5 to 1000")
        following = str(start + size) if start + size < len(found) else None
        return {key: found[start : start + size], "NextToken": following}

    def _describe(self, kind: str, body: Body, attributes: dict[str, str]) -> Body:
        name = f"TrafficMirror{NAMES[kind]}"
        ids = body.get(f"{name}Ids")
        for one in ids or ():
            self._get(kind, one)
        found = [one for key, one in self.objects[kind].items() if ids is None or key in ids]
        if self.hidden_calls:
            self.hidden_calls -= 1
            found = found[:-1]
        for one in body.get("Filters", ()):
            found = [raw for raw in found if matches(raw, one["Name"], set(one["Values"]), attributes)]
        return self._page(body, found, f"{name}s")

    # -- filters and rules ----------------------------------------------------------------------------------------

    def do_CreateTrafficMirrorFilter(self, body: Body) -> Body:
        return {"TrafficMirrorFilter": self.filter_view(self._add("filter", body, {"NetworkServices": []}))}

    def filter_view(self, raw: Body) -> Body:
        identifier = raw["TrafficMirrorFilterId"]
        rules = [one for one in self.objects["filter_rule"].values() if one["TrafficMirrorFilterId"] == identifier]
        by = {way: [one for one in rules if one["TrafficDirection"] == way] for way in ("ingress", "egress")}
        return {**raw, "IngressFilterRules": by["ingress"], "EgressFilterRules": by["egress"]}

    def do_DescribeTrafficMirrorFilters(self, body: Body) -> Body:
        attributes = {"traffic-mirror-filter-id": "TrafficMirrorFilterId", "description": "Description"}
        answer = self._describe("filter", body, attributes)
        return {**answer, "TrafficMirrorFilters": [self.filter_view(one) for one in answer["TrafficMirrorFilters"]]}

    def do_DeleteTrafficMirrorFilter(self, body: Body) -> Body:
        identifier = body["TrafficMirrorFilterId"]
        self._get("filter", identifier)
        if any(one["TrafficMirrorFilterId"] == identifier for one in self.objects["session"].values()):
            raise Refusal("TrafficMirrorFilterInUse")
        del self.objects["filter"][identifier]
        rules = self.objects["filter_rule"]
        for key in [key for key, one in rules.items() if one["TrafficMirrorFilterId"] == identifier]:
            del rules[key]
        return {"TrafficMirrorFilterId": identifier}

    def do_ModifyTrafficMirrorFilterNetworkServices(self, body: Body) -> Body:
        raw = self._get("filter", body["TrafficMirrorFilterId"])
        kept = set(raw["NetworkServices"]) | set(body.get("AddNetworkServices", ()))
        raw["NetworkServices"] = sorted(kept - set(body.get("RemoveNetworkServices", ())))
        return {"TrafficMirrorFilter": self.filter_view(raw)}

    def do_CreateTrafficMirrorFilterRule(self, body: Body) -> Body:
        self._get("filter", body["TrafficMirrorFilterId"])
        names = set(RULE_FIELDS) | {"TrafficMirrorFilterId", "TrafficDirection", "RuleNumber"}
        fields = {key: value for key, value in body.items() if key in names}
        check_rule(fields)
        same = [
            one
            for one in self.objects["filter_rule"].values()
            if one["TrafficMirrorFilterId"] == body["TrafficMirrorFilterId"]
        ]
        if len(same) >= LIMITS["rules"]:
            raise Refusal("TrafficMirrorFilterRuleLimitExceeded")
        place = ("TrafficDirection", "RuleNumber")
        if any(all(one[key] == fields[key] for key in place) for one in same):
            raise Refusal("TrafficMirrorFilterRuleAlreadyExists")
        return {"TrafficMirrorFilterRule": self._add("filter_rule", body, fields)}

    def do_ModifyTrafficMirrorFilterRule(self, body: Body) -> Body:
        raw = self._get("filter_rule", body["TrafficMirrorFilterRuleId"])
        new = {**raw, **{key: value for key, value in body.items() if key in RULE_FIELDS}}
        for one in body.get("RemoveFields", ()):
            new.pop(RULE_REMOVABLE[one], None)
        check_rule(new)
        raw.clear()
        raw.update(new)
        return {"TrafficMirrorFilterRule": raw}

    def do_DeleteTrafficMirrorFilterRule(self, body: Body) -> Body:
        self._get("filter_rule", body["TrafficMirrorFilterRuleId"])
        del self.objects["filter_rule"][body["TrafficMirrorFilterRuleId"]]
        return {"TrafficMirrorFilterRuleId": body["TrafficMirrorFilterRuleId"]}

    # -- targets --------------------------------------------------------------------------------------------------

    def do_CreateTrafficMirrorTarget(self, body: Body) -> Body:
        given = [key for key in TARGET_TYPES if key in body]
        if len(given) != 1:
            raise Refusal("InvalidParameterCombination", "exactly one target")
        if given == ["NetworkInterfaceId"] and body["NetworkInterfaceId"] not in self.interfaces:
            raise Refusal("InvalidNetworkInterfaceID.NotFound")
        if given == ["GatewayLoadBalancerEndpointId"]:
            self._endpoint(body["GatewayLoadBalancerEndpointId"])
        fields = {given[0]: body[given[0]], "Type": TARGET_TYPES[given[0]], "OwnerId": "123456789012"}
        return {"TrafficMirrorTarget": self._add("target", body, fields)}

    def do_DescribeTrafficMirrorTargets(self, body: Body) -> Body:
        attributes = {"traffic-mirror-target-id": "TrafficMirrorTargetId", "network-interface-id": "NetworkInterfaceId"}
        return self._describe("target", body, attributes)

    def do_DeleteTrafficMirrorTarget(self, body: Body) -> Body:
        identifier = body["TrafficMirrorTargetId"]
        self._get("target", identifier)
        if any(one["TrafficMirrorTargetId"] == identifier for one in self.objects["session"].values()):
            raise Refusal("TrafficMirrorTargetInUseException")
        del self.objects["target"][identifier]
        return {"TrafficMirrorTargetId": identifier}

    # -- sessions -------------------------------------------------------------------------------------------------

    def do_CreateTrafficMirrorSession(self, body: Body) -> Body:
        interface = body["NetworkInterfaceId"]
        if interface not in self.interfaces:
            raise Refusal("InvalidNetworkInterfaceID.NotFound")
        if interface in self.unsupported:
            raise Refusal("NetworkInterfaceNotSupported", f"{interface} must be attached to a supported instance")
        fields = {key: value for key, value in body.items() if key in (*SESSION_FIELDS, "NetworkInterfaceId")}
        self._check_session(fields, "")
        fields.setdefault("VirtualNetworkId", secrets.randbelow(1 << 24))
        return {"TrafficMirrorSession": self._add("session", body, {**fields, "OwnerId": "123456789012"})}

    def _check_session(self, fields: Body, own: str) -> None:
        self._get("target", fields["TrafficMirrorTargetId"])
        self._get("filter", fields["TrafficMirrorFilterId"])
        for key, least, most in (
            ("SessionNumber", 1, 32766), ("PacketLength", 1, 8500), ("VirtualNetworkId", 0, (1 << 24) - 1),
        ):  # fmt: skip
            if not least <= fields.get(key, least) <= most:
                raise Refusal("InvalidParameterValue", f"{key} is out of range")
        others = [one for key, one in self.objects["session"].items() if key != own]
        beside = [one for one in others if one["NetworkInterfaceId"] == fields["NetworkInterfaceId"]]
        if any(one["SessionNumber"] == fields["SessionNumber"] for one in beside):
            raise Refusal("InvalidParameterValue", f"session number {fields['SessionNumber']} is already being used")
        if len(beside) >= LIMITS["sessions_per_interface"]:
            raise Refusal("TrafficMirrorSessionsPerInterfaceLimitExceeded")
        target = self.objects["target"][fields["TrafficMirrorTargetId"]]
        sources = {
            one["NetworkInterfaceId"]
            for one in others
            if one["TrafficMirrorTargetId"] == fields["TrafficMirrorTargetId"]
        }
        if (
            "NetworkInterfaceId" in target
            and len(sources | {fields["NetworkInterfaceId"]}) > LIMITS["sources_per_target"]
        ):
            raise Refusal(
                "TrafficMirrorSourcesPerTargetLimitExceeded", "Sources per interface-target limit reached (11)"
            )

    def do_ModifyTrafficMirrorSession(self, body: Body) -> Body:
        raw = self._get("session", body["TrafficMirrorSessionId"])
        new = {**raw, **{key: value for key, value in body.items() if key in SESSION_FIELDS}}
        for one in body.get("RemoveFields", ()):
            new.pop({"packet-length": "PacketLength", "virtual-network-id": "VirtualNetworkId"}[one], None)
        self._check_session(new, body["TrafficMirrorSessionId"])
        raw.clear()
        raw.update(new)
        return {"TrafficMirrorSession": raw}

    def do_DescribeTrafficMirrorSessions(self, body: Body) -> Body:
        attributes = {
            "traffic-mirror-session-id": "TrafficMirrorSessionId",
            "network-interface-id": "NetworkInterfaceId",
        }
        return self._describe("session", body, attributes)

    def do_DeleteTrafficMirrorSession(self, body: Body) -> Body:
        self._get("session", body["TrafficMirrorSessionId"])
        del self.objects["session"][body["TrafficMirrorSessionId"]]
        return {"TrafficMirrorSessionId": body["TrafficMirrorSessionId"]}

    # -- the rest -------------------------------------------------------------------------------------------------

    def do_CreateTags(self, body: Body) -> Body:
        for identifier in body["Resources"]:
            found = [objects[identifier] for objects in self.objects.values() if identifier in objects]
            if not found:
                raise Refusal("InvalidID", f"{identifier} is not valid")
            keys = {one["Key"] for one in body["Tags"]}
            found[0]["Tags"] = [one for one in found[0]["Tags"] if one["Key"] not in keys] + body["Tags"]
        return {}

    def do_DescribeInstances(self, body: Body) -> Body:
        found = list(self.instances.values())
        for one in body.get("Filters", ()):
            found = [raw for raw in found if instance_matches(raw, one["Name"], set(one["Values"]))]
        page = self._page(body, found, "Reservations")
        return {**page, "Reservations": [{"Instances": [one]} for one in page["Reservations"]]}

    def do_DescribeNetworkInterfaces(self, body: Body) -> Body:
        for one in body.get("NetworkInterfaceIds", ()):
            if one not in self.interfaces:
                raise Refusal("InvalidNetworkInterfaceID.NotFound")
        return {"NetworkInterfaces": [{"NetworkInterfaceId": one} for one in body.get("NetworkInterfaceIds", ())]}

    def _endpoint(self, identifier: str) -> Body:
        if identifier not in self.endpoints:
            raise Refusal("InvalidVpcEndpointId.NotFound", f"The Vpc Endpoint Id '{identifier}' does not exist")
        return {"VpcEndpointId": identifier, "VpcEndpointType": self.endpoints[identifier], "State": "available"}

    def do_DescribeVpcEndpoints(self, body: Body) -> Body:
        return {"VpcEndpoints": [self._endpoint(one) for one in body["VpcEndpointIds"]]}

    def do_DescribeListeners(self, body: Body) -> Body:
        arn = body["LoadBalancerArn"]
        if arn not in self.listeners:
            raise Refusal("LoadBalancerNotFound")
        group = [{"Type": "forward", "TargetGroupArn": f"{arn}/group"}]
        return {
            "Listeners": [
                {"Protocol": protocol, "Port": port, "DefaultActions": group} for protocol, port in self.listeners[arn]
            ]
        }

    def do_DescribeTargetHealth(self, body: Body) -> Body:
        arn = body["TargetGroupArn"].removesuffix("/group")
        if arn not in self.listeners:
            raise Refusal("TargetGroupNotFound")
        members = self.members.get(arn, [("10.9.9.9", "healthy")])
        return {
            "TargetHealthDescriptions": [
                {"Target": {"Id": name, "Port": 4789}, "TargetHealth": {"State": state}} for name, state in members
            ]
        }

    # -- for the tests --------------------------------------------------------------------------------------------

    def add_instance(self, number: int, kind: str = "m5.large", tags: dict[str, str] | None = None, **more: Any) -> str:
        """An instance with one interface, `eni-NUMBER`; the interface's identifier."""
        interface = f"eni-{number:017x}"
        self.interfaces.add(interface)
        identifier = f"i-{number:017x}"
        self.instances[identifier] = {
            "InstanceId": identifier,
            "InstanceType": kind,
            "State": {"Name": more.get("state", "running"), "Code": 16},
            "VpcId": more.get("vpc", "vpc-00000001"),
            "SubnetId": "subnet-00000001",
            "Tags": [{"Key": key, "Value": value} for key, value in (tags or {}).items()],
            "NetworkInterfaces": [
                {
                    "NetworkInterfaceId": interface,
                    "InterfaceType": more.get("type", "interface"),
                    "SubnetId": "subnet-00000001",
                    "Attachment": {"DeviceIndex": 0},
                    "PrivateIpAddresses": [{"PrivateIpAddress": f"10.0.{number >> 8}.{number & 255}"}],
                }
            ],
        }
        return interface

    def state(self) -> dict[str, list[Body]]:
        """Everything that exists, without identifiers of ours that differ from run to run."""
        return {kind: [dict(one) for one in objects.values()] for kind, objects in self.objects.items()}

    def writes(self) -> list[str]:
        """The actions that were to change something."""
        return [action for action, _ in self.calls if not action.startswith("Describe")]


RULE_FIELDS = (
    "RuleAction", "Protocol", "SourceCidrBlock", "DestinationCidrBlock", "SourcePortRange", "DestinationPortRange",
)  # fmt: skip
RULE_REMOVABLE = {
    "protocol": "Protocol",
    "source-port-range": "SourcePortRange",
    "destination-port-range": "DestinationPortRange",
    "description": "Description",
}
SESSION_FIELDS = ("TrafficMirrorTargetId", "TrafficMirrorFilterId", "SessionNumber", "PacketLength", "VirtualNetworkId")
TARGET_TYPES = {
    "NetworkInterfaceId": "network-interface",
    "NetworkLoadBalancerArn": "network-load-balancer",
    "GatewayLoadBalancerEndpointId": "gateway-load-balancer-endpoint",
}


def check_rule(fields: Body) -> None:
    """Both CIDRs are networks of one family; ports go with TCP and UDP."""
    try:
        versions = {ip_network(fields[key]).version for key in ("SourceCidrBlock", "DestinationCidrBlock")}
    except ValueError as error:
        raise Refusal("InvalidParameterValue", str(error)) from error
    if len(versions) != 1:
        raise Refusal("InvalidParameterValue", "the CIDRs are of two families")
    if any(key in fields for key in ("SourcePortRange", "DestinationPortRange")) and fields.get("Protocol") not in (
        6,
        17,
    ):
        raise Refusal("InvalidParameterCombination", "ports need the protocol TCP or UDP")
    if not 0 <= fields.get("Protocol", 0) <= 255:
        raise Refusal("InvalidParameterValue", "protocol")


def tags_of(raw: Body) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in raw.get("Tags", ())}


def matches(raw: Body, name: str, values: set[str], attributes: dict[str, str]) -> bool:
    """A filter of a describe call."""
    if name.startswith("tag:"):
        return tags_of(raw).get(name.removeprefix("tag:")) in values
    if name == "tag-key":
        return bool(values & set(tags_of(raw)))
    if name not in attributes:
        raise Refusal("InvalidParameterValue", f"The filter '{name}' is invalid")
    return str(raw.get(attributes[name])) in values


def instance_matches(raw: Body, name: str, values: set[str]) -> bool:
    """The filters of DescribeInstances that are used."""
    if name == "instance-state-name":
        return raw["State"]["Name"] in values
    if name.startswith("network-interface."):
        field = {"network-interface-id": "NetworkInterfaceId", "subnet-id": "SubnetId"}[name.partition(".")[2]]
        return any(one[field] in values for one in raw["NetworkInterfaces"])
    return matches(raw, name, values, {"vpc-id": "VpcId", "instance-id": "InstanceId"})


def error_xml(error: Refusal, service: str) -> str:
    """As each protocol has it."""
    inner = f"<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message></Error>"
    if service == "ec2":
        return f"<Response><Errors>{inner}</Errors><RequestID>r</RequestID></Response>"
    return f"<ErrorResponse>{inner}<RequestId>r</RequestId></ErrorResponse>"


def fake_account() -> Iterator[Fake]:
    """For a fixture."""
    fake = Fake()
    try:
        yield fake
    finally:
        fake.close()
