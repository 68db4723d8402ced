"""What was asked of whom, how long it took, what it cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.agent.trajectory import Outcome


@dataclass(frozen=True)
class LedgerRow:
    """One call through the gateway, or one grounding of an expression (tool "ground")."""

    at: float  # unix seconds
    tool: str
    provider: str  # "" when none was asked
    outcome: Outcome
    latency_s: float
    cost_usd: float
    cached: bool
    requests: int  # sent to providers, failed attempts included
    tokens: int = 0  # that providers billed
    waited_s: float = 0.0  # for quota leases, part of the latency


@dataclass(frozen=True)
class Totals:
    """Sums over all rows ever entered, also those no longer kept."""

    calls: int = 0
    cached: int = 0
    requests: int = 0
    latency_s: float = 0.0
    cost_usd: float = 0.0
    tokens: int = 0
    waited_s: float = 0.0
    replayed: int = 0  # answers from a cassette
    unrecorded: int = 0  # calls that a cassette was asked for in vain
    by_outcome: dict[str, int] = field(default_factory=dict)
    by_tool: dict[str, int] = field(default_factory=dict)

    def with_row(self, row: LedgerRow) -> Totals:
        return self.plus(
            Totals(
                calls=1,
                cached=int(row.cached),
                requests=row.requests,
                latency_s=row.latency_s,
                cost_usd=row.cost_usd,
                tokens=row.tokens,
                waited_s=row.waited_s,
                by_outcome={row.outcome.value: 1},
                by_tool={row.tool: 1},
            )
        )

    def plus(self, other: Totals) -> Totals:
        return Totals(
            self.calls + other.calls,
            self.cached + other.cached,
            self.requests + other.requests,
            self.latency_s + other.latency_s,
            self.cost_usd + other.cost_usd,
            self.tokens + other.tokens,
            self.waited_s + other.waited_s,
            self.replayed + other.replayed,
            self.unrecorded + other.unrecorded,
            _added(self.by_outcome, other.by_outcome),
            _added(self.by_tool, other.by_tool),
        )

    def __str__(self) -> str:
        """One line for the end of a run."""
        if not self.calls:
            return "no searches"
        remembered = f"{self.cached / self.calls:.0%} from a cache"
        if taped := self.replayed + self.unrecorded:
            remembered += f" or the cassette ({self.replayed / taped:.1%} of what it was asked for was recorded)"
        parts = [f"{self.calls:,} calls of tools, {remembered}, {self.requests:,} requests"]
        if self.tokens:
            parts.append(f"{self.tokens:,} tokens")
        if self.cost_usd:
            parts.append(f"{self.cost_usd:.4f} USD")
        if self.waited_s >= 1:
            parts.append(f"{self.waited_s / self.calls:.2f} s each for quotas")
        failed = sum(n for name, n in self.by_outcome.items() if name in ("infra_error", "refused"))
        if failed:
            parts.append(f"{failed:,} failed")
        return ", ".join(parts)


def _added(left: dict[str, int], right: dict[str, int]) -> dict[str, int]:
    return {name: left.get(name, 0) + right.get(name, 0) for name in sorted({*left, *right})}


def merged(parts: Iterable[Totals]) -> Totals:
    """The totals of several workers as one."""
    total = Totals()
    for part in parts:
        total = total.plus(part)
    return total


class Ledger:
    """Rows in memory, the last `keep` of them; totals of all."""

    def __init__(self, keep: int) -> None:
        self._rows: deque[LedgerRow] = deque(maxlen=keep)
        self.totals = Totals()

    def enter(self, row: LedgerRow) -> None:
        self._rows.append(row)
        self.totals = self.totals.with_row(row)

    @property
    def rows(self) -> tuple[LedgerRow, ...]:
        return tuple(self._rows)
