"""A fake EC2 account, and the command pointed at it as a user's environment would."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from guestagent.cli import main
from guestagent.mirror import aws
from tests.mirror.ec2_fake import Fake, fake_account


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
        yield fake


@pytest.fixture
def mirror(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `guestagent mirror aws ...`: exit code, output, errors."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["mirror", "aws", *words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def mirror_json(mirror: Any) -> Any:
    """The same with --json: exit code, document, errors."""

    def run(*words: str) -> tuple[int, Any, str]:
        code, out, err = mirror(*words, "--json")
        return code, json.loads(out) if out else None, err

    return run
