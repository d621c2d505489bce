"""What a mirror stands among: instances and their interfaces, VPC endpoints, load balancers and what is behind them."""

from typing import Any

from tests.mirror.aws.account import Account, matches
from tests.mirror.aws.wire import Body, Refusal


class Surroundings(Account):
    """What was there before."""

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


def instance_matches(raw: Body, name: str, values: set[str]) -> bool:
    """The filters of DescribeInstances that are used."""
    if name == "instance-state-name":
        return raw["State"]["Name"] in values
    if name.startswith("network-interface."):
        field = {"network-interface-id": "NetworkInterfaceId", "subnet-id": "SubnetId"}[name.partition(".")[2]]
        return any(one[field] in values for one in raw["NetworkInterfaces"])
    return matches(raw, name, values, {"vpc-id": "VpcId", "instance-id": "InstanceId"})
