"""Fixtures of the lab tests: a lab that is gone after each test, and the usual two hosts."""

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestagent.errors import HostError
from guestagent.lab.hosts import Host, Lab
from tests.lab.engines import ENGINES
from tests.lab.rig import Rig

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A lab test that fails is run once more, and the summary names it: real kernels and two shared cores disturb each
    other now and then. Twice in a row is a fault of ours."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.get_closest_marker("flaky") is None:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab, or a skip with the kernel's reason."""
    if os.geteuid() != 0:  # becoming root of a user namespace needs a process with one thread: stop pytest's watchdog
        faulthandler.cancel_dump_traceback_later()
    try:
        new = Lab()
        new.host("probe")
    except HostError as error:
        pytest.skip(str(error))
    with new:
        yield new


@pytest.fixture
def pair(lab: Lab) -> tuple[Host, Host]:
    """Agent (10.9.0.2, fd00:9::2) and peer (10.9.0.1, fd00:9::1) on one cable."""
    agent, peer = lab.host("agent"), lab.host("peer")
    lab.link(agent, peer)
    return agent, peer


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """Agent and collector below a directory of this test."""
    return Rig(tmp_path)


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of an engine."""
    return str(request.param)
