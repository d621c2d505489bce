"""AWS: reads the inventory in pages, as many calls as there are pages, never one for each machine."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from guestagent.errors import ConfigError, RunError
from guestagent.mirror.aws.errors import is_gone
from guestagent.mirror.aws.facts import VXLAN_PORT
from guestagent.mirror.aws.model import Balancer, Inventory, Machine, owner_of, tags_of, target_key
from guestagent.mirror.spec import Spec, tag_of

PAGE = 1000
"""The most that EC2 gives in one answer."""
MOST_FILTER_VALUES = 200
"""Of one filter of a describe call."""
LISTENER_PROTOCOLS = {"UDP", "TCP_UDP"}


class ApiError(RunError):
    """An answer of AWS that is an error. `code` is AWS's own."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Caller(Protocol):
    """Calls one operation of a service by boto3's name. Raises ApiError, RunError."""

    def __call__(self, service: str, method: str, /, **parameters: Any) -> dict[str, Any]: ...


def pages(call: Caller, method: str, key: str, **parameters: Any) -> Iterator[dict[str, Any]]:
    """Every element of `key` of every page; by hand, as some operations have no paginator in botocore."""
    following: dict[str, str] = {}
    while True:
        answer = call("ec2", method, MaxResults=PAGE, **parameters, **following)
        yield from answer.get(key, ())
        if not answer.get("NextToken"):
            return
        following = {"NextToken": answer["NextToken"]}


def mirror_objects(call: Caller, adopted: Iterable[str] = ()) -> Inventory:
    """All filters, targets and sessions of the account. Whose they are is told from their tags, here, not by AWS."""
    return Inventory(
        filters=tuple(pages(call, "describe_traffic_mirror_filters", "TrafficMirrorFilters")),
        targets=tuple(pages(call, "describe_traffic_mirror_targets", "TrafficMirrorTargets")),
        sessions=tuple(pages(call, "describe_traffic_mirror_sessions", "TrafficMirrorSessions")),
        adopted=frozenset(adopted),
    )


# -- machines ----------------------------------------------------------------------------------------------------------


def machines(call: Caller, spec: Spec, self_id: Callable[[], str]) -> tuple[tuple[Machine, ...], tuple[str, ...]]:
    """What any source selects within the spec's network and tags, and which tags and subnets select nothing.

    Raises ConfigError where that is all, or where an instance or interface is named that is not there.
    """
    narrow = [_filter("instance-state-name", ["pending", "running", "stopping", "stopped"])]
    narrow += [_filter("vpc-id", [spec.vpc])] if spec.vpc else []
    narrow += [_filter(f"tag:{key}", [value]) for key, value in spec.tag]
    found: dict[str, tuple[Mapping[str, Any], set[str]]] = {}
    idle = {one for one in spec.source if one.startswith(("tag:", "subnet-"))}
    for filters, wants, source in _selections(spec, self_id):
        for reservation in pages(call, "describe_instances", "Reservations", Filters=[*filters, *narrow]):
            for raw in reservation["Instances"]:
                chosen = [one for one in raw.get("NetworkInterfaces", ()) if wants(one)]
                names = {one["NetworkInterfaceId"] for one in chosen}
                found.setdefault(raw["InstanceId"], (raw, set()))[1].update(names)
                idle -= {source, *(one.get("SubnetId", "") for one in chosen)}
    made = tuple(_machine(raw, chosen) for _, (raw, chosen) in sorted(found.items()))
    _refuse_empty(spec, made)
    return made, tuple(sorted(idle))


def _filter(name: str, values: list[str]) -> dict[str, Any]:
    return {"Name": name, "Values": values}


Wants = Callable[[Mapping[str, Any]], bool]


def _selections(spec: Spec, self_id: Callable[[], str]) -> Iterator[tuple[list[dict[str, Any]], Wants, str]]:
    """Filters of describe calls, which interfaces of the answer are meant, and the source where it is a tag."""
    sources = [self_id() if one == "self" else one for one in spec.source]
    if not sources:
        yield [], lambda one: True, ""
    for prefix, name, field in (
        ("i-", "instance-id", ""),
        ("eni-", "network-interface.network-interface-id", "NetworkInterfaceId"),
        ("subnet-", "network-interface.subnet-id", "SubnetId"),
    ):
        values = sorted({one for one in sources if one.startswith(prefix)})
        for start in range(0, len(values), MOST_FILTER_VALUES):
            yield [_filter(name, values[start : start + MOST_FILTER_VALUES])], _among(field, frozenset(values)), ""
    for source in sources:
        if source.startswith("tag:"):
            key, value = tag_of(source.removeprefix("tag:"), "source")
            yield [_filter(f"tag:{key}", [value])], lambda one: True, source


def _among(field: str, values: frozenset[str]) -> Wants:
    return lambda one: not field or one.get(field) in values


def _machine(raw: Mapping[str, Any], chosen: set[str]) -> Machine:
    usable, skipped = [], []
    for one in sorted(raw.get("NetworkInterfaces", ()), key=lambda one: one["NetworkInterfaceId"]):
        identifier, kind = one["NetworkInterfaceId"], one.get("InterfaceType", "interface")
        if identifier not in chosen:
            continue
        if kind == "interface":
            usable.append(identifier)
        else:
            skipped.append(f"{identifier} is of type {kind}, and only plain interfaces can be mirrored")
    return Machine(
        id=raw["InstanceId"],
        name=tags_of(raw).get("Name", ""),
        kind=raw["InstanceType"],
        state=raw["State"]["Name"],
        interfaces=tuple(usable),
        skipped=tuple(skipped),
        names={one["NetworkInterfaceId"]: _names(raw["InstanceId"], one) for one in raw.get("NetworkInterfaces", ())},
    )


def _names(instance: str, interface: Mapping[str, Any]) -> frozenset[str]:
    """What the target group of a load balancer may call it: one by instance means the first interface."""
    addresses = {one["PrivateIpAddress"] for one in interface.get("PrivateIpAddresses", ())}
    is_first = interface.get("Attachment", {}).get("DeviceIndex", 0) == 0
    return frozenset(addresses | ({instance} if is_first else set()))


def _refuse_empty(spec: Spec, made: tuple[Machine, ...]) -> None:
    """Nothing selected is a mistake, not a wish to remove every session; `delete` is there for that."""
    there = {name for machine in made for name in (machine.id, *machine.interfaces)}
    absent = [one for one in spec.source if one.startswith(("i-", "eni-")) and one not in there]
    absent = [one for one in absent if not any(one in text for machine in made for text in machine.skipped)]
    if absent:
        raise ConfigError(f"source: {', '.join(absent)}: no such instance, or not attached to one, in this region")
    if not made:
        raise ConfigError("the sources, --vpc and --tag together select no instance in this region")


def stopped_sources(call: Caller) -> dict[str, str]:
    """The instances that do not run, by their interfaces: as many calls as such instances have pages."""
    stopped = [_filter("instance-state-name", ["stopping", "stopped"])]
    return {
        interface["NetworkInterfaceId"]: raw["InstanceId"]
        for reservation in pages(call, "describe_instances", "Reservations", Filters=stopped)
        for raw in reservation["Instances"]
        for interface in raw.get("NetworkInterfaces", ())
    }


# -- what targets lead to ----------------------------------------------------------------------------------------------


def check_places(call: Caller, places: Iterable[str]) -> tuple[dict[str, Balancer], frozenset[str]]:
    """The load balancers among them; and which places do not exist any more."""
    balancers, lost = {}, set()
    for place in sorted(set(places)):
        try:
            if place.startswith("arn:"):
                balancers[place] = _balancer(call, place)
            elif place.startswith("eni-"):
                call("ec2", "describe_network_interfaces", NetworkInterfaceIds=[place])
            elif place.startswith("vpce-"):
                _check_endpoint(call, place)
        except ApiError as error:
            if not is_gone(error.code) and error.code != "LoadBalancerNotFound":
                raise
            lost.add(place)
    return balancers, frozenset(lost)


def _check_endpoint(call: Caller, identifier: str) -> None:
    (found,) = call("ec2", "describe_vpc_endpoints", VpcEndpointIds=[identifier])["VpcEndpoints"]
    if found["VpcEndpointType"] != "GatewayLoadBalancer":
        raise ConfigError(f"target: {identifier} is an endpoint of type {found['VpcEndpointType']}: name one of a GWLB")


def _balancer(call: Caller, arn: str) -> Balancer:
    """As far as its listener for copies, and what that sends them to."""
    answer = call("elbv2", "describe_listeners", LoadBalancerArn=arn)
    listeners = [one for one in answer["Listeners"] if one["Port"] == VXLAN_PORT]
    listeners = [one for one in listeners if one["Protocol"] in LISTENER_PROTOCOLS]
    groups = {group for one in listeners for action in one.get("DefaultActions", ()) for group in _groups(action)}
    members = [
        member
        for group in sorted(groups)
        for member in call("elbv2", "describe_target_health", TargetGroupArn=group)["TargetHealthDescriptions"]
    ]
    return Balancer(
        has_listener=bool(listeners),
        members=frozenset(one["Target"]["Id"] for one in members),
        healthy=sum(one["TargetHealth"]["State"] == "healthy" for one in members),
    )


def _groups(action: Mapping[str, Any]) -> set[str]:
    """Target groups of an action, which has one or several."""
    several = action.get("ForwardConfig", {}).get("TargetGroups", ())
    return {one["TargetGroupArn"] for one in (action, *several) if "TargetGroupArn" in one}


def places_of(inventory: Inventory) -> dict[str, str]:
    """Where the targets of our mirrors lead, by their identifier."""
    return {one["TrafficMirrorTargetId"]: target_key(one) for one in inventory.targets if owner_of(one)}
