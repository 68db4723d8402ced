"""How many search workers are worth having. Pure; every method takes the time.

A worker more is of use only for what really runs at once. What an endpoint lets run at once is bounded by its quota:
with `per_second` requests a second that take `p95` seconds, no more than their product (Little's law, for the slow
ones). Requests beyond it wait for the quota whatever the number of workers, so they are no load.

Always true: the answer is within `min..max`; between two changes of direction `turn_every_s` seconds pass; where that
rule and a quick answer to new load exclude each other, the rule holds. Where `turn_every_s` is at least `down_after_s`,
workers are gone `turn_every_s` after the last load, for the last turn was while there was load.
"""

from __future__ import annotations

import math
from collections import deque

from actors.search.load import EndpointLoad, LoadSample
from actors.search.settings import PoolSettings


def most_at_once(endpoint: EndpointLoad) -> float:
    """Requests that `endpoint` can have in flight under its quota; infinity where nothing bounds them."""
    bounds = [float(endpoint.concurrency)] if endpoint.concurrency else []
    if endpoint.per_second:
        # before the first answer nothing is known but what was let pass
        bounds.append(endpoint.per_second * endpoint.p95_s if endpoint.answered else float(endpoint.in_provider))
    return min(bounds, default=math.inf)


def useful_concurrency(sample: LoadSample) -> float:
    """What runs at once if there are enough workers.

    Calls at no endpoint are on the way to one or come from there, or follow somebody that waits; they count as far as
    the endpoints together could take them.
    """
    at_endpoints, room = 0.0, 0.0 if sample.endpoints else math.inf
    for endpoint in sample.endpoints:
        most = most_at_once(endpoint)
        # who waits where neither rate nor concurrency is bounded sits out a pause that the provider asked for
        load = endpoint.in_provider if math.isinf(most) else min(endpoint.asked, most)
        at_endpoints += load
        room += most - load
    return at_endpoints + min(sample.elsewhere, room)


class ScalingPolicy:
    """Decides for one pool, from what it has been shown."""

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        # (since when, how many were wanted); each holds until the next, the last one until now
        self._wanted: deque[tuple[float, int]] = deque()
        self._up: bool | None = None  # the direction of the last change
        self._turned = -math.inf

    def wanted(self, sample: LoadSample) -> int:
        """Workers for `sample`, if it lasted."""
        # rounding in a product must not cost a worker
        needed = math.ceil(useful_concurrency(sample) / self._settings.per_actor - 1e-9)
        return self._within(needed)

    def decide(self, now: float, current: int, sample: LoadSample) -> int:
        """How many there should be at `now`, where `current` is how many there should have been until now."""
        current = self._within(current)
        if not self._wanted:  # what there was before the first look is taken for what was wanted
            self._wanted.append((-math.inf, current))
        self._note(now, self.wanted(sample))
        lasting = min(self._wanted_since(now - self._settings.up_after_s))
        recent = max(self._wanted_since(now - self._settings.down_after_s))
        target = lasting if lasting > current else min(current, recent)
        return target if target == current or self._may_go(now, target > current) else current

    def _may_go(self, now: float, up: bool) -> bool:
        """Whether this direction is open; takes it. The first change is no turn."""
        if self._up is not None and up != self._up:
            if now - self._turned < self._settings.turn_every_s:
                return False
            self._turned = now
        self._up = up
        return True

    def _note(self, now: float, wanted: int) -> None:
        if self._wanted[-1][1] != wanted:
            self._wanted.append((now, wanted))
        oldest = now - max(self._settings.up_after_s, self._settings.down_after_s)
        while len(self._wanted) > 1 and self._wanted[1][0] <= oldest:
            self._wanted.popleft()

    def _wanted_since(self, start: float) -> list[int]:
        """All numbers that were wanted at some moment after `start`, and the one that is wanted now."""
        ends = [*(since for since, _ in self._wanted), math.inf][1:]
        return [wanted for (_, wanted), end in zip(self._wanted, ends, strict=True) if end > start]

    def _within(self, workers: int) -> int:
        return max(self._settings.min, min(self._settings.max, workers))
