"""Desired and observed resources in, the steps between them out; the same for every provider. Pure.

A resource is known by its kind and key. What a provider cannot change in place belongs into the key, so that another
value is another resource: the new one is made, those that refer to it follow, the old one goes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from guestagent.errors import ConfigError

CREATE, UPDATE, ADOPT, DELETE, KEEP = "create", "update", "adopt", "delete", "noop"


class Ref(NamedTuple):
    """In a property: the identifier of another resource, which may not exist yet."""

    kind: str
    key: str


@dataclass(frozen=True, slots=True)
class Resource:
    """An object of the provider, wanted or found. A property that the wanted one does not name stays as it is."""

    kind: str
    key: str
    properties: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    """Empty: it does not exist."""
    is_ours: bool = True
    """It bears our marker with this mirror's name."""

    @property
    def ref(self) -> Ref:
        """How others refer to it."""
        return Ref(self.kind, self.key)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. `changes` are the properties to set, all of them for a new resource."""

    op: str
    kind: str
    key: str
    id: str = ""
    reason: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


class Kind(NamedTuple):
    """A kind of resource; a provider lists them in the order of creation."""

    name: str
    is_unique: bool = False
    """The provider allows one resource of a key, whoever made it."""
    is_leaf: bool = False
    """Nothing refers to it and the provider allows so many: what is to go makes room for what comes."""


def diff(
    wanted: Iterable[Resource], found: Iterable[Resource], kinds: Sequence[Kind], adopt: Collection[str] = ()
) -> tuple[Step, ...]:
    """The steps, in an order in which they can be done. Raises ConfigError where a stranger's resource is in the way.

    New and changed ones come in the order of the kinds, then what is to go in the reverse order; of a leaf kind first.
    """
    wanted, found = list(wanted), sorted(found, key=lambda one: (one.kind, one.key, one.id))
    ours, surplus = _ours(wanted, found, adopt)
    _refuse_strangers(wanted, found, ours, kinds)
    ids = {ref: one.id for ref, one in ours.items()}
    kept = {want.ref for want in wanted}
    surplus += [one for ref, one in ours.items() if ref not in kept]
    first = {kind.name for kind in kinds if kind.is_leaf} & {want.kind for want in wanted}
    steps: list[Step] = []
    for kind in kinds:
        steps += [_goes(one) for one in surplus if one.kind == kind.name and kind.name in first]
        for want in wanted:
            steps += _toward(want, ours.get(want.ref), ids) if want.kind == kind.name else []
    for kind in reversed(kinds):
        steps += [_goes(one) for one in surplus if one.kind == kind.name and kind.name not in first]
    return tuple(steps)


def _ours(
    wanted: Sequence[Resource], found: Sequence[Resource], adopt: Collection[str]
) -> tuple[dict[Ref, Resource], list[Resource]]:
    """Ours by reference, the first of equals; and the rest of the equals, which a mishap left."""
    needed = {one.ref for one in wanted}
    ours: dict[Ref, Resource] = {}
    surplus = []
    for one in found:
        if one.is_ours and one.ref not in ours:
            ours[one.ref] = one
        elif one.is_ours:
            surplus.append(one)
    for one in found:
        if one.id in adopt and not one.is_ours:
            if one.ref not in needed or one.ref in ours:
                raise ConfigError(f"--adopt {one.id}: the {one.kind} is not one that this mirror lacks")
            ours[one.ref] = one
    missing = set(adopt) - {one.id for one in found}
    if missing:
        raise ConfigError(f"--adopt {', '.join(sorted(missing))}: there is no such object here")
    return ours, surplus


def _refuse_strangers(
    wanted: Sequence[Resource], found: Sequence[Resource], ours: Mapping[Ref, Resource], kinds: Sequence[Kind]
) -> None:
    unique = {kind.name for kind in kinds if kind.is_unique}
    lacking = {one.ref for one in wanted if one.kind in unique and one.ref not in ours}
    for one in found:
        if one.ref in lacking:
            raise ConfigError(
                f"the {one.kind} {one.key} exists and is not ours: give this mirror another name, or take it over with "
                f"--adopt {one.id}"
            )


def _toward(want: Resource, have: Resource | None, ids: Mapping[Ref, str]) -> list[Step]:
    if have is None:
        return [Step(CREATE, want.kind, want.key, "", "it does not exist", dict(want.properties))]
    changes = {
        name: value
        for name, value in want.properties.items()
        if resolve(value, ids) != have.properties.get(name) or (isinstance(value, Ref) and value not in ids)
    }
    adopted = [] if have.is_ours else [Step(ADOPT, have.kind, have.key, have.id, "--adopt names it")]
    if changes:
        names = ", ".join(sorted(changes))
        return [*adopted, Step(UPDATE, have.kind, have.key, have.id, f"other: {names}", changes)]
    return adopted or [Step(KEEP, have.kind, have.key, have.id)]


def _goes(one: Resource) -> Step:
    return Step(DELETE, one.kind, one.key, one.id, "the spec does not name it")


def resolve(value: Any, ids: Mapping[Ref, str]) -> Any:
    """A reference as the identifier where it is known; everything else as it is."""
    return ids.get(value, value) if isinstance(value, Ref) else value


def identifiers(found: Iterable[Resource]) -> dict[Ref, str]:
    """Of all that is ours, by reference; of equals the first."""
    ordered = sorted((one for one in found if one.is_ours), key=lambda one: one.id, reverse=True)
    return {one.ref: one.id for one in ordered}


def removal(found: Iterable[Resource], kinds: Sequence[Kind]) -> tuple[Step, ...]:
    """What deletes all that is ours, last made first."""
    return tuple(replace(step, reason="it bears our mark") for step in diff((), (o for o in found if o.is_ours), kinds))


def has_changes(steps: Iterable[Step]) -> bool:
    """Whether anything is to be done."""
    return any(step.op != KEEP for step in steps)
