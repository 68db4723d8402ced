"""Who asks for all: of those who want the same answer at once, one has the claim and the others wait.

Always true: at most one claim per key is valid at a time; a claim whose owner has been silent for `claim_s` is void and
the next one who wants the answer gets it; nobody waits longer than they said; errors are told to those who wait now and
then forgotten. An answer ends the waiting whoever brings it, an error only when the owner does.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from actors.agent.seams import Clock
from actors.search.store.records import Answer

SWEEP_AT = 1024  # flights in memory before those are looked for whose owner died and whom nobody waits for


@dataclass(frozen=True)
class Claim:
    """The right to ask for all. It is void after `seconds` without `renew`."""

    token: str
    seconds: float


@dataclass(frozen=True)
class Told:
    """The claim's owner met `error`."""

    error: Exception


@dataclass(eq=False)
class _Flight:
    token: str
    until: float
    landed: asyncio.Future[Answer | Told | None]  # None: nobody has the claim any more


class Flights:
    """For one event loop. `clock`: monotonic seconds."""

    def __init__(self, claim_s: float, clock: Clock) -> None:
        self._claim_s, self._clock = claim_s, clock
        self._flights: dict[str, _Flight] = {}
        self._sweep_at = SWEEP_AT
        self.lapsed = 0  # claims that went to the next one because their owner was silent

    def __len__(self) -> int:
        return len(self._flights)

    # --- wanting an answer ----------------------------------------------------------------------------------

    def claim(self, key: str) -> Claim | None:
        """The claim on `key`, None while somebody else has it."""
        flight, now = self._flights.get(key), self._clock()
        if flight is not None and flight.until > now:
            return None
        self.lapsed += flight is not None
        self._sweep(now)
        token = secrets.token_hex(8)
        self._flights[key] = _Flight(token, now + self._claim_s, asyncio.get_running_loop().create_future())
        return Claim(token, self._claim_s)

    async def turn(self, key: str, wait_s: float) -> Claim | Answer | Told | None:
        """The claim, or what its owner brought; None when `wait_s` seconds brought neither."""
        until = self._clock() + wait_s
        while (claim := self.claim(key)) is None:
            flight = self._flights[key]
            wait = min(flight.until, until) - self._clock()
            await asyncio.wait([flight.landed], timeout=max(0.0, wait))
            outcome = flight.landed.result() if flight.landed.done() else None
            if outcome is not None or self._clock() >= until:
                return outcome
        return claim

    # --- having a claim -------------------------------------------------------------------------------------

    def renew(self, key: str, token: str) -> bool:
        """Tell that the owner lives. False when the claim is not theirs any more."""
        flight = self._flights.get(key)
        if flight is None or flight.token != token:
            return False
        flight.until = self._clock() + self._claim_s
        return True

    def land(self, key: str, answer: Answer) -> None:
        """Give everybody who waits the answer."""
        self._end(key, answer)

    def fail(self, key: str, token: str, error: Exception | None) -> None:
        """Give the claim back: tell `error` to those who wait, or, when there is none to tell, pass on the claim."""
        flight = self._flights.get(key)
        if flight is not None and flight.token == token:
            self._end(key, None if error is None else Told(error))

    def _end(self, key: str, outcome: Answer | Told | None) -> None:
        flight = self._flights.pop(key, None)
        if flight is not None and not flight.landed.done():
            flight.landed.set_result(outcome)

    def _sweep(self, now: float) -> None:
        """Forget flights that are void and that nobody will take over: whoever waits has taken over long before."""
        if len(self._flights) < self._sweep_at:
            return
        for key in [key for key, flight in self._flights.items() if flight.until + self._claim_s <= now]:
            self._end(key, None)
        self._sweep_at = max(SWEEP_AT, 2 * len(self._flights))
