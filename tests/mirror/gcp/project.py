"""A fake project behind HTTP: requests by the library's own classes, faults, and operations that take their time."""

import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from google.protobuf.json_format import ParseError

from tests.mirror.gcp.routes import ROUTES, USED, Route
from tests.mirror.gcp.words import HOST, PROJECT, Body, Lost, Refusal


@dataclass
class Operation:
    """A change under way: done when `left` further requests have come, of whatever kind."""

    name: str
    target: str
    perform: Callable[[], None]
    left: int
    error: tuple[int, str, str] | None = None
    is_done: bool = False


@dataclass
class Project:
    """The project. `faults` are (handler or *, Refusal or Lost), each consumed by one call; `calls` is what arrived."""

    policies: dict[str, Body] = field(default_factory=dict)
    instances: list[Body] = field(default_factory=list)
    rules: dict[str, Body] = field(default_factory=dict)
    subnetworks: set[str] = field(default_factory=set)
    operations: dict[str, Operation] = field(default_factory=dict)
    request_ids: dict[tuple[str, str], str] = field(default_factory=dict)
    faults: list[tuple[str, Exception]] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    """Status, code and message of the operations that come next."""
    calls: list[tuple[str, Body]] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    silent_zones: set[str] = field(default_factory=set)
    quota: int = 100
    slowness: int = 2
    after_write: Callable[[], None] = lambda: None
    """Called when a write was taken and is not yet answered."""

    def __post_init__(self) -> None:
        self.reset()
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _take(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                content = self.rfile.read(size).decode()
                with fake.lock:
                    status, answer = fake.answer(self.command, self.path, content, self.headers.get("Authorization"))
                if status == 0:
                    self.close_connection = True
                    return
                payload = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = do_PATCH = do_DELETE = _take

            def log_message(self, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        """As after its beginning; the fake that is tested with says what there is then."""

    # -- the wire -------------------------------------------------------------------------------------------------

    def answer(self, method: str, target: str, content: str, authorization: str | None) -> tuple[int, Body]:
        """Status and body; status 0 hangs up."""
        self._advance()
        try:
            if not (authorization or "").startswith("Bearer "):
                raise Refusal(401, "required", "Login Required")
            found, request = self._parse(method, target, content)
            self.calls.append((found.handler, request))
            answer = self._perform(found, request)
        except Lost:
            return 0, {}
        except Refusal as error:
            entry = {"reason": error.reason, "message": error.message, "domain": "global"}
            return error.status, {"error": {"code": error.status, "message": error.message, "errors": [entry]}}
        return 200, answer

    def _parse(self, method: str, target: str, content: str) -> tuple[Route, Body]:
        """The route, and path, query and body as one request of the library's class."""
        parts = urlsplit(target)
        for one in ROUTES:
            match = one.path.fullmatch(parts.path)
            if match and one.method == method:
                break
        else:
            raise Refusal(404, "notFound", f"no such path: {method} {parts.path}")
        values: Body = {name: unquote(text) for name, text in match.groupdict().items()}
        for name, text in parse_qsl(parts.query, keep_blank_values=True):
            values[name] = text == "true" if text in ("true", "false") else text
        if content:
            if not one.body:
                raise Refusal(400, "parseError", "this method takes no body")
            values[one.body] = json.loads(content)
        elif one.body:
            raise Refusal(400, "required", "this method needs a body")
        try:
            # An unknown field or parameter, or a wrong type, is an error of the class.
            one.request.from_json(json.dumps(values), ignore_unknown_fields=False)
        except ParseError as error:
            raise Refusal(400, "invalid", str(error)) from error
        return one, values

    def _perform(self, found: Route, request: Body) -> Body:
        fault = next((one for one in self.faults if one[0] in ("*", found.handler)), None)
        if fault:
            self.faults.remove(fault)
            if not isinstance(fault[1], Lost):
                raise fault[1]
        if request["project"] != PROJECT:
            raise Refusal(404, "notFound", f"The resource 'projects/{request['project']}' was not found")
        if found.permission in self.denied:
            place = f"projects/{PROJECT}"
            raise Refusal(403, "forbidden", f"Required '{found.permission}' permission for '{place}'")
        for permission in sorted(self.denied.intersection(USED if found.handler in ("insert", "patch") else ())):
            raise Refusal(403, "forbidden", f"Required '{permission}' permission for '{USED[permission]}'")
        answer: Body = getattr(self, f"do_{found.handler}")(request)
        if found.handler in ("insert", "patch", "delete"):
            self.after_write()
        if fault:
            raise fault[1]
        return answer

    # -- operations -----------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        for one in self.operations.values():
            one.left -= 1
            if one.left <= 0 and not one.is_done:
                one.is_done = True
                if not one.error:
                    one.perform()

    def _operate(self, kind: str, request: Body, target: str, perform: Callable[[], None]) -> Body:
        """An operation, or the one that this request id began already."""
        request_id = request.get("requestId", "")
        if request_id:
            try:
                valid = uuid.UUID(request_id).int != 0
            except ValueError:
                valid = False
            if not valid:
                raise Refusal(400, "invalid", "Invalid value for field 'requestId'")
        name = f"operation-{len(self.operations)}"
        error = self.failures.pop(0) if self.failures else None
        self.operations[name] = Operation(name, target, perform, self.slowness, error)
        if request_id:
            self.request_ids[kind, request_id] = name
        return self._view(self.operations[name])

    def _known(self, kind: str, request: Body) -> Body | None:
        name = self.request_ids.get((kind, request.get("requestId", "")))
        return self._view(self.operations[name]) if name else None

    def _view(self, one: Operation) -> Body:
        status = "DONE" if one.is_done else "RUNNING"
        made: Body = {"name": one.name, "status": status, "targetLink": HOST + one.target, "kind": "compute#operation"}
        if one.is_done and one.error:
            made["httpErrorStatusCode"] = one.error[0]
            made["error"] = {"errors": [{"code": one.error[1], "message": one.error[2]}]}
        return made

    def do_wait(self, request: Body) -> Body:
        if request["operation"] not in self.operations:
            raise Refusal(404, "notFound", "The operation was not found")
        return self._view(self.operations[request["operation"]])
