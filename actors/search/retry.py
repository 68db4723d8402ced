"""How long to wait before a provider is asked again. Pure but for the generator of jitter."""

from __future__ import annotations

import random

from actors.search.seams import ProviderError
from actors.search.settings import RetrySettings


def wait_before(attempt: int, error: ProviderError, settings: RetrySettings, rng: random.Random) -> float | None:
    """Seconds to wait after failed attempt `attempt` (from 0); None when another attempt is of no use.

    Equal jitter: half of the exponential wait is certain, half is random, so that siblings spread out.
    A Retry-After is a lower bound; one longer than `longest_wait` is not sat out.
    """
    if attempt >= settings.retries or not error.kind.retryable:
        return None
    exponential = min(settings.longest_wait, settings.first_wait * 2**attempt)
    wait = exponential * (0.5 + 0.5 * rng.random())
    if error.retry_after is None:
        return wait
    if error.retry_after > settings.longest_wait:
        return None
    return max(wait, error.retry_after)
