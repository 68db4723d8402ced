"""GCRA, the generic cell rate algorithm: the leaky bucket as one number. Pure; times come from the caller.

Source: ITU-T I.371, virtual scheduling. With interval T and tolerance tau, a request at time t conforms when
t >= TAT - tau, and then TAT = max(t, TAT) + T. In any window of w seconds at most 1 + (w + tau) / T requests conform.
"""

from __future__ import annotations


class Gcra:
    """Spaces requests so that a provider's own GCRA of `per_second` and `burst` never refuses one.

    Requests bunch up on their way: those granted apart may arrive together. With every delay inside a range of
    `jitter` seconds, giving up that much of the tolerance, and where there is too little of it lengthening the
    interval by the rest, keeps all arrivals inside the provider's bound.
    """

    def __init__(self, per_second: float, burst: int, jitter: float = 0.0) -> None:
        if per_second <= 0 or burst < 1 or jitter < 0:
            raise ValueError("a limiter needs a positive rate, a burst of at least one and a jitter of at least zero")
        allowed = (burst - 1) / per_second
        self.interval = 1 / per_second + max(0.0, jitter - allowed)
        self.tolerance = max(0.0, allowed - jitter)
        self._tat = float("-inf")

    def open_at(self, now: float) -> float:
        """The earliest time, `now` or later, at which a request conforms."""
        return max(now, self._tat - self.tolerance)

    def take(self, now: float) -> None:
        """Count a request at `now`, which must conform."""
        if self.open_at(now) > now:
            raise ValueError("the request does not conform yet")
        self._tat = max(now, self._tat) + self.interval

    def forget_burst(self, now: float) -> None:
        """As if everything allowed at once had just been sent: what a restarted broker has to assume."""
        self._tat = max(self._tat, now + self.tolerance + self.interval)
