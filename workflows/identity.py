"""What a stage's work follows from. Where that has changed, what was made before is not continued, and why is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TOLD = 6  # values; of more only the number is told


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first values that differ, by their dotted keys; empty when none does. Both as JSON gives them back."""
    old, new = dict(_flat(before)), dict(_flat(now))
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    told = [f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in differing[:TOLD]]
    return "; ".join([*told, *[f"and {len(differing) - TOLD} more"] * (len(differing) > TOLD)])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


__all__ = ["changes"]
