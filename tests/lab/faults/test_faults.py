"""Faults in a short run, those that the short soak does not have: agents that end, names and TLS, budgets."""

from pathlib import Path

import pytest

from guestagent.lab.hosts import Lab
from tests.bench.soak import run
from tests.lab.faults.harness import Trial
from tests.lab.faults.stage import SCENES, Stage
from tests.lab.faults.table import FAULTS

HOLD_SECONDS = 0.5


@pytest.mark.root
@pytest.mark.alone
@pytest.mark.parametrize("scene", sorted(SCENES.keys() - set(run.SCENES)))
def test_faults_break_no_promise(lab: Lab, tmp_path: Path, scene: str) -> None:
    """Under production traffic, each fault of this scene is seen, survived and paid for as the table says."""
    trial = Trial(Stage(lab, tmp_path, scene))
    for fault in FAULTS:
        if fault.scene == scene:
            trial.endure(fault, HOLD_SECONDS)

    assert not trial.end()
