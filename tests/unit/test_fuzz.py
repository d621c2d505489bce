"""Every parser, fuzzed for a moment in each run over a corpus that is kept; `python -m tests.fuzz` takes longer."""

import random

import pytest

from guestagent.capture import block
from guestagent.errors import GuestagentError
from tests.fuzz import targets
from tests.fuzz.engine import FoundError, fuzz, kept, tried
from tests.fuzz.targets import TARGETS

SECONDS = 1.2
"""Of each target; all together take a quarter of a minute."""


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_the_corpus_breaks_its_parser(name: str) -> None:
    """Whatever was found once stays mended."""
    for data in kept(name):
        tried(name, TARGETS[name], data)


@pytest.mark.parametrize("name", TARGETS)
def test_no_changed_input_breaks_its_parser(name: str) -> None:
    """A parser takes an input or refuses it in its own way, other inputs in each run; a find names its bytes."""
    assert fuzz(name, SECONDS, random.randrange(1 << 32)) > 0


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"filter"}))
def test_seeds_are_taken(name: str) -> None:
    """What is changed at random was sound before: the first seed goes through without a refusal."""
    TARGETS[name].run(next(TARGETS[name].seeds()))


def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red first: a walk that trusts its lengths is found out within moments."""

    def trusting(records: memoryview, count: int) -> object:
        for _ in range(count):
            step, *rest = block._RECORD.unpack_from(records, 0)
            records = records[step:]
            yield rest

    monkeypatch.setattr(targets, "walk", trusting)
    with pytest.raises(FoundError, match=r"error.*put [0-9a-f]+ into .*corpus/frames"):
        fuzz("frames", 10.0, 1)


def test_refusals_are_sentences() -> None:
    """What the parsers raise in their own way is ours, never a library's."""
    ours = {error for target in TARGETS.values() for error in target.refusals}
    assert all(error.__module__.startswith("guestagent.") for error in ours | {GuestagentError})
