"""A reward for models that know nothing, importable in Ray's workers."""

from __future__ import annotations

from typing import Any


def by_turns(question: Any, trajectory: Any, parts: Any) -> float:
    """Every other episode of a group is right, so that every group has something to teach."""
    return float(trajectory.sample_index % 2)
