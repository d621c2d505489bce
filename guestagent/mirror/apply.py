"""Does the steps of a plan through a provider: each kind in its order, failures told apart, nothing done twice."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

from guestagent.errors import GuestagentError, RunError
from guestagent.mirror.plan import DELETE, KEEP, Ref, Resource, Step, identifiers, resolve

MOST_ATTEMPTS = 3
"""A resource that was made and is not there is made again so often, each time by a token that was never used."""


class Writer(Protocol):
    """What a provider must be able to do. Each raises RunError with a sentence; all may be repeated safely."""

    def create(self, step: Step, properties: Mapping[str, Any], *, is_repeatable: bool) -> str:
        """Make it with our marker in the same call; its identifier.

        Repeatable: where an earlier run made the same call and died, it is that one's object, not a second.
        """

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
    found = list(found)
    work = _Work(writer, identifiers(found), {one.id: set(map(str, one.properties.values())) for one in found})
    # Within a group of one kind the order does not matter.
    for (kind, _), group in groupby(todo, key=lambda step: (step.kind, step.op == DELETE)):
        made: dict[str, Step] = {}
        for step in group:
            progress(len(work.outcome.done) + len(work.outcome.failed), len(todo), f"{step.op} {step.kind} {step.key}")
            made |= work.do(step)
        work.confirm(kind, made)
    progress(len(todo), len(todo), "done")
    return work.outcome


class _Work:
    """The steps under way. `ids` are the identifiers of what exists, by reference; `uses` what each refers to."""

    def __init__(self, writer: Writer, ids: dict[Ref, str], uses: Mapping[str, Collection[str]]) -> None:
        self._writer, self._ids, self._uses = writer, ids, uses
        self._is_repeatable = True
        self.outcome = Outcome()

    def do(self, step: Step) -> dict[str, Step]:
        """Once more or for the first time; what was made, by identifier."""
        try:
            made = self._do(step)
        except GuestagentError as error:
            self._fail(step, str(error))
            return {}
        if step not in self.outcome.done:
            self.outcome.done.append(step)
        return {made: step} if made else {}

    def _fail(self, step: Step, text: str) -> None:
        if step in self.outcome.done:
            self.outcome.done.remove(step)
        self.outcome.failed.append((step, text))

    def _do(self, step: Step) -> str:
        properties = {name: resolve(value, self._ids) for name, value in step.changes.items()}
        for value in properties.values():
            if isinstance(value, Ref):
                raise RunError(f"it needs the {value.kind} {value.key}, which could not be made")
        reference = Ref(step.kind, step.key)
        match step.op:
            case "create":
                made = self._writer.create(step, properties, is_repeatable=self._is_repeatable)
                self._ids[reference] = made
                return made
            case "update":
                self._writer.update(step, properties)
            case "adopt":
                self._writer.adopt(step)
                self._ids[reference] = step.id
            case "delete":
                if any(self._holds(failed, step) for failed, _ in self.outcome.failed):
                    raise RunError("it is kept, because an earlier step failed")
                self._writer.delete(step)
        return ""

    def _holds(self, failed: Step, step: Step) -> bool:
        """Whether what failed still uses what is to go, or was to take its place; the next run removes it."""
        return step.id in self._uses.get(failed.id, ()) or (failed.op != DELETE and failed.kind == step.kind)

    def confirm(self, kind: str, made: dict[str, Step]) -> None:
        """Make again what a token of an earlier, since deleted resource brought back as a mere identifier.

        What an earlier run left would have shown while we waited, so from here on nothing has to be repeatable.
        """
        for attempt in range(1, MOST_ATTEMPTS + 1):
            gone = self._writer.missing(kind, sorted(made)) if made else set()
            again = [made.pop(identifier) for identifier in sorted(gone)]
            for step in again:
                if attempt < MOST_ATTEMPTS:
                    self._is_repeatable = False
                    made |= self.do(step)
                else:
                    del self._ids[Ref(step.kind, step.key)]
                    self._fail(step, "it was made and is not there: run again in a minute")
            if not again:
                return
