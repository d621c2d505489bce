"""A plan, its outcome and the state of mirrors, as text for people and as JSON for scripts. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from guestagent.mirror.plan import CREATE, DELETE, KEEP, UPDATE, Ref, Step
from guestagent.mirror.survey import AGENT, NATIVE, Choice, Health

SCHEMA = "guestagent.mirror/1"
_SIGNS = {CREATE: "+", UPDATE: "~", DELETE: "-"}
MOST_LINES = 40
"""Of one table on a terminal; a file and the JSON have all."""


def as_json(kind: str, provider: str, **content: Any) -> str:
    """One document; `kind` says which of ours it is."""
    return json.dumps({"schema": SCHEMA, "kind": kind, "provider": provider, **content}, indent=2) + "\n"


def step_json(step: Step) -> dict[str, Any]:
    """References are shown by kind and key."""
    changes = {
        name: f"{value.kind}:{value.key}" if isinstance(value, Ref) else value for name, value in step.changes.items()
    }
    return {**asdict(replace(step, changes={})), "changes": changes}


def health_json(health: Health) -> dict[str, Any]:
    """One mirror."""
    return {
        "name": health.name,
        "works": not health.problems,
        "problems": list(health.problems),
        "notes": list(health.notes),
        "resources": [{"kind": one.kind, "key": one.key, "id": one.id} for one in health.resources],
        **health.facts,
    }


def _capped(lines: list[str], most: int | None) -> list[str]:
    if most is None or len(lines) <= most:
        return lines
    return [*lines[:most], f"  ... and {len(lines) - most} more: write it to a file, or see --json"]


def steps_text(steps: Sequence[Step], proofs: Mapping[int, str], most: int | None) -> list[str]:
    """One line for each step that changes something; `proofs` by the number of the step."""
    lines = []
    for number, step in enumerate(steps):
        if step.op != KEEP:
            proof = f"  [{proofs[number]}]" if number in proofs else ""
            identifier = f" {step.id}" if step.id else ""
            lines.append(
                f"  {_SIGNS.get(step.op, '!')} {step.op} {step.kind} {step.key}{identifier}: {step.reason}{proof}"
            )
    return _capped(lines, most) or ["  nothing to do"]


def choices_text(choices: Sequence[Choice], most: int | None) -> list[str]:
    """One line for each machine, native ones first, then the totals."""
    lines = []
    for one in sorted(choices, key=lambda one: (one.way != NATIVE, one.machine)):
        name = f" ({one.name})" if one.name else ""
        why = f"{one.reason}; {one.cost}; {one.limits}; MTU {one.mtu}"
        lines.append(f"  {one.way:6} {one.machine}{name} {one.kind}: {why}")
    native = sum(one.way == NATIVE for one in choices)
    return [*_capped(lines, most), f"  {native} native, {len(choices) - native} by the agent"]


def agents_of(choices: Sequence[Choice]) -> list[str]:
    """The machines that need the agent."""
    return [one.machine for one in choices if one.way == AGENT]


def health_text(health: Health) -> list[str]:
    """A head line with what it is made of, the problems, the notes."""
    counts = ", ".join(f"{name} {value}" for name, value in health.facts.items() if not isinstance(value, list))
    lines = [f"{health.name}: {'broken' if health.problems else 'in order'}; {counts}"]
    return [*lines, *(f"  {text}" for text in health.problems), *(f"  note: {text}" for text in health.notes)]
