"""Who may come in, how often, and for how much a day. Pure, on injected clocks.

    Authorization header -> Keyring -> an Allowance -> Doorkeeper: rate and budget of its key

Always true: keys are compared by their hashes, all of them, in constant time, so that neither an answer nor its time
tells how close a guess was; nothing here holds a key, and what is told about one is its name.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from actors.search.quota.limiter import Gcra
from workflows.serve import errors
from workflows.serve.settings import KeySettings

PREFIX = "mms-"
ANYBODY = "anybody"  # who comes in where there are no keys
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]{1,512}=*)", re.IGNORECASE)  # RFC 6750, with a bound


def new_key() -> tuple[str, str]:
    """A key and its SHA-256: one for its owner, the other for the configuration."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, digest(key)


def digest(key: str) -> str:
    """SHA-256 in hexadecimal. A key is 256 random bits: no salt and no slow hash is needed against guessing."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class Allowance:
    """What a key may use, by its name: what processes tell each other of it."""

    name: str
    requests_per_minute: float
    usd_per_day: float | None = None


class Keyring:
    """The keys of a service, by their hashes. None: everybody may come in."""

    def __init__(self, keys: Sequence[KeySettings]) -> None:
        self._known = [(key.sha256, Allowance(key.name, key.requests_per_minute, key.usd_per_day)) for key in keys]

    def of(self, authorization: str | None) -> Allowance | None:
        """Whose request it is; None where no keys are asked for. Raises `ApiError` for no key of ours."""
        if not self._known:
            return None
        sent = _BEARER.fullmatch(authorization or "")
        if sent is None:
            raise errors.unauthorized("This service wants a key: send one as `Authorization: Bearer KEY`.")
        given, found = digest(sent[1]), None
        for sha256, allowance in self._known:  # to the end, wherever it is found
            if hmac.compare_digest(sha256, given):
                found = allowance
        if found is None:
            raise errors.unauthorized("This key is not known here.")
        return found


class Doorkeeper:
    """What every key has used. `clock`: monotonic seconds; `wall`: unix seconds.

    A request's searches are counted as they are paid for: what runs when a budget is reached may take it over by that.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._clock, self._wall = clock, wall
        self._rates: dict[str, tuple[float, Gcra]] = {}
        self._usd: dict[str, float] = {}
        self._before: dict[str, float] = {}  # spent on this day before this doorkeeper came
        self._careful = False
        self._day = self._today()

    @property
    def spent(self) -> tuple[str, dict[str, float]]:
        """The day in UTC, as 2026-11-21, and the USD of it by key that were charged here."""
        self._turn_day()
        return self._day, dict(self._usd)

    def recall(self, day: str, usd: Mapping[str, float]) -> None:
        """What others have written down for a day; another day's does not count."""
        self._turn_day()
        if day == self._day:
            self._before = dict(usd)

    def forget_bursts(self) -> None:
        """As if every key had just used up what it may send at once: what a doorkeeper that was killed must assume."""
        self._careful = True

    def admit(self, allowance: Allowance) -> None:
        """Count a request. Raises `ApiError`, 429, for a key that is used up; such a request is not counted."""
        self._turn_day()
        most = allowance.usd_per_day
        if most is not None and self._before.get(allowance.name, 0.0) + self._usd.get(allowance.name, 0.0) >= most:
            raise errors.budget_spent(f"This key has spent its {most:g} USD of today; a day begins at 0:00 UTC.")
        rate, now = self._rate(allowance), self._clock()
        if (opens := rate.open_at(now)) > now:
            raise errors.too_many("This key has asked too often; Retry-After says when it may again.", opens - now)
        rate.take(now)

    def charge(self, name: str, usd: float) -> None:
        """What a search of a key's has cost."""
        self._turn_day()
        self._usd[name] = self._usd.get(name, 0.0) + max(0.0, usd)

    def _rate(self, allowance: Allowance) -> Gcra:
        per_minute = allowance.requests_per_minute
        known = self._rates.get(allowance.name)
        if known is None or known[0] != per_minute:
            rate = Gcra(per_minute / 60, max(1, int(per_minute)))
            if self._careful:
                rate.forget_burst(self._clock())
            known = self._rates[allowance.name] = (per_minute, rate)
        return known[1]

    def _turn_day(self) -> None:
        if self._today() > self._day:  # a clock that is set back brings no second budget
            self._day, self._usd, self._before = self._today(), {}, {}

    def _today(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).date().isoformat()
