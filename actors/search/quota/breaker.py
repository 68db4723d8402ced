"""A circuit breaker with half-open probes, and the window of requests after a provider has said "too many". Pure.

The breaker refuses at once while an endpoint is known to be down, so that a chain of providers falls through to the
next; when its time is up it lets one probe pass, whose fate decides. `Congestion` does what TCP does: after a 429
nobody sends until the time that was asked for is over, then one request, and with each success more.
"""

from __future__ import annotations


class Breaker:
    """Closed, open until a time, or half open with one probe under way."""

    def __init__(self, failures_to_open: int, open_seconds: float, longest_open: float) -> None:
        self._threshold, self._first, self._longest = failures_to_open, open_seconds, longest_open
        self._failures = 0
        self._times_opened = 0
        self.open_until = float("-inf")
        self.reason = ""  # why it was opened last; "" while closed
        self.probing = False

    def refuses(self, now: float) -> bool:
        """Whether a request now is one too many: open, or another one is the probe."""
        return bool(self.reason) and (now < self.open_until or self.probing)

    def sent(self) -> None:
        """A request was let pass; while not closed, it is the probe."""
        if self.reason:
            self.probing = True

    def succeeded(self) -> None:
        self._failures = self._times_opened = 0
        self.reason, self.probing, self.open_until = "", False, float("-inf")

    def undecided(self) -> None:
        """The request ended without telling anything about the endpoint: another may probe."""
        self.probing = False

    def failed(self, now: float, reason: str, *, fatal: bool = False) -> None:
        """The endpoint failed; `fatal`: no key or no credit, so that one failure is enough to open for long."""
        self._failures += 1
        if not (fatal or self.probing or self._failures >= self._threshold):
            return
        wait = self._longest if fatal else min(self._longest, self._first * 2**self._times_opened)
        self._times_opened += 1
        self.open_until, self.reason, self.probing = now + wait, reason, False


class Congestion:
    """How many requests may be in flight after a refusal for their rate; unbounded until the first one."""

    FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds, where the provider does not say how long; doubled in a row
    LONGEST_ASKED = 3600.0  # seconds of a Retry-After that are honoured

    def __init__(self) -> None:
        self.paused_until = float("-inf")
        self.window = float("inf")
        self._threshold = float("inf")
        self._pauses = 0

    def open_at(self, now: float, in_flight: int) -> float | None:
        """When a further request may be sent; None: not before one in flight has ended."""
        if in_flight + 1 > self.window:
            return None
        return max(now, self.paused_until)

    def throttled(self, now: float, retry_after: float | None, in_flight: int) -> None:
        """The provider refused a request for its rate. Refusals of requests sent before the pause are one refusal."""
        if now < self.paused_until:
            if retry_after is not None:
                self.paused_until = max(self.paused_until, now + min(retry_after, self.LONGEST_ASKED))
            return
        guess = min(self.LONGEST_PAUSE, self.FIRST_PAUSE * 2**self._pauses)
        self._pauses += 1
        self.paused_until = now + (guess if retry_after is None else min(retry_after, self.LONGEST_ASKED))
        self._threshold = max(1.0, in_flight / 2)
        self.window = 1.0

    def succeeded(self) -> None:
        """One more for each success until half of what was too much, from then on one more for each round trip."""
        if self.window == float("inf"):
            return
        self._pauses = 0
        self.window += 1.0 if self.window < self._threshold else 1.0 / self.window
        if self.window > 4 * self._threshold + 64:
            self.window = float("inf")
