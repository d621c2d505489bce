"""The diff and the doing of it, against a provider in memory, for random wishes, states, strangers and crashes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestagent.errors import ConfigError, RunError
from guestagent.mirror.apply import Outcome, apply
from guestagent.mirror.plan import (
    ADOPT,
    CREATE,
    DELETE,
    KEEP,
    UPDATE,
    Kind,
    Ref,
    Resource,
    Step,
    diff,
    has_changes,
    removal,
)
from tests.mirror.mortal import Crash

KINDS = (Kind("filter"), Kind("target"), Kind("session"))


class Memory:
    """A provider that insists on references that exist and on nothing deleted that is in use."""

    def __init__(self, found: Sequence[Resource]) -> None:
        self.found = {one.id: one for one in found}
        self.next = 1000
        self.calls = 0
        self.crash_after = -1
        self.repeatable: list[bool] = []
        self.has_dead_tokens = False
        """Repeatable calls bring back what was deleted."""
        self.loses = 0
        """Calls whose work is not there."""

    def _call(self) -> None:
        self.calls += 1

    def _end(self) -> None:
        if self.calls == self.crash_after:
            raise Crash

    def _check(self, properties: Mapping[str, Any]) -> None:
        if "filter" in properties:
            assert properties["filter"] in self.found, "refers to what is not there"

    def create(self, step: Step, properties: Mapping[str, Any], *, is_repeatable: bool) -> str:
        self._call()
        self._check(properties)
        self.next += 1
        identifier = f"id-{self.next}"
        self.repeatable.append(is_repeatable)
        if is_repeatable and self.has_dead_tokens:
            return identifier
        if self.loses:
            self.loses -= 1
        else:
            self.found[identifier] = Resource(step.kind, step.key, dict(properties), identifier)
        self._end()
        return identifier

    def update(self, step: Step, properties: Mapping[str, Any]) -> None:
        self._call()
        self._check(properties)
        old = self.found[step.id]
        self.found[step.id] = Resource(old.kind, old.key, {**old.properties, **properties}, old.id, old.is_ours)
        self._end()

    def adopt(self, step: Step) -> None:
        self._call()
        old = self.found[step.id]
        self.found[step.id] = Resource(old.kind, old.key, old.properties, old.id)
        self._end()

    def delete(self, step: Step) -> None:
        self._call()
        used = {one.properties.get("filter") for one in self.found.values()}
        if step.id in used:
            raise RunError("in use")
        assert self.found.pop(step.id).is_ours, "a stranger's"
        self._end()

    def missing(self, kind: str, ids: Sequence[str]) -> set[str]:
        return set(ids) - set(self.found)


def do(wanted: Sequence[Resource], memory: Memory, adopt: Sequence[str] = ()) -> Outcome:
    found = list(memory.found.values())
    return apply(diff(wanted, found, KINDS, adopt), found, memory, lambda done, total, what: None)


keys = st.sampled_from(["a", "b", "c", "d"])
number = st.integers(0, 3)


@st.composite
def wishes(draw: st.DrawFn) -> list[Resource]:
    """Filters, and sessions that refer to them."""
    filters = draw(st.dictionaries(keys, number, min_size=1))
    made = [Resource("filter", key, {"dns": value}) for key, value in filters.items()]
    for key, value in draw(st.dictionaries(keys, number)).items():
        refers = Ref("filter", draw(st.sampled_from(sorted(filters))))
        made.append(Resource("session", key, {"filter": refers, "number": value}))
    return made


@st.composite
def states(draw: st.DrawFn) -> list[Resource]:
    """Ours and strangers', equals included."""
    filters = [
        Resource("filter", draw(keys), {"dns": draw(number)}, f"id-{index}", draw(st.booleans()))
        for index in range(draw(st.integers(1, 5)))
    ]
    sessions = []
    for index in range(draw(st.integers(0, 4))):
        is_ours = draw(st.booleans())
        # A stranger may use our filter; then that one can't be deleted, which is another test.
        usable = [one.id for one in filters if is_ours or not one.is_ours]
        if usable:
            properties = {"filter": draw(st.sampled_from(usable)), "number": draw(number)}
            sessions.append(Resource("session", draw(keys), properties, f"id-{10 + index}", is_ours))
    return filters + sessions


def strangers(memory: Memory) -> list[Resource]:
    return sorted((one for one in memory.found.values() if not one.is_ours), key=lambda one: one.id)


@given(wishes(), states())
def test_apply_reaches_the_wish(wanted: list[Resource], found: list[Resource]) -> None:
    """From any state the steps reach the wish, a second plan is empty, and strangers' objects are as they were."""
    memory = Memory(found)
    before = strangers(memory)

    outcome = do(wanted, memory)

    assert not outcome.failed
    ours = [one for one in memory.found.values() if one.is_ours]
    assert sorted(one.ref for one in ours) == sorted(one.ref for one in wanted)
    assert not has_changes(diff(wanted, memory.found.values(), KINDS))
    assert strangers(memory) == before


@given(wishes(), states(), st.integers(1, 12))
def test_a_crash_after_any_call_is_repaired(wanted: list[Resource], found: list[Resource], after: int) -> None:
    """Whatever was the last call, the next run reaches the wish without a second of anything."""
    memory = Memory(found)
    memory.crash_after = after
    before = strangers(memory)
    try:
        do(wanted, memory)
    except Crash:
        do(wanted, memory)

    ours = [one.ref for one in memory.found.values() if one.is_ours]
    assert sorted(ours) == sorted(one.ref for one in wanted)
    assert strangers(memory) == before


@given(states())
def test_removal_leaves_strangers_alone(found: list[Resource]) -> None:
    """Delete removes all that is ours and nothing else."""
    memory = Memory(found)
    before = strangers(memory)

    outcome = apply(removal(found, KINDS), found, memory, lambda done, total, what: None)

    assert not outcome.failed
    assert sorted(memory.found.values(), key=lambda one: one.id) == before


def test_the_new_comes_before_the_old_goes() -> None:
    """Another key of a target: made first, the session follows, then the old one goes."""
    found = [
        Resource("target", "old", {}, "t1"),
        Resource("session", "a", {"target": "t1"}, "s1"),
    ]
    wanted = [Resource("target", "new"), Resource("session", "a", {"target": Ref("target", "new")})]

    steps = diff(wanted, found, KINDS)

    assert [(step.op, step.kind, step.key) for step in steps] == [
        (CREATE, "target", "new"),
        (UPDATE, "session", "a"),
        (DELETE, "target", "old"),
    ]


def test_a_stranger_is_in_the_way_until_adopted() -> None:
    """Of a kind whose keys are unique a stranger's is refused by name; --adopt marks it and then changes it."""
    kinds = (Kind("filter", is_unique=True),)
    found = [Resource("filter", "a", {"dns": 1}, "x1", is_ours=False)]
    wanted = [Resource("filter", "a", {"dns": 2})]

    with pytest.raises(ConfigError, match="--adopt x1"):
        diff(wanted, found, kinds)
    assert [step.op for step in diff(wanted, found, kinds, ["x1"])] == [ADOPT, UPDATE]
    with pytest.raises(ConfigError, match="no such object"):
        diff(wanted, found, kinds, ["x2"])


def test_what_a_token_brought_back_is_made_again() -> None:
    """An identifier of what was deleted leads to a new token, for all that follows; three losses lead to a failure."""
    wanted = [Resource("filter", "a"), Resource("session", "b", {"filter": Ref("filter", "a")})]
    memory = Memory([])
    memory.has_dead_tokens = True
    assert not do(wanted, memory).failed
    assert memory.repeatable == [True, False, False]
    assert not has_changes(diff(wanted, memory.found.values(), KINDS))

    memory = Memory([])
    memory.loses = 3
    outcome = do(wanted, memory)
    assert [step.kind for step, _ in outcome.failed] == ["filter", "session"]
    assert not outcome.done


def test_a_failure_stops_only_what_needs_it() -> None:
    """A filter in use by a stranger stays; its failure is told, and what is independent is done."""
    found = [
        Resource("filter", "a", {}, "f1"),
        Resource("filter", "b", {}, "f2"),
        Resource("session", "x", {"filter": "f1"}, "s1", is_ours=False),
    ]
    memory = Memory(found)

    outcome = apply(removal(found, KINDS), found, memory, lambda done, total, what: None)

    assert [step.id for step, _ in outcome.failed] == ["f1"]
    assert [step.id for step in outcome.done] == ["f2"]


def test_what_a_failed_step_holds_is_kept() -> None:
    """A session that could not be moved keeps its old target; a policy whose successor could not be made stays."""
    found = [
        Resource("target", "old", {}, "t1"),
        Resource("target", "new", {}, "t2"),
        Resource("session", "a", {"filter": "f0", "target": "t1"}, "s1"),
    ]
    memory = Memory([*found, Resource("filter", "f", {}, "f0", is_ours=False)])
    steps = [
        Step(UPDATE, "session", "a", "s1", changes={"filter": Ref("filter", "absent")}),
        Step(DELETE, "target", "old", "t1"),
        Step(DELETE, "target", "new", "t2"),
        Step(CREATE, "filter", "b", changes={"filter": Ref("filter", "absent")}),
        Step(DELETE, "filter", "f", "f0"),
    ]

    outcome = apply(steps, found, memory, lambda done, total, what: None)

    assert [step.id for step in outcome.done] == ["t2"]
    assert [text for step, text in outcome.failed if step.op == DELETE] == [
        "it is kept, because an earlier step failed",
        "it is kept, because an earlier step failed",
    ]


def test_what_fits_is_kept() -> None:
    """A property that the wish does not name is not compared."""
    found = [Resource("filter", "a", {"dns": 1, "vni": 7}, "f1")]

    assert [step.op for step in diff([Resource("filter", "a", {"dns": 1})], found, KINDS)] == [KEEP]
