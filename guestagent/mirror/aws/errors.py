"""AWS: what an error of the API means, as a sentence with the permission or the limit, and what to do. Pure."""

import re

from guestagent.mirror.aws import facts

_POLICY = "`guestagent mirror aws policy` prints all that the role needs"
_WAIT = "wait a minute and run again: what was done stays done"

REFUSED = ("UnauthorizedOperation", "AccessDenied")
_LACKING = re.compile(
    r"not authorized to perform: (?P<action>[\w-]+:\w+)(?: on resource: (?P<place>\S+))?"
    r"(?:.*? with an explicit deny in an? (?P<denier>[\w -]+?)(?:\.|$)| because no (?P<silent>[\w -]+?) allows )?"
)
"""In the messages of EC2 and ELB: which action it was, which may be one that the call needs beside its own."""
_ROLES_OWN = "identity-based policy"
SENTENCES = {
    "AuthFailure": "AWS does not know these credentials here: check them, the clock, and that the region is enabled",
    "SignatureDoesNotMatch": "the secret key does not fit the access key: check the credentials",
    "OptInRequired": "the account has not enabled this region or service",
    "InvalidClientTokenId": "AWS does not know this access key: check the credentials and the region's partition",
    "RequestExpired": "the credentials have expired, or the clock is wrong",
    "ExpiredToken": "the session's credentials have expired: renew them",
    "RequestLimitExceeded": f"AWS throttles this account's calls: {_WAIT}",
    "Throttling": f"AWS throttles this account's calls: {_WAIT}",
    "ThrottlingException": f"AWS throttles this account's calls: {_WAIT}",
    "InternalError": f"AWS failed inside: {_WAIT}",
    "InternalFailure": f"AWS failed inside: {_WAIT}",
    "Unavailable": f"AWS is not available: {_WAIT}",
    "ServiceUnavailable": f"AWS is not available: {_WAIT}",
    "NetworkInterfaceNotSupported": "EC2 does not mirror this interface's instance type: run the agent there",
    "InvalidNetworkInterfaceID.NotFound": "the interface does not exist in this region",
    "InvalidInstanceID.NotFound": "an instance does not exist in this region",
    "InvalidVpcEndpointId.NotFound": "the endpoint does not exist in this region",
    "LoadBalancerNotFound": "the load balancer does not exist in this region",
    "TrafficMirrorFilterInUse": "a session of somebody else uses the filter: it stays until that one is gone",
    "TrafficMirrorTargetInUseException": "a session of somebody else uses the target: it stays until that one is gone",
    "TrafficMirrorFilterRuleAlreadyExists": "somebody made a rule of this number meanwhile: run again",
    "TrafficMirrorSessionsPerInterfaceLimitExceeded": (
        f"the interface has its {facts.SESSIONS_PER_INTERFACE} sessions already: run the agent there, or remove one"
    ),
    "TrafficMirrorSourcesPerTargetLimitExceeded": (
        f"the target takes no more sources ({facts.SOURCES_PER_INTERFACE_TARGET} for an interface, "
        f"{facts.SOURCES_PER_LARGEST_TARGET} on the largest sizes): use a network load balancer"
    ),
    "TrafficMirrorSessionsPerTargetLimitExceeded": "the target takes no more sessions: use a network load balancer",
    "TrafficMirrorFilterRuleLimitExceeded": f"a filter holds {facts.RULES_PER_FILTER} rules at most",
    "TrafficMirrorFilterLimitExceeded": "the account has its 10,000 mirror filters already",
    "TrafficMirrorTargetLimitExceeded": "the account has its 10,000 mirror targets already",
    "TrafficMirrorSessionLimitExceeded": "the account has its 10,000 mirror sessions already",
    "IdempotentParameterMismatch": "an earlier run asked for something else by the same token: wait an hour or rename",
}


def is_gone(code: str) -> bool:
    """Whether the code says that an object does not exist."""
    return code.endswith(".NotFound")


def sentence(service: str, operation: str, code: str, message: str) -> str:
    """One sentence for one failed call; `operation` is the name in the API."""
    if code in REFUSED:
        return f"{operation}: {_refusal(service, operation, message)} ({code})"
    known = SENTENCES.get(code)
    if code.startswith("5") and code.isdecimal():  # the status, where something before AWS answered
        known = SENTENCES["ServiceUnavailable"]
    if known:
        return f"{operation}: {known} ({code})"
    said = " ".join(message.split())[:300]
    if is_gone(code):
        return f"{operation}: something that it refers to does not exist: {said} ({code})"
    return f"{operation}: AWS says {code}: {said}"


def _refusal(service: str, operation: str, message: str) -> str:
    found = _LACKING.search(" ".join(message.split()))
    if not found:
        tags = ", or ec2:CreateTags for its tags" if operation.startswith("Create") else ""
        return f"the role may not: it lacks {service}:{operation}{tags}; {_POLICY}"
    what = found["action"] + (f" on {found['place']}" if found["place"] else "")
    if found["denier"]:
        return f"an explicit deny in the {found['denier']} forbids {what}: ask whoever keeps that"
    if found["silent"] not in (None, _ROLES_OWN):
        return f"the {found['silent']} does not allow {what}: ask whoever keeps that"
    return f"the role may not: it lacks {what}; {_POLICY}"
