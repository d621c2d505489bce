"""Which cloud this VM runs in, and as what: asked of the metadata service on the link-local address alone.

`python -m guestagent.mirror.metadata` prints it as one line of JSON, `null` outside of the clouds: the agent starts it
as a child for its hello, so that it need not load an HTTP client itself. The answers are labels for people; who must be
sure of a VM's identity verifies a signed document, not these.

Protocols: EC2 IMDSv2 (token first), GCP (Metadata-Flavor both ways), Azure IMDS (Metadata: true).
"""

import json
import re
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

ADDRESS = "169.254.169.254"
PORT = 80
CONNECT_SECONDS = 1.0
READ_SECONDS = 2.0
MOST_ANSWER_BYTES = 256 * 1024
MOST_TAGS = 50
"""AWS allows that many; more are not taken over."""
MOST_TEXT_CHARACTERS = 256
TOKEN_SECONDS = 60
MOST_SECONDS = 20
"""Of the child, also where the agent that started it was killed."""
_REGION = re.compile(r"[a-z]+(?:-[a-z]+)+-?\d+")
"""What the name of a zone begins with: us-gov-west-1a, us-east-1-bos-1a, europe-west3-b."""
AZURE_VERSIONS = ("2021-08-01", "2019-06-01")


@dataclass(frozen=True, slots=True)
class Cloud:
    """This VM. Texts are as the cloud says them, cut and printable."""

    provider: str
    instance_id: str
    zone: str = ""
    kind: str = ""
    """The machine type."""
    tags: tuple[tuple[str, str], ...] = ()
    """AWS and GCP show them only where the owner of the VM allows it."""

    def label(self) -> str:
        """`aws i-0abc us-east-1a m5.large`."""
        return " ".join(filter(None, (self.provider, self.instance_id, self.zone, self.kind)))

    @property
    def region(self) -> str:
        """The part of the cloud that the zone is in; empty where that is not known."""
        found = _REGION.match(self.zone)
        return found[0] if found else ""


class _NotThisCloud(Exception):
    """The service speaks, but not this protocol; or it refuses."""


Fetch = Callable[..., Any]
"""(method, path, headers) -> requests.Response"""


def own_cloud() -> Cloud | None:
    """This VM as its metadata service tells it; None where there is none. Takes up to a few seconds."""
    if not _answers():
        return None
    import requests

    with requests.Session() as session:
        session.trust_env = False  # no proxies: the address means this VM's own host

        def fetch(method: str, path: str, headers: dict[str, str]) -> Any:
            return _fetch(session, method, path, headers)

        for ask in (_aws, _gcp, _azure):
            try:
                return ask(fetch)
            except (_NotThisCloud, requests.RequestException, ValueError, KeyError, TypeError, AttributeError):
                continue
    return None


def own_region(provider: str) -> str:
    """Of this VM; empty where it is no VM of this provider."""
    cloud = own_cloud()
    return cloud.region if cloud and cloud.provider == provider else ""


def _answers() -> bool:
    """Before an HTTP client is loaded: does anything listen there?"""
    try:
        socket.create_connection((ADDRESS, PORT), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _fetch(session: Any, method: str, path: str, headers: dict[str, str]) -> Any:
    answer = session.request(
        method,
        f"http://{ADDRESS}{path}",
        headers=headers,
        timeout=(CONNECT_SECONDS, READ_SECONDS),
        allow_redirects=False,
        stream=True,
    )
    with answer:
        if answer.status_code != 200:
            raise _NotThisCloud(f"{path}: status {answer.status_code}")
        body = answer.raw.read(MOST_ANSWER_BYTES + 1, decode_content=True)
        if len(body) > MOST_ANSWER_BYTES:
            raise _NotThisCloud(f"{path}: more than {MOST_ANSWER_BYTES} bytes")
        return body.decode("utf-8", "replace"), answer.headers


def _text(value: Any) -> str:
    """What may go into a file name's neighbourhood: printable, cut."""
    return "".join(one for one in str(value) if one.isprintable())[:MOST_TEXT_CHARACTERS]


def _needed(value: Any) -> str:
    text = _text(value or "")
    if not text:
        raise _NotThisCloud("no instance id")
    return text


def _aws(fetch: Fetch) -> Cloud:
    token, _ = fetch("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)})
    headers = {"X-aws-ec2-metadata-token": token}
    document = json.loads(fetch("GET", "/latest/dynamic/instance-identity/document", headers)[0])
    return Cloud(
        provider="aws",
        instance_id=_needed(document["instanceId"]),
        zone=_text(document.get("availabilityZone", "")),
        kind=_text(document.get("instanceType", "")),
        tags=_aws_tags(fetch, headers),
    )


def _aws_tags(fetch: Fetch, headers: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """None where the instance does not allow tags in its metadata: a 404."""
    from urllib.parse import quote

    base = "/latest/meta-data/tags/instance"
    try:
        keys = fetch("GET", base, headers)[0].splitlines()[:MOST_TAGS]
        return tuple((_text(key), _text(fetch("GET", f"{base}/{quote(key, safe='')}", headers)[0])) for key in keys)
    except _NotThisCloud:
        return ()


def _gcp(fetch: Fetch) -> Cloud:
    body, headers = fetch("GET", "/computeMetadata/v1/instance/?recursive=true", {"Metadata-Flavor": "Google"})
    if headers.get("Metadata-Flavor") != "Google":
        raise _NotThisCloud("the answer is not Google's")
    found = json.loads(body)
    return Cloud(
        provider="gcp",
        instance_id=_needed(found["id"]),
        zone=_text(found.get("zone", "")).rpartition("/")[2],
        kind=_text(found.get("machineType", "")).rpartition("/")[2],
        tags=tuple((_text(one), "") for one in found.get("tags", ())[:MOST_TAGS]),
    )


def _azure(fetch: Fetch) -> Cloud:
    for version in AZURE_VERSIONS:
        try:
            body, _ = fetch("GET", f"/metadata/instance?api-version={version}", {"Metadata": "true"})
        except _NotThisCloud:
            continue
        found = json.loads(body)["compute"]
        place = "-".join(filter(None, (_text(found.get("location", "")), _text(found.get("zone", "")))))
        tags = tuple((_text(one["name"]), _text(one["value"])) for one in found.get("tagsList", ())[:MOST_TAGS])
        return Cloud("azure", _needed(found["vmId"]), place, _text(found.get("vmSize", "")), tags)
    raise _NotThisCloud("Azure answers to none of our versions")


if __name__ == "__main__":
    signal.alarm(MOST_SECONDS)
    cloud = own_cloud()
    sys.stdout.write(json.dumps(cloud and {**asdict(cloud), "label": cloud.label()}) + "\n")
