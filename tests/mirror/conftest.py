"""A fake EC2 account and a fake project of GCP, and the command pointed at them as a user's environment would."""

import functools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import botocore.loaders
import pytest

from guestagent.cli import main
from guestagent.mirror.aws import provider as aws
from guestagent.mirror.gcp import clients
from guestagent.mirror.gcp import provider as gcp
from tests.mirror.aws.fake import Fake, fake_account
from tests.mirror.gcp.fake import Fake as FakeProject
from tests.mirror.gcp.fake import fake_project
from tests.mirror.gcp.words import PROJECT, REGION

one_loader = functools.cache(botocore.loaders.create_loader)


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """boto3 finds the fake by the variables that AWS documents for endpoints."""
    for fake in fake_account():
        settings = {
            "AWS_ENDPOINT_URL": fake.url,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "example",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(aws, "PATIENCE_SECONDS", 1.0)
        monkeypatch.setattr("guestagent.mirror.metadata.own_cloud", lambda: None)  # whatever machine this is
        # Each session reads EC2's model of 6 MB again, and each command has one of its own.
        monkeypatch.setattr("botocore.session.create_loader", one_loader)
        yield fake


@pytest.fixture(scope="session")
def project_server() -> Iterator[FakeProject]:
    """One server for all tests of GCP."""
    yield from fake_project()


@pytest.fixture(scope="session")
def service_account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service account's key as Google issues it: its tokens are signed here, so nobody has to be asked for one."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("gcp") / "key.json"
    content = {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "1",
        "private_key": key.decode(),
        "client_email": f"mirror@{PROJECT}.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "http://127.0.0.1:1/token",
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def project(
    project_server: FakeProject, service_account: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeProject]:
    """The library finds the fake by the variables that gcloud documents, the key by Google's own."""
    project_server.reset()
    settings = {
        clients.ENDPOINT_VARIABLE: f"{project_server.url}/compute/v1/",
        clients.REGION_VARIABLE: REGION,
        clients.CREDENTIALS_VARIABLE: str(service_account),
        "NO_GCE_CHECK": "true",
        "CLOUDSDK_CONFIG": "/nonexistent",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gcp, "PATIENCE_SECONDS", 1.5)
    monkeypatch.setattr("guestagent.mirror.metadata.own_cloud", lambda: None)  # whatever machine this is
    for name, seconds in (("FIRST_WAIT", 0.02), ("MOST_WAIT", 0.2), ("MOST_PAUSE", 0.02)):
        monkeypatch.setattr(gcp, f"{name}_SECONDS", seconds)
    yield project_server
    project_server.reset()


@pytest.fixture
def login_page() -> Iterator[str]:
    """A proxy that answers everything with HTML, as guest networks do; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            page = b"<html><body>Please log in<br></body></html>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def runner(provider: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `guestagent mirror PROVIDER ...`: exit code, output, errors."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["mirror", provider, *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def with_json(run: Any) -> Any:
    """The same with --json: exit code, document, errors."""

    def run_json(*words: str) -> tuple[int, Any, str]:
        code, out, err = run(*words, "--json")
        return code, json.loads(out) if out else None, err

    return run_json


@pytest.fixture
def mirror(capsys: pytest.CaptureFixture[str]) -> Any:
    """The command for AWS."""
    return runner("aws", capsys)


@pytest.fixture
def mirror_json(mirror: Any) -> Any:
    """The same with --json."""
    return with_json(mirror)


@pytest.fixture
def mirror_gcp(capsys: pytest.CaptureFixture[str]) -> Any:
    """The command for GCP."""
    return runner("gcp", capsys)


@pytest.fixture
def mirror_gcp_json(mirror_gcp: Any) -> Any:
    """The same with --json."""
    return with_json(mirror_gcp)


@pytest.fixture(autouse=True, scope="session")
def models_are_read_once() -> Iterator[None]:
    """Each client of boto3 parses EC2's model again, a quarter of a second that these tests pay a hundred times."""
    from botocore.loaders import JSONFileLoader

    read = functools.cache(JSONFileLoader().load_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda _, path: read(path))
        yield
