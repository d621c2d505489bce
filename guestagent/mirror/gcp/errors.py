"""GCP: what an error of Compute Engine means, as a sentence with the permission or the limit, and what to do. Pure."""

import re

from guestagent.errors import RunError

_ROLE = "`guestagent mirror gcp policy` prints all that the role needs"
_WAIT = "wait a minute and run again: what was done stays done"
_REQUIRED = re.compile(r"Required '(?P<permission>[\w.]+)' permission for '(?P<place>[^']+)'")
PASSING = frozenset({"rateLimitExceeded", "RATE_LIMIT_EXCEEDED", "resourceNotReady", "RESOURCE_NOT_READY"})
"""Reasons that go away by themselves."""
PASSING_STATUS = frozenset({429, 500, 502, 503, 504})

SENTENCES = {
    "accessNotConfigured": "the Compute Engine API is off: `gcloud services enable compute.googleapis.com`",
    "SERVICE_DISABLED": "the Compute Engine API is off: `gcloud services enable compute.googleapis.com`",
    "quotaExceeded": "a quota is used up: {message}: ask Google for more, or remove what is not needed",
    "QUOTA_EXCEEDED": "a quota is used up: {message}: ask Google for more, or remove what is not needed",
    "limitExceeded": "a limit is reached: {message}",
    "LIMIT_EXCEEDED": "a limit is reached: {message}",
    "alreadyExists": "somebody made one of this name meanwhile: run again",
    "RESOURCE_ALREADY_EXISTS": "somebody made one of this name meanwhile: run again",
    "RESOURCE_NOT_FOUND": "something does not exist: {message}",
    "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE": "something else uses it: {message}",
    "resourceInUseByAnotherResource": "something else uses it: {message}",
    "conditionNotMet": "a policy of the organization forbids it: {message}",
    "rateLimitExceeded": f"Google throttles the project's calls: {_WAIT}",
    "RATE_LIMIT_EXCEEDED": f"Google throttles the project's calls: {_WAIT}",
    "resourceNotReady": f"another change of it is under way: {_WAIT}",
    "RESOURCE_NOT_READY": f"another change of it is under way: {_WAIT}",
    "invalid": "Google refuses a value: {message}",
}
_BY_STATUS = {
    401: "Google does not take these credentials: check the key and the clock, or log in again with gcloud",
    403: f"the role may not: it lacks {{permission}}; {_ROLE}",
    404: "something does not exist: {message}",
    407: "a proxy on the way wants a log-in: see HTTPS_PROXY",
    429: f"Google throttles the project's calls: {_WAIT}",
}
GONE = frozenset({"notFound", "RESOURCE_NOT_FOUND"})
TAKEN = frozenset({"alreadyExists", "RESOURCE_ALREADY_EXISTS"})


class ApiError(RunError):
    """An answer of Compute Engine that is an error. `reason` is Google's own word."""

    def __init__(self, text: str, status: int, reason: str) -> None:
        super().__init__(text)
        self.status, self.reason = status, reason

    @property
    def is_passing(self) -> bool:
        """Whether the same call may succeed a moment later."""
        return self.reason in PASSING or self.status in PASSING_STATUS

    @property
    def is_gone(self) -> bool:
        """Whether it says that an object does not exist."""
        return self.reason in GONE or self.status == 404


def refusal(permission: str, status: int, reason: str, message: str) -> ApiError:
    """One failed call; `permission` is what it needs."""
    message = " ".join(message.split())[:300]
    required = _REQUIRED.search(message)
    if required:
        text = f"the role may not: it lacks {required['permission']} on {required['place']}; {_ROLE}"
    else:
        known = SENTENCES.get(reason) or _BY_STATUS.get(status)
        if known is None and status >= 500:
            known = f"Google failed inside: {_WAIT}"
        known = known or "Google says: {message}"
        text = known.format(permission=permission, message=message or "no more is told")
    return ApiError(f"{text} ({reason or status})", status, reason)


def said(error: Exception) -> str:
    """Of the library's errors, which may bear more than a text."""
    return " ".join(str(error.args[0] if error.args else error).split()).rstrip(".")
