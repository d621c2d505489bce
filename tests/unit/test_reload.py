"""A config that is read again: what can change does, and nothing else is taken for in force."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from guestagent import reload
from guestagent.config import RunConfig
from guestagent.endpoint import Endpoint
from guestagent.errors import ConfigError


def reloaded(monkeypatch: pytest.MonkeyPatch, read: Any) -> tuple[RunConfig, list[RunConfig]]:
    """(what is in force after the default config, what the governor was told)."""
    monkeypatch.setattr(reload, "renewed", lambda *_: None)
    told: list[RunConfig] = []
    desk = SimpleNamespace(capture=None, renew=lambda *_: None)
    steering = SimpleNamespace(limits=SimpleNamespace(selection=None), renew=lambda config, _: told.append(config))
    return reload.reload(RunConfig(), read, cast(Any, desk), cast(Any, steering), 0.0), told


def test_what_is_read_at_the_start_alone_stays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another rate is in force; another collector and seed are told of, and the governor reckons with the old ones."""
    new = replace(RunConfig(), rate=1000.0, seed=7, to=(Endpoint("tcp", "10.0.0.9", 4795),))
    with caplog.at_level("INFO", "guestagent.agent"):
        found, told = reloaded(monkeypatch, lambda: new)

    assert replace(RunConfig(), rate=1000.0) == found
    assert [found] == told
    assert "read again: rate" in caplog.text
    assert "restart to change what is read at the start alone: to, seed" in caplog.text


def test_a_bad_file_changes_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The old config stays, and the log says why."""

    def read() -> RunConfig:
        raise ConfigError("rate: no number")

    assert (RunConfig(), []) == reloaded(monkeypatch, read)
    assert "the old one stays in force: rate: no number" in caplog.text
