"""AWS: what an error of the API means, as a sentence with the permission or the limit, and what to do. Pure."""

from guestagent.mirror.aws import facts

_POLICY = "`guestagent mirror aws policy` prints all that the role needs"
_WAIT = "wait a minute and run again: what was done stays done"

SENTENCES = {
    "UnauthorizedOperation": f"the role may not: it lacks {{action}}; {_POLICY}",
    "AccessDenied": f"the role may not: it lacks {{action}}; {_POLICY}",
    "AuthFailure": "AWS does not know these credentials: check them and the clock",
    "InvalidClientTokenId": "AWS does not know this access key: check the credentials and the region's partition",
    "RequestExpired": "the credentials have expired, or the clock is wrong",
    "ExpiredToken": "the session's credentials have expired: renew them",
    "RequestLimitExceeded": f"AWS throttles this account's calls: {_WAIT}",
    "Throttling": f"AWS throttles this account's calls: {_WAIT}",
    "InternalError": f"AWS failed inside: {_WAIT}",
    "Unavailable": f"AWS is not available: {_WAIT}",
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
    action = f"{service}:{operation}"
    known = SENTENCES.get(code)
    if known:
        return f"{operation}: {known.format(action=action)} ({code})"
    said = " ".join(message.split())[:300]
    if is_gone(code):
        return f"{operation}: something that it refers to does not exist: {said} ({code})"
    return f"{operation}: AWS says {code}: {said}"
