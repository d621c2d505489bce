"""The metadata services of three clouds, as strict as they are known to be; for port 80 of 169.254.169.254."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "AQAEAexample=="
AWS = {
    "/latest/dynamic/instance-identity/document": json.dumps(
        {
            "instanceId": "i-0123456789abcdef0",
            "availabilityZone": "eu-central-1a",
            "instanceType": "m5.large",
            "region": "eu-central-1",
        }
    ),
    "/latest/meta-data/tags/instance": "Name\nteam/role",
    "/latest/meta-data/tags/instance/Name": "web1",
    "/latest/meta-data/tags/instance/team/role": "front \x1b[31m",
    "/latest/meta-data/placement/availability-zone": "eu-central-1a",
    "/latest/meta-data/placement/region": "eu-central-1",
}
GCP = {
    "id": 1234567890123456789,
    "zone": "projects/42/zones/europe-west3-b",
    "machineType": "projects/42/machineTypes/e2-small",
    "tags": ["web"],
}
AZURE = {
    "compute": {
        "vmId": "13f56399-bd52-4150-9748-7190aae1ff21",
        "location": "westeurope",
        "zone": "2",
        "vmSize": "Standard_D2s_v5",
        "tagsList": [{"name": "role", "value": "web"}],
    }
}


def listing(path: str) -> str:
    """The value, or the names below, of which those that have more below end in a slash; empty where nothing is."""
    if path in AWS:
        return AWS[path]
    below = [one.removeprefix(f"{path}/").split("/") for one in AWS if one.startswith(f"{path}/")]
    return "\n".join(dict.fromkeys(parts[0] + "/" * (len(parts) > 1) for parts in sorted(below, reverse=True)))


def serve(cloud: str) -> None:
    """Until killed."""

    class Handler(BaseHTTPRequestHandler):
        def _reply(self, status: int, text: str = "", **headers: str) -> None:
            payload = text.encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def do_PUT(self) -> None:
            seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if cloud != "aws" or self.path != "/latest/api/token":
                return self._reply(404)
            if "X-Forwarded-For" in self.headers:
                return self._reply(403)
            if not seconds.isdecimal() or not 1 <= int(seconds) <= 21600:
                return self._reply(400)
            return self._reply(200, TOKEN, X_aws_ec2_metadata_token_ttl_seconds=seconds)

        def do_GET(self) -> None:
            if "X-Forwarded-For" in self.headers:
                return self._reply(403)
            return getattr(self, f"_{cloud}")()

        def _aws(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
                return self._reply(401)
            text = listing(unquote(self.path).rstrip("/"))
            return self._reply(200, text) if text else self._reply(404)

        def _gcp(self) -> None:
            if self.headers.get("Metadata-Flavor") != "Google":
                return self._reply(403)
            if urlsplit(self.path).path != "/computeMetadata/v1/instance/":
                return self._reply(404)
            return self._reply(200, json.dumps(GCP), Metadata_Flavor="Google")

        def _azure(self) -> None:
            parts = urlsplit(self.path)
            version = parse_qs(parts.query).get("api-version", [""])[0]
            if self.headers.get("Metadata") != "true" or version != "2019-06-01":  # an old host
                return self._reply(400)
            return self._reply(200, json.dumps(AZURE)) if parts.path == "/metadata/instance" else self._reply(404)

        def _liar(self) -> None:
            """Something else that listens there: a huge body, or a redirect to where an answer would be had."""
            if self.path.startswith("/computeMetadata"):
                return self._reply(200, "x" * (1 << 20), Metadata_Flavor="Google")
            return self._reply(302, Location="http://127.0.0.1:8080/metadata/instance?api-version=2019-06-01")

        def log_message(self, *args: object) -> None: ...

    if cloud == "liar":
        elsewhere = type("Elsewhere", (Handler,), {"do_GET": Handler._azure})
        threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", 8080), elsewhere).serve_forever, daemon=True).start()
    ThreadingHTTPServer(("169.254.169.254", 80), Handler).serve_forever()
