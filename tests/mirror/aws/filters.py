"""Filters of traffic mirroring and their rules: what EC2 takes, and what it refuses."""

from ipaddress import ip_network

from tests.mirror.aws.account import Account
from tests.mirror.aws.wire import Body, Refusal

MOST_RULES = 10
RULE_FIELDS = (
    "RuleAction", "Protocol", "SourceCidrBlock", "DestinationCidrBlock", "SourcePortRange", "DestinationPortRange",
)  # fmt: skip
RULE_REMOVABLE = {
    "protocol": "Protocol",
    "source-port-range": "SourcePortRange",
    "destination-port-range": "DestinationPortRange",
    "description": "Description",
}


class Filters(Account):
    """Whose rules go with them."""

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
        if len(same) >= MOST_RULES:
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
