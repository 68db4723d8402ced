"""What evaluations during training have shown so far: the best version, and for how long nothing was better. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Best:
    """The best version so far."""

    step: int
    version: int
    metric: str  # exact_match | reward
    value: float
    low: float  # of the 95 % interval over questions (Wilson)
    high: float


@dataclass(frozen=True)
class EvaluationState:
    """What must survive a restart."""

    evaluated: int = -1  # the newest version that was evaluated
    best: Best | None = None
    mark: float | None = None  # the value that an improvement is measured from
    since: int = 0  # evaluations that counted since there was one

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> EvaluationState:
        """`None` is of a checkpoint from before there were evaluations. Raise TypeError for what was never written."""
        if data is None:
            return cls()
        return cls(**{**data, "best": Best(**data["best"]) if data["best"] else None})

    def after(self, version: int, found: Best | None, min_delta: float) -> EvaluationState:
        """The state once `version` is evaluated; `found` is None where that did not count."""
        seen = replace(self, evaluated=version)
        if found is None:
            return seen
        improved = self.mark is None or found.value > self.mark + min_delta
        return replace(
            seen,
            best=found if self.is_better(found) else self.best,
            mark=found.value if improved else self.mark,
            since=0 if improved else self.since + 1,
        )

    def is_better(self, found: Best) -> bool:
        """Strictly: of equals the earlier one stays."""
        return self.best is None or found.value > self.best.value
