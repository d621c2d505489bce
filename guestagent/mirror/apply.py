"""Does the steps of a plan through a provider: each kind in its order, failures told apart, nothing done twice."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from guestagent.errors import GuestagentError, RunError
from guestagent.mirror.plan import ADOPT, CREATE, DELETE, KEEP, UPDATE, Ref, Resource, Step, resolve

MOST_ATTEMPTS = 3
"""A resource that was made and is not there is made again so often, by another token."""


class Writer(Protocol):
    """What a provider must be able to do. Each raises RunError with a sentence; all may be repeated safely."""

    def create(self, step: Step, properties: Mapping[str, Any], attempt: int) -> str:
        """Make it with our marker in the same call; its identifier."""

    def update(self, step: Step, properties: Mapping[str, Any]) -> None:
        """Set these properties."""

    def adopt(self, step: Step) -> None:
        """Put our marker on it."""

    def delete(self, step: Step) -> None:
        """Remove it; one that is gone is fine."""

    def missing(self, kind: str, ids: Sequence[str]) -> set[str]:
        """Which of those just made are not there, after waiting as long as the provider may need to show them."""


@dataclass(slots=True)
class Outcome:
    """What became of the steps. `failed` pairs each with its sentence."""

    done: list[Step] = field(default_factory=list)
    failed: list[tuple[Step, str]] = field(default_factory=list)


def apply(
    steps: Sequence[Step], found: Iterable[Resource], writer: Writer, progress: Callable[[int, int, str], None]
) -> Outcome:
    """Do the steps. One that fails does not stop those that do not need it; `progress` hears (done, all, what)."""
    todo = [step for step in steps if step.op != KEEP]
    ids = {one.ref: one.id for one in sorted(found, key=lambda one: one.id, reverse=True) if one.is_ours}
    outcome = Outcome()
    # A step's kind and whether it removes: within such a group the order does not matter.
    for (kind, _), group in groupby(todo, key=lambda step: (step.kind, step.op == DELETE)):
        made: dict[str, Step] = {}
        for step in group:
            progress(len(outcome.done) + len(outcome.failed), len(todo), f"{step.op} {step.kind} {step.key}")
            _try(step, ids, writer, outcome, made, 0)
        _confirm(kind, made, ids, writer, outcome)
    progress(len(todo), len(todo), "done")
    return outcome


def _try(
    step: Step, ids: dict[Ref, str], writer: Writer, outcome: Outcome, made: dict[str, Step], attempt: int
) -> None:
    try:
        identifier = _do(step, ids, writer, attempt, outcome)
    except GuestagentError as error:
        if attempt:
            outcome.done.remove(step)
        outcome.failed.append((step, str(error)))
        return
    if step.op == CREATE:
        made[identifier] = step
    elif step.op == ADOPT:
        ids[Ref(step.kind, step.key)] = step.id
    if attempt == 0:
        outcome.done.append(step)


def _do(step: Step, ids: dict[Ref, str], writer: Writer, attempt: int, outcome: Outcome) -> str:
    properties = {name: resolve(value, ids) for name, value in step.changes.items()}
    for value in properties.values():
        if isinstance(value, Ref):
            raise RunError(f"it needs the {value.kind} {value.key}, which could not be made")
    if step.op == CREATE:
        ids[Ref(step.kind, step.key)] = identifier = writer.create(step, properties, attempt)
        return identifier
    if step.op == UPDATE:
        writer.update(step, properties)
    elif step.op == ADOPT:
        writer.adopt(step)
    elif any(failed.op != DELETE or failed.kind != step.kind for failed, _ in outcome.failed):
        # What failed may still use it; the next run removes it.
        raise RunError("it is kept, because an earlier step failed")
    else:
        writer.delete(step)
    return step.id


def _confirm(kind: str, made: dict[str, Step], ids: dict[Ref, str], writer: Writer, outcome: Outcome) -> None:
    """Make again what a token of an earlier, since deleted resource brought back as a mere identifier."""
    for attempt in range(1, MOST_ATTEMPTS + 1):
        gone = writer.missing(kind, sorted(made)) if made else set()
        again = [made.pop(identifier) for identifier in sorted(gone)]
        if not again:
            return
        for step in again:
            if attempt < MOST_ATTEMPTS:
                _try(step, ids, writer, outcome, made, attempt)
            else:
                ids.pop(Ref(step.kind, step.key), None)
                outcome.done.remove(step)
                outcome.failed.append((step, "it was made and is not there: run again in a minute"))
