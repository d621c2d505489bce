"""GCP Packet Mirroring by google-cloud-compute: reads, and does the steps. What it decides is in model.py.

Operations are waited for by our own client of the same endpoint: the library's `result()` asks the default endpoint,
whatever the other client was given.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from guestagent.errors import ConfigError, HostError, RunError
from guestagent.mirror.gcp import model as gcp_model
from guestagent.mirror.gcp import policy as gcp_policy
from guestagent.mirror.gcp import read as gcp_read
from guestagent.mirror.gcp.clients import open_clients, region_of
from guestagent.mirror.gcp.errors import TAKEN, ApiError, refusal, said
from guestagent.mirror.gcp.health import healths
from guestagent.mirror.gcp.read import Place
from guestagent.mirror.plan import CREATE, DELETE, Step
from guestagent.mirror.spec import Spec
from guestagent.mirror.survey import Health, Survey

CALL_SECONDS = 150
"""Of one call; the one that waits for an operation is answered within two minutes."""
PATIENCE_SECONDS = 30.0
"""For a call that is throttled, or that Google failed at."""
OPERATION_SECONDS = 600.0
FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.02, 1.0
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.2, 8.0
DONE = "DONE"


def connect(spec: Spec) -> "Gcp":
    """With Application Default Credentials. Raises ModuleNotFoundError, ConfigError, HostError."""
    return Gcp(spec, *open_clients(spec))


def policy(spec: Spec) -> str:
    """The custom role as JSON."""
    return json.dumps(gcp_policy.document(), indent=2)


class Gcp:
    """One project and region (mirror.survey.Provider). `clients` are compute_v1's."""

    kinds = gcp_model.KINDS

    def __init__(self, spec: Spec, clients: Mapping[str, Any], place: Place) -> None:
        self._spec, self._clients, self._place = spec, clients, place

    def close(self) -> None:
        """Let go of the clients' connections."""
        for client in self._clients.values():
            client.transport.close()

    def _call(self, client: str, method: str, /, **request: Any) -> Any:
        """One call, again while the trouble is passing. Raises ApiError, HostError, RunError with a sentence."""
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        patient = Retrying(
            stop=stop_after_delay(PATIENCE_SECONDS),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=MOST_WAIT_SECONDS),
            retry=retry_if_exception(_is_passing),
            reraise=True,
        )
        return patient(self._once, client, method, request)

    def _once(self, client: str, method: str, request: Mapping[str, Any]) -> Any:
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError, TransportError
        from google.protobuf.json_format import ParseError
        from requests import RequestException

        # insert, patch and delete alone have a second form, which returns the operation as the answer holds it.
        bound = self._clients[client]
        function = getattr(bound, f"{method}_unary", None) or getattr(bound, method)
        try:
            return function(request=request, retry=None, timeout=CALL_SECONDS)
        except GoogleAPICallError as error:
            first = (error.errors or [{}])[0]
            permission = gcp_policy.CALLS[client, method]
            message = first.get("message") or str(error.message)
            raise refusal(permission, int(error.code or 0), first.get("reason", ""), message) from error
        except (RequestException, TransportError) as error:
            raise _NotReachedError(f"Google was not reached: {type(error).__name__}: {error}") from error
        except GoogleAuthError as error:
            raise HostError(f"Google's credentials do not work: {said(error)}") from error
        except ParseError as error:
            raise RunError(f"what answered is not Google: is a proxy in between? {said(error)}") from error

    # -- reading --------------------------------------------------------------------------------------------------

    def survey(self, spec: Spec, adopt: Sequence[str] = ()) -> Survey:
        """Read the inventory and what exists. Raises ConfigError, RunError."""
        collector = self._collector(spec.target) if spec.target else None
        wanted = gcp_read.wish(spec, self._place, _own_id)
        network = self._place.network(spec.vpc) if spec.vpc else collector.network if collector else ""
        return gcp_model.survey(
            spec,
            gcp_model.Inventory(
                network=network,
                machines=gcp_read.machines(self._call, spec, self._place, wanted),
                # With --tag not all VMs of a subnetwork or network tag are meant, so they go by name.
                subnetworks=() if spec.tag else wanted.subnetworks,
                tags=() if spec.tag else wanted.tags,
                policies=gcp_read.policies(self._call, self._place),
                collector=collector,
                quota=gcp_read.quota(self._call, self._place) if collector else None,
                adopted=frozenset(adopt),
            ),
        )

    def _collector(self, target: str) -> gcp_model.Collector:
        url = (
            target
            if "/" in target
            else f"projects/{self._place.project}/regions/{self._place.region}/forwardingRules/{target}"
        )
        if region_of(url) != self._place.region:
            raise ConfigError(f"target: it is in {region_of(url)}, and Packet Mirroring stays in {self._place.region}")
        found = gcp_read.collector(self._call, url)
        if found is None:
            raise ConfigError(f"target: the forwarding rule {url} does not exist")
        gcp_model.refuse_collector(found)
        return found

    def mirrors(self) -> list[Health]:
        """All mirrors of ours with what keeps each from working."""
        policies = gcp_read.policies(self._call, self._place)
        places = sorted({one.collector for one in policies if one.owner})
        return healths(policies, {url: gcp_read.collector(self._call, url) for url in places})

    # -- doing ----------------------------------------------------------------------------------------------------

    def create(self, step: Step, properties: Mapping[str, Any], *, is_repeatable: bool) -> str:
        """Make it, unless an earlier run that died has made the same, and it is just coming up."""
        try:
            self._change("insert", step.key, properties)
        except ApiError as error:
            if error.reason not in TAKEN or not self._comes_up(step.key, properties):
                raise
        return step.key

    def update(self, step: Step, properties: Mapping[str, Any]) -> None:
        """Set these properties."""
        self._change("patch", step.key, properties)

    def adopt(self, step: Step) -> None:
        """Put our mark into its description."""
        self._change("patch", step.key, {})

    def delete(self, step: Step) -> None:
        """Remove it; one that is gone is fine."""
        try:
            self._change("delete", step.key, None)
        except ApiError as error:
            if not error.is_gone:
                raise

    def missing(self, kind: str, ids: Sequence[str]) -> set[str]:
        """None: an operation that is done has made what it was to make, and no request id is used twice."""
        return set()

    def _change(self, method: str, name: str, properties: Mapping[str, Any] | None) -> None:
        request: dict[str, Any] = {"project": self._place.project, "region": self._place.region}
        if method != "insert":
            request["packet_mirroring"] = name
        if properties is not None:
            request["packet_mirroring_resource"] = gcp_model.body(self._spec.name, name, properties)
        # One of its own for each change: repeated calls are told from new ones, and a mirror may be made again.
        operation = self._call("packet_mirrorings", method, request_id=str(uuid4()), **request)
        self._await(operation, method)

    def _await(self, operation: Any, method: str) -> None:
        from time import monotonic, sleep

        deadline, pause_seconds = monotonic() + OPERATION_SECONDS, 0.0
        while operation.status.name != DONE:
            # `wait` answers within two minutes, at once where Google is busy.
            sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds + FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS)
            if monotonic() > deadline:
                raise RunError(f"the operation {operation.name} is not done after {OPERATION_SECONDS:.0f} s: run again")
            operation = self._call(
                "region_operations",
                "wait",
                project=self._place.project,
                region=self._place.region,
                operation=operation.name,
            )
        for error in operation.error.errors:
            permission = gcp_policy.CALLS["packet_mirrorings", method]
            raise refusal(permission, operation.http_error_status_code, error.code, error.message)

    def _comes_up(self, name: str, properties: Mapping[str, Any]) -> bool:
        """Whether a policy of this name appears soon, is ours and has these properties."""
        from tenacity import RetryError, Retrying, retry_if_exception, stop_after_delay, wait_exponential

        patient = Retrying(
            stop=stop_after_delay(PATIENCE_SECONDS),
            wait=wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=MOST_WAIT_SECONDS),
            retry=retry_if_exception(lambda error: isinstance(error, ApiError) and error.is_gone),
        )
        request = {"project": self._place.project, "region": self._place.region, "packet_mirroring": name}
        try:
            raw = patient(self._call, "packet_mirrorings", "get", **request)
        except RetryError:
            return False
        (resource,) = gcp_model.found(self._spec.name, [gcp_read.policy(raw)])
        return resource.is_ours and resource.properties == properties

    # -- asking ---------------------------------------------------------------------------------------------------

    def prove(self, step: Step) -> str:
        """GCP has no dry run; of a policy that exists it tells our permissions. Raises RunError where one lacks."""
        if step.op == CREATE:
            return "GCP cannot tell before it exists"
        permission = f"compute.packetMirrorings.{'delete' if step.op == DELETE else 'update'}"
        answer = self._call(
            "packet_mirrorings",
            "test_iam_permissions",
            project=self._place.project,
            region=self._place.region,
            resource=step.key,
            test_permissions_request_resource={"permissions": [permission]},
        )
        if permission not in answer.permissions:
            raise refusal(permission, 403, "forbidden", "")
        return "proved"


class _NotReachedError(RunError):
    """No answer came; the call may have been done."""


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, _NotReachedError) or (isinstance(error, ApiError) and error.is_passing)


def _own_id() -> str:
    from guestagent.mirror.metadata import own_cloud

    cloud = own_cloud()
    if cloud is None or cloud.provider != "gcp":
        raise ConfigError("source: `self` works on a VM of Compute Engine: name the VM as ZONE/NAME")
    return cloud.instance_id
