"""A fake account behind HTTP: one call after the other, faults, idempotency, and what all its objects share."""

import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.mirror.aws.wire import SERVICES, Body, Decoder, Lost, Refusal, encode, error_xml, models

PREFIX = {"filter": "tmf-", "filter_rule": "tmfr-", "target": "tmt-", "session": "tms-"}
NAMES = {"filter": "Filter", "filter_rule": "FilterRule", "target": "Target", "session": "Session"}
UNAUTHORIZED = (
    "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/mirror is not authorized "
    "to perform: ec2:{0} on resource: arn:aws:ec2:eu-central-1:123456789012:* because no identity-based policy allows "
    "the ec2:{0} action. Encoded authorization failure message: x"
)


class Account:
    """The account. `faults` are (action or *, Refusal or Lost), each consumed by one call; `calls` is what arrived."""

    def __init__(self) -> None:
        self.models = models()
        self.objects: dict[str, dict[str, Body]] = {kind: {} for kind in PREFIX}
        self.instances: dict[str, Body] = {}
        self.interfaces: set[str] = set()
        self.listeners: dict[str, list[tuple[str, int]]] = {}
        self.members: dict[str, list[tuple[str, str]]] = {}
        """By load balancer, what its listeners send to: instance or address, and its health. Else one that is well."""
        self.endpoints: dict[str, str] = {}
        """VPC endpoints and their types."""
        self.tokens: dict[tuple[str, str], tuple[Body, Body]] = {}
        self.faults: list[tuple[str, Exception]] = []
        self.calls: list[tuple[str, Body]] = []
        self.unsupported: set[str] = set()
        self.denied: set[str] = set()
        self.hidden_calls = 0
        """So many describe calls do not show what was made last: eventual consistency."""
        self.after_write: Callable[[], None] = lambda: None
        """Called when a write was done and not yet answered."""
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode(), keep_blank_values=True)
                with fake.lock:
                    status, text = fake.answer({key: values[0] for key, values in form.items()})
                if status == 0:
                    self.close_connection = True
                    return
                payload = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, form: dict[str, str]) -> tuple[int, str]:
        """Status and body; status 0 hangs up."""
        service, action = SERVICES.get(form.get("Version", ""), "ec2"), form.get("Action", "")
        try:
            if action not in self.models[service].operation_names:
                raise Refusal("InvalidAction", f"The action {action} is not valid")
            operation = self.models[service].operation_model(action)
            body = Decoder(form, service).decode(operation)
            self.calls.append((action, dict(body)))
            result = self._perform(action, body)
        except Lost:
            return 0, ""
        except Refusal as error:
            return error.status, error_xml(error, service)
        inner = encode(operation.output_shape, result, "R", is_ec2=service == "ec2") if operation.output_shape else ""
        inner = inner.removeprefix("<R>").removesuffix("</R>")
        if service == "elbv2":
            inner = f"<{action}Result>{inner}</{action}Result>"
        return 200, f"<{action}Response><requestId>r</requestId>{inner}</{action}Response>"

    def _perform(self, action: str, body: Body) -> Body:
        fault = next((one for one in self.faults if one[0] in ("*", action)), None)
        if fault:
            self.faults.remove(fault)
            if not isinstance(fault[1], Lost):
                raise fault[1]
        for one in (action, *(("CreateTags",) if "TagSpecifications" in body else ())):
            if one in self.denied:
                raise Refusal("UnauthorizedOperation", UNAUTHORIZED.format(one), 403)
        handler: Callable[[Body], Body] | None = getattr(self, f"do_{action}", None)
        if handler is None:
            raise Refusal("Unsupported", f"the fake has no {action}")
        if body.pop("DryRun", False):
            raise Refusal("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)
        result = self._once(action, body, handler)
        if not action.startswith("Describe"):
            self.after_write()
        if fault:
            raise fault[1]
        return result

    def _once(self, action: str, body: Body, handler: Callable[[Body], Body]) -> Body:
        token = body.pop("ClientToken", None)
        if token is None:
            return handler(body)
        if len(token) > 64:
            raise Refusal("InvalidParameterValue", "the token is longer than 64")
        known = self.tokens.get((action, token))
        if known:
            if known[0] != body:
                raise Refusal("IdempotentParameterMismatch")
            return known[1]
        result = handler(body)
        self.tokens[action, token] = (body, result)
        return result

    # -- what all objects share ----------------------------------------------------------------------------------

    def _get(self, kind: str, identifier: str) -> Body:
        if identifier not in self.objects[kind]:
            raise Refusal(f"InvalidTrafficMirror{NAMES[kind]}Id.NotFound", f"{identifier} does not exist")
        return self.objects[kind][identifier]

    def _add(self, kind: str, body: Body, fields: Body) -> Body:
        identifier = PREFIX[kind] + secrets.token_hex(8) + "0"
        tags: list[Body] = []
        for one in body.get("TagSpecifications", ()):
            if one["ResourceType"] != f"traffic-mirror-{kind.replace('_', '-')}":
                raise Refusal("InvalidParameterValue", "the tags are for another type of resource")
            tags += one["Tags"]
        made = {f"TrafficMirror{NAMES[kind]}Id": identifier, **fields, "Tags": tags}
        if "Description" in body:
            made["Description"] = body["Description"]
        self.objects[kind][identifier] = made
        return made

    def _page(self, body: Body, found: list[Body], key: str) -> Body:
        start, size = int(body.get("NextToken", "0")), body.get("MaxResults", 1000)
        if not 5 <= size <= 1000:
            raise Refusal("InvalidParameterValue", "MaxResults is 5 to 1000")
        following = str(start + size) if start + size < len(found) else None
        return {key: found[start : start + size], "NextToken": following}

    def _describe(self, kind: str, body: Body, attributes: dict[str, str]) -> Body:
        name = f"TrafficMirror{NAMES[kind]}"
        ids = body.get(f"{name}Ids")
        for one in ids or ():
            self._get(kind, one)
        found = [one for key, one in self.objects[kind].items() if ids is None or key in ids]
        if self.hidden_calls:
            self.hidden_calls -= 1
            found = found[:-1]
        for one in body.get("Filters", ()):
            found = [raw for raw in found if matches(raw, one["Name"], set(one["Values"]), attributes)]
        return self._page(body, found, f"{name}s")


def tags_of(raw: Body) -> dict[str, str]:
    return {one["Key"]: one["Value"] for one in raw.get("Tags", ())}


def matches(raw: Body, name: str, values: set[str], attributes: dict[str, str]) -> bool:
    """A filter of a describe call."""
    if name.startswith("tag:"):
        return tags_of(raw).get(name.removeprefix("tag:")) in values
    if name == "tag-key":
        return bool(values & set(tags_of(raw)))
    if name not in attributes:
        raise Refusal("InvalidParameterValue", f"The filter '{name}' is invalid")
    return str(raw.get(attributes[name])) in values
