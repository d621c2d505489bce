"""AWS VPC Traffic Mirroring by boto3: reads, and does the steps of a plan. What it decides is in model.py."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from guestagent.errors import ConfigError, HostError, RunError
from guestagent.mirror.aws import calls as aws_calls
from guestagent.mirror.aws import model as aws_model
from guestagent.mirror.aws import read as aws_read
from guestagent.mirror.aws.calls import NAMES, SNAKE, placeholder
from guestagent.mirror.aws.choice import survey
from guestagent.mirror.aws.errors import REFUSED, is_gone, sentence
from guestagent.mirror.aws.health import healths
from guestagent.mirror.aws.policy import document
from guestagent.mirror.aws.read import ApiError
from guestagent.mirror.plan import CREATE, Ref, Step
from guestagent.mirror.spec import Spec
from guestagent.mirror.survey import Health, Survey

ATTEMPTS = 6
"""Of one call, by botocore's standard retries: throttling and failures of AWS, up to 20 s apart."""
CONNECT_SECONDS, READ_SECONDS = 5, 30
PATIENCE_SECONDS = 20.0
"""EC2 shows a new object within seconds; one that is not there after this was deleted long ago."""
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.2, 3.0
MOST_SAID_CHARACTERS = 300
"""Of a text that is not ours."""
WOULD_SUCCEED = "DryRunOperation"


def connect(spec: Spec) -> "Aws":
    """With the credentials and the region of boto3's usual configuration, else the region of the VM that this is.

    Raises ModuleNotFoundError, ConfigError.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    from guestagent.mirror.metadata import own_region

    config = Config(
        retries={"mode": "standard", "max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
    )
    try:
        session = boto3.Session(region_name=spec.region or None)
        region = session.region_name or own_region("aws")
        if not region:
            raise ConfigError("no region: give --region, set AWS_DEFAULT_REGION, or run `aws configure`")
        clients = {name: session.client(name, region_name=region, config=config) for name in ("ec2", "elbv2")}
    except (BotoCoreError, ValueError) as error:  # the second: an AWS_ENDPOINT_URL that is none
        raise ConfigError(f"boto3 cannot work as it is configured: {_said(error)}") from error
    return Aws(spec, clients)


def _said(error: Exception) -> str:
    """On one line, without the dot at its end."""
    return " ".join(str(error).split())[:MOST_SAID_CHARACTERS].rstrip(".")


def policy(spec: Spec) -> str:
    """The IAM policy as JSON."""
    return json.dumps(document(spec.region, spec.target), indent=2)


class Aws:
    """One account and region (mirror.survey.Provider). `clients` are boto3's, by service."""

    kinds = aws_model.KINDS

    def __init__(self, spec: Spec, clients: Mapping[str, Any], patience_seconds: float | None = None) -> None:
        self._spec, self._clients = spec, clients
        self._patience_seconds = PATIENCE_SECONDS if patience_seconds is None else patience_seconds

    def close(self) -> None:
        """Let go of the clients' connections."""
        for client in self._clients.values():
            client.close()

    def _call(self, service: str, method: str, /, **parameters: Any) -> dict[str, Any]:
        """One call. Raises ApiError and RunError with a sentence."""
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        client = self._clients[service]
        try:
            answer: dict[str, Any] = getattr(client, method)(**parameters)
        except exceptions.ClientError as error:
            code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
            prefix = {"elbv2": "elasticloadbalancing"}.get(service, service)
            raise ApiError(sentence(prefix, error.operation_name, code, message), code) from error
        except exceptions.NoCredentialsError as error:
            raise HostError(
                "no AWS credentials: run `aws configure`, set AWS_PROFILE, or give the VM a role"
            ) from error
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
            raise RunError(f"AWS was not reached: {_said(error)}") from error
        except ResponseParserError as error:
            raise RunError(f"what answered is not AWS: is a proxy in between? {_said(error)}") from error
        except exceptions.BotoCoreError as error:
            raise HostError(f"the AWS credentials do not work: {_said(error)}") from error
        return answer

    # -- reading --------------------------------------------------------------------------------------------------

    def survey(self, spec: Spec, adopt: Sequence[str] = ()) -> Survey:
        """Read the inventory and what exists. Raises ConfigError, RunError."""
        inventory = aws_read.mirror_objects(self._call, adopt)
        found, idle = aws_read.machines(self._call, spec, _own_instance)
        place = aws_model.place_of(spec.target, inventory)
        balancers, lost = aws_read.check_places(self._call, [place] if place == spec.target else [])
        if place in lost:
            raise ConfigError(f"target: {place} does not exist in this region")
        return survey(spec, replace(inventory, machines=found, idle=idle, place=place, balancers=balancers))

    def mirrors(self) -> list[Health]:
        """All mirrors of ours with what keeps each from working."""
        inventory = aws_read.mirror_objects(self._call)
        balancers, lost = aws_read.check_places(self._call, aws_read.places_of(inventory).values())
        stopped = aws_read.stopped_sources(self._call)
        return healths(replace(inventory, balancers=balancers, lost=lost, stopped=stopped))

    # -- doing ----------------------------------------------------------------------------------------------------

    def create(self, step: Step, properties: Mapping[str, Any], *, is_repeatable: bool) -> str:
        """Make it; what it refers to may have been made a moment ago, and EC2 may not know it everywhere yet."""
        first, *rest = aws_calls.calls(self._spec.name, step, properties, "" if is_repeatable else uuid4().hex)
        answer = self._patiently(first)
        identifier = str(answer[NAMES[step.kind]][f"{NAMES[step.kind]}Id"])
        for method, parameters in rest:
            try:
                self._patiently((method, {**parameters, f"{NAMES[step.kind]}Id": identifier}))
            except ApiError as error:
                if not is_gone(error.code):
                    raise
                # The token brought back what was deleted long ago: `missing` says so, and it is made by another.
        return identifier

    def update(self, step: Step, properties: Mapping[str, Any]) -> None:
        """Set these properties."""
        for call in aws_calls.calls(self._spec.name, step, properties):
            self._patiently(call)

    def adopt(self, step: Step) -> None:
        """Put our tags on it."""
        self.update(step, {})

    def delete(self, step: Step) -> None:
        """Remove it; one that is gone is fine."""
        for method, parameters in aws_calls.calls(self._spec.name, step, {}):
            try:
                self._call("ec2", method, **parameters)
            except ApiError as error:
                if not is_gone(error.code):
                    raise

    def _patiently(self, call: aws_calls.Call) -> dict[str, Any]:
        """Again while EC2 does not know a mirror object that we know."""
        from tenacity import retry_if_exception

        method, parameters = call
        patient = self._retrying(retry_if_exception(_is_unknown_yet), reraise=True)
        answer: dict[str, Any] = patient(self._call, "ec2", method, **parameters)
        return answer

    def _retrying(self, retry: Any, **more: Any) -> Any:
        from tenacity import Retrying, stop_after_delay, wait_exponential

        waits = wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=MOST_WAIT_SECONDS)
        return Retrying(stop=stop_after_delay(self._patience_seconds), wait=waits, retry=retry, **more)

    def missing(self, kind: str, ids: Sequence[str]) -> set[str]:
        """Which of those just made EC2 does not show, after waiting for it."""
        from tenacity import retry_if_result

        patient = self._retrying(retry_if_result(bool), retry_error_callback=lambda state: state.outcome.result())
        gone: set[str] = patient(lambda: set(ids) - self._there(kind))
        return gone

    def _there(self, kind: str) -> set[str]:
        """Identifiers of all objects of the kind; rules come with their filters."""
        if kind == aws_model.RULE:
            filters = aws_read.pages(self._call, "describe_traffic_mirror_filters", "TrafficMirrorFilters")
            return {
                rule["TrafficMirrorFilterRuleId"]
                for one in filters
                for rule in (*one.get("IngressFilterRules", ()), *one.get("EgressFilterRules", ()))
            }
        listed = aws_read.pages(self._call, f"describe_{SNAKE[kind]}s", f"{NAMES[kind]}s")
        return {one[f"{NAMES[kind]}Id"] for one in listed}

    # -- asking ---------------------------------------------------------------------------------------------------

    def prove(self, step: Step) -> str:
        """Each call of the step with DryRun: `proved`, or why EC2 could not tell. Raises RunError for a refusal."""
        unmade = [value for value in step.changes.values() if isinstance(value, Ref)]
        properties = {
            name: placeholder(value.kind) if isinstance(value, Ref) else value for name, value in step.changes.items()
        }
        for method, parameters in aws_calls.calls(self._spec.name, step, properties):
            verdict = self._dry_run(method, parameters, unmade or ([step] if step.op == CREATE else []))
            if verdict:
                return verdict
        return "proved"

    def _dry_run(self, method: str, parameters: dict[str, Any], unmade: Sequence[Ref | Step]) -> str:
        try:
            self._call("ec2", method, **parameters, DryRun=True)
        except ApiError as error:
            first_is_own_parent = method.startswith("create_") and not any(isinstance(one, Ref) for one in unmade)
            if error.code == WOULD_SUCCEED:
                return ""
            if is_gone(error.code) and unmade:
                return ""  # EC2 asks for the permission first, so that was granted
            if error.code in REFUSED and unmade and not first_is_own_parent:
                parts = ", ".join(sorted({one.kind for one in unmade}))
                return f"EC2 cannot tell before the {parts} exists"
            raise
        return ""


def _is_unknown_yet(error: BaseException) -> bool:
    return isinstance(error, ApiError) and error.code.startswith("InvalidTrafficMirror") and is_gone(error.code)


def _own_instance() -> str:
    from guestagent.mirror.metadata import own_cloud

    cloud = own_cloud()
    if cloud is None or cloud.provider != "aws":
        raise ConfigError("source: `self` works on an EC2 instance with its metadata service on: name the instance")
    return cloud.instance_id
