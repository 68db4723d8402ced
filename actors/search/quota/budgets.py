"""What was spent and what is set aside, by day and by month (UTC). Pure and exact: all amounts are integers.

Always true: `claimed`, which is what the journal holds, is at least what was spent as far as grants can foresee it, so
who starts again from the journal never takes spent money for unspent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from actors.search.quota.settings import BudgetSettings

MICRO = 1_000_000  # of a dollar
WINDOWS = {"day": "%Y-%m-%d", "month": "%Y-%m"}
WORDS = {"requests": "requests", "tokens": "tokens", "micro_usd": "USD"}


@dataclass(frozen=True)
class Spend:
    """An amount: requests sent, tokens, millionths of a dollar."""

    requests: int = 0
    tokens: int = 0
    micro_usd: int = 0

    def plus(self, other: Spend, times: int = 1) -> Spend:
        return Spend(
            self.requests + times * other.requests,
            self.tokens + times * other.tokens,
            self.micro_usd + times * other.micro_usd,
        )

    def minus(self, other: Spend) -> Spend:
        return self.plus(other, -1)

    def at_least(self, other: Spend) -> Spend:
        """The larger of both, part by part."""
        return Spend(
            max(self.requests, other.requests),
            max(self.tokens, other.tokens),
            max(self.micro_usd, other.micro_usd),
        )

    def covers(self, other: Spend) -> bool:
        return self.at_least(other) == self


def micro(usd: float) -> int:
    return round(usd * MICRO)


class Window:
    """The spending of one day or one month."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._limits: dict[str, int] = {}
        self.label = ""  # which day, which month
        self.spent = Spend()
        self.claimed = Spend()

    def limit(self, limit: BudgetSettings) -> None:
        self._limits = {"requests": limit.requests, "tokens": limit.tokens, "micro_usd": micro(limit.usd)}

    def roll(self, now: float) -> bool:
        """Begin a new window where the time has come for one; whether it had. Never back to an earlier one."""
        label = datetime.fromtimestamp(now, UTC).strftime(WINDOWS[self.name])
        if label <= self.label:
            return False
        self.label, self.spent, self.claimed = label, Spend(), Spend()
        return True

    def exceeded_by(self, amount: Spend) -> str:
        """The first part that has no room for `amount` on top of what was spent, in words; "" when all have."""
        for part, limit in self._limits.items():
            if limit and getattr(self.spent, part) + getattr(amount, part) > limit:
                return f"{_spoken(limit, part)} a {self.name} (per_{self.name}.{WORDS[part].lower()})"
        return ""

    def calls(self, each: Spend) -> int | None:
        """How many times `each` the whole window allows; None where nothing bounds it."""
        bounded = [(limit, getattr(each, part)) for part, limit in self._limits.items() if limit]
        return min((limit // amount for limit, amount in bounded if amount), default=None)

    def left(self, reserved: Spend) -> dict[str, float]:
        """What is left of each bounded part, in requests, tokens and USD."""
        found: dict[str, float] = {}
        for part, limit in self._limits.items():
            if limit:
                rest = max(0, limit - getattr(self.spent, part) - getattr(reserved, part))
                found[WORDS[part].lower()] = rest / MICRO if part == "micro_usd" else rest
        return found


class Budgets:
    """Both windows. Reservations belong to neither until they are settled."""

    def __init__(self) -> None:
        self.windows = (Window("day"), Window("month"))
        self.reserved = Spend()

    def limit(self, per_day: BudgetSettings, per_month: BudgetSettings) -> None:
        for window, limit in zip(self.windows, (per_day, per_month), strict=True):
            window.limit(limit)

    def roll(self, now: float) -> None:
        for window in self.windows:
            window.roll(now)

    def never_fits(self, amount: Spend) -> str:
        """The budget that is spent, in words, when `amount` cannot fit whatever becomes of the reservations."""
        return next((words for window in self.windows if (words := window.exceeded_by(amount))), "")

    def calls(self, each: Spend) -> int | None:
        """How many times `each` the smaller of both allows; None where nothing bounds it."""
        return min((calls for window in self.windows if (calls := window.calls(each)) is not None), default=None)

    def fits_now(self, amount: Spend) -> bool:
        return not any(window.exceeded_by(self.reserved.plus(amount)) for window in self.windows)

    def claimed_for(self, amount: Spend) -> bool:
        """Whether the journal already covers `amount` more."""
        return all(window.claimed.covers(window.spent.plus(self.reserved).plus(amount)) for window in self.windows)

    def reserve(self, amount: Spend) -> None:
        self.reserved = self.reserved.plus(amount)

    def settle(self, reserved: Spend, used: Spend) -> None:
        self.reserved = self.reserved.minus(reserved)
        for window in self.windows:
            window.spent = window.spent.plus(used)

    # --- journal ----------------------------------------------------------------------------------------------------

    def to_claim(self, more: Spend) -> dict[str, Any]:
        """What the journal has to hold before `more` can be granted: by window its label and the claim."""
        claims = {}
        for window in self.windows:
            claim = window.claimed.at_least(window.spent.plus(self.reserved).plus(more))
            claims[window.name] = {"label": window.label, "claimed": asdict(claim)}
        return claims

    def claim(self, written: dict[str, Any]) -> None:
        """The journal holds `written` now; a window that has rolled since is claimed anew another time."""
        for window in self.windows:
            entry = written[window.name]
            if entry["label"] == window.label:
                window.claimed = window.claimed.at_least(Spend(**entry["claimed"]))

    def restore(self, written: dict[str, Any]) -> None:
        """Start from the journal: what was claimed counts as spent."""
        for window in self.windows:
            entry = written[window.name]
            if entry["label"] >= window.label:
                window.label = entry["label"]
                window.spent = window.claimed = Spend(**entry["claimed"])


def _spoken(limit: int, part: str) -> str:
    return f"{limit / MICRO:g} USD" if part == "micro_usd" else f"{limit} {WORDS[part]}"
