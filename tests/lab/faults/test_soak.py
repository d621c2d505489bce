"""The short form of the soak: `python -m tests.bench.soak` is the long one."""

from pathlib import Path

import pytest

from guestagent.lab.hosts import Lab
from tests.bench.soak.run import soak

SOAK_SECONDS = 40.0


@pytest.mark.root
@pytest.mark.alone
def test_nothing_grows_under_mixed_faults(lab: Lab, tmp_path: Path) -> None:
    """Each fault around a long-lived agent; 200 agents, reset storms, strangers: memory and files flat, books close."""
    assert not soak(lab, tmp_path, SOAK_SECONDS).complaints
