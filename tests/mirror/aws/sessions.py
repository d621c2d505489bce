"""Targets and sessions of traffic mirroring: what EC2 takes, and what it refuses."""

import secrets

from tests.mirror.aws.surroundings import Surroundings
from tests.mirror.aws.wire import Body, Refusal

MOST_SESSIONS_OF_INTERFACE, MOST_SOURCES_OF_TARGET = 3, 10
SESSION_FIELDS = ("TrafficMirrorTargetId", "TrafficMirrorFilterId", "SessionNumber", "PacketLength", "VirtualNetworkId")
TARGET_TYPES = {
    "NetworkInterfaceId": "network-interface",
    "NetworkLoadBalancerArn": "network-load-balancer",
    "GatewayLoadBalancerEndpointId": "gateway-load-balancer-endpoint",
}


class Sessions(Surroundings):
    """From interfaces, to targets."""

    # -- targets --------------------------------------------------------------------------------------------

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
        if len(beside) >= MOST_SESSIONS_OF_INTERFACE:
            raise Refusal("TrafficMirrorSessionsPerInterfaceLimitExceeded")
        target = self.objects["target"][fields["TrafficMirrorTargetId"]]
        sources = {
            one["NetworkInterfaceId"]
            for one in others
            if one["TrafficMirrorTargetId"] == fields["TrafficMirrorTargetId"]
        }
        if "NetworkInterfaceId" in target and len(sources | {fields["NetworkInterfaceId"]}) > MOST_SOURCES_OF_TARGET:
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
