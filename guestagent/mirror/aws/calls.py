"""AWS: each step as the EC2 calls that do it, names and parameters as boto3 takes them. Pure."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from guestagent.mirror.aws.model import FILTER, RULE, SESSION, TARGET, tags
from guestagent.mirror.plan import ADOPT, CREATE, DELETE, UPDATE, Step

Call = tuple[str, dict[str, Any]]
Properties = Mapping[str, Any]

PREFIX = {FILTER: "tmf", RULE: "tmfr", TARGET: "tmt", SESSION: "tms"}
NAMES = {
    FILTER: "TrafficMirrorFilter",
    RULE: "TrafficMirrorFilterRule",
    TARGET: "TrafficMirrorTarget",
    SESSION: "TrafficMirrorSession",
}
SNAKE = {kind: f"traffic_mirror_{'filter_rule' if kind == RULE else kind}" for kind in NAMES}
_RESOURCE_TYPES = {kind: snake.replace("_", "-") for kind, snake in SNAKE.items()}
_REMOVABLE = {
    "protocol": "protocol",
    "source_ports": "source-port-range",
    "destination_ports": "destination-port-range",
    "packet_length": "packet-length",
}
"""Properties whose absence is told by RemoveFields."""


def placeholder(kind: str) -> str:
    """The identifier of something that does not exist yet, for a dry run."""
    return f"{PREFIX[kind]}-{'0' * 17}"


def token(name: str, step: Step, properties: Properties, salt: str) -> str:
    """Equal for equal wishes, so that a call whose answer was lost makes nothing twice; 64 characters."""
    wish = [name, step.kind, step.key, sorted(properties.items()), salt]
    return sha256(json.dumps(wish).encode()).hexdigest()


def calls(name: str, step: Step, properties: Properties, salt: str = "") -> list[Call]:
    """What does the step for the mirror `name`; another salt gives another token. Of a new filter's second call the
    identifier is a placeholder."""
    return _OPS[step.op](name, step, properties, salt)


def _create(name: str, step: Step, properties: Properties, salt: str) -> list[Call]:
    common = {
        "Description": f"guestagent mirror {name}",
        "TagSpecifications": [{"ResourceType": _RESOURCE_TYPES[step.kind], "Tags": tags(name)}],
        "ClientToken": token(name, step, properties, salt),
    }
    made = [(f"create_{SNAKE[step.kind]}", {**common, **_CREATE[step.kind](step, properties)})]
    if properties.get("dns"):
        made.append(_network_services(placeholder(FILTER), is_on=True))
    return made


def _update(name: str, step: Step, properties: Properties, salt: str) -> list[Call]:
    if step.kind == FILTER:
        return [_network_services(step.id, is_on=properties["dns"])]
    parameters = _rule(properties) if step.kind == RULE else _session(properties)
    removed = [_REMOVABLE[one] for one, value in properties.items() if value is None and one in _REMOVABLE]
    if removed:
        parameters["RemoveFields"] = removed
    return [(f"modify_{SNAKE[step.kind]}", {f"{NAMES[step.kind]}Id": step.id, **parameters})]


def _adopt(name: str, step: Step, properties: Properties, salt: str) -> list[Call]:
    return [("create_tags", {"Resources": [step.id], "Tags": tags(name)})]


def _delete(name: str, step: Step, properties: Properties, salt: str) -> list[Call]:
    return [(f"delete_{SNAKE[step.kind]}", {f"{NAMES[step.kind]}Id": step.id})]


_OPS: dict[str, Callable[[str, Step, Properties, str], list[Call]]] = {
    CREATE: _create,
    UPDATE: _update,
    ADOPT: _adopt,
    DELETE: _delete,
}


def _network_services(identifier: str, *, is_on: bool) -> Call:
    change = "AddNetworkServices" if is_on else "RemoveNetworkServices"
    return (
        "modify_traffic_mirror_filter_network_services",
        {"TrafficMirrorFilterId": identifier, change: ["amazon-dns"]},
    )


def _new_target(step: Step, properties: Properties) -> dict[str, Any]:
    for prefix, parameter in (("eni-", "NetworkInterfaceId"), ("vpce-", "GatewayLoadBalancerEndpointId")):
        if step.key.startswith(prefix):
            return {parameter: step.key}
    return {"NetworkLoadBalancerArn": step.key}


def _new_rule(step: Step, properties: Properties) -> dict[str, Any]:
    direction, _, number = step.key.partition("/")
    return {
        "TrafficMirrorFilterId": properties["filter"],
        "TrafficDirection": direction,
        "RuleNumber": int(number),
        **_rule(properties),
    }


def _rule(properties: Properties) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if "accept" in properties:
        made["RuleAction"] = "accept" if properties["accept"] else "reject"
    for name, parameter in (("source", "SourceCidrBlock"), ("destination", "DestinationCidrBlock")):
        if name in properties:
            made[parameter] = properties[name]
    if properties.get("protocol") is not None:
        made["Protocol"] = properties["protocol"]
    for name, parameter in (("source_ports", "SourcePortRange"), ("destination_ports", "DestinationPortRange")):
        if properties.get(name):
            made[parameter] = dict(zip(("FromPort", "ToPort"), properties[name], strict=True))
    return made


def _session(properties: Properties) -> dict[str, Any]:
    names = {
        "filter": "TrafficMirrorFilterId",
        "target": "TrafficMirrorTargetId",
        "session_number": "SessionNumber",
        "packet_length": "PacketLength",
        "vni": "VirtualNetworkId",
    }
    return {names[name]: value for name, value in properties.items() if value is not None}


_CREATE: dict[str, Callable[[Step, Properties], dict[str, Any]]] = {
    FILTER: lambda step, properties: {},
    RULE: _new_rule,
    TARGET: _new_target,
    SESSION: lambda step, properties: {"NetworkInterfaceId": step.key, **_session(properties)},
}
