"""The fault table: every fault of the list has a row, the committed document has every row, named tests exist."""

import ast
from collections import Counter

import pytest

from tests.lab.faults.document import DOCUMENT, render, replaced
from tests.lab.faults.harness import Outcome
from tests.lab.faults.stage import SCENES
from tests.lab.faults.table import ELSEWHERE, FAULTS, NOT_HERE
from tests.repo.source import ROOT

LIST = {f"F{number}" for number in range(1, 33)}


def rows(text: str) -> Counter[tuple[str, str]]:
    """(id, title) of every row of the document's tables."""
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| F")]
    return Counter((row[1], row[2]) for row in cells)


def titles() -> Counter[tuple[str, str]]:
    """Of the three literal tables."""
    return Counter((row.id, row.title) for table in (FAULTS, ELSEWHERE, NOT_HERE) for row in table)


def test_every_fault_of_the_list_has_a_row() -> None:
    """F1 to F32, and nothing that is not on the list."""
    assert {row.id for table in (FAULTS, ELSEWHERE, NOT_HERE) for row in table} == LIST


def test_titles_are_unique_and_scenes_exist() -> None:
    """A title names one fault; a scene is one of those that the stage knows."""
    assert max(titles().values()) == 1
    assert {fault.scene for fault in FAULTS} == set(SCENES)


def test_the_committed_document_lists_every_fault() -> None:
    """docs/faults.md is of this table: regenerate it with `python -m tests.lab.faults` where this fails."""
    assert rows(DOCUMENT.read_text()) == titles()


def test_a_rendered_document_lists_every_fault() -> None:
    """What the command writes has a row for each."""
    assert rows(render([Outcome(fault) for fault in FAULTS], 5.0)) == titles()


def test_rows_are_replaced_alone() -> None:
    """A run of one fault changes its row and nothing else."""
    text, outcome = render([Outcome(fault) for fault in FAULTS], 5.0), Outcome(FAULTS[0], recovery_seconds=7.7)
    new = replaced(text, [outcome])

    assert [line for line in new.splitlines() if line not in text.splitlines()] == [
        line for line in new.splitlines() if "7.7" in line
    ]
    assert rows(new) == titles()


@pytest.mark.parametrize("row", ELSEWHERE, ids=lambda row: row.title)
def test_a_test_that_is_named_exists(row: object) -> None:
    """The file has a test function of that name."""
    path, _, name = row.test.partition("::")
    tree = ast.parse((ROOT / "tests" / path).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
