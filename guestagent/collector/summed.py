"""What several workers know, as one would tell it: counts added, agents side by side, words once. Pure."""

from collections.abc import Sequence
from typing import Any

_LEAST = frozenset({"room_bytes"})
"""Numbers of which the smallest counts."""
_BY_SENSOR = "to"
"""Rows of one sensor have its name under this key, and the same place in each worker's list."""


def summed(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum of snapshots or reports of one shape; keys that only some have are kept."""
    keys = dict.fromkeys(key for value in values for key in value)
    return {key: _sum(key, [value[key] for value in values if key in value]) for key in keys}


def _sum(key: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, bool):
        return all(values)
    if isinstance(first, int | float):
        return min(values) if key in _LEAST else sum(values)
    if isinstance(first, str):
        return "; ".join(dict.fromkeys(filter(None, values)))
    if isinstance(first, dict):
        return summed(values)
    if all(_is_of_sensors(value) for value in values):
        return [summed(rows) for rows in zip(*values, strict=True)]
    return [row for value in values for row in value]


def _is_of_sensors(value: Any) -> bool:
    return bool(value) and all(isinstance(row, dict) and _BY_SENSOR in row for row in value)
