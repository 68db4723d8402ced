"""How many episodes a sampler plays at a time. Pure; told the time.

A sampler begins with as many as the settings allow. When its KV cache is full, vLLM throws requests out of it and
computes them again later, so the number is cut by a quarter: when that has happened, or is about to. It is raised again
step by step while that makes the sampler faster. Where the KV cache never fills up, the number never changes.

A sampler is in full use while less than a whole group is missing: among several, a group comes when all its siblings
have places (seats.py).

Always true: the number is between `least` and `most`; after a cut it is not cut again before the episodes beyond it
have ended, because until then nothing has changed; without pressure it only rises.
"""

from __future__ import annotations

from workflows.grpo.ports import SamplerLoad

FULL = 0.95  # of the KV cache in use, with requests waiting: the next one that grows throws another out
ROOMY = 0.85  # of the KV cache in use, below which there is room for more
CUT = 0.75  # of what ran
SETTLE_S = 5.0  # after a cut, for requests to end
RAISE_EVERY_S = 10.0  # in which one step up shows what it was worth
STEPS = 16  # from nothing to `most`
WORTH = 1.01  # tokens per second against those before the last step up, for it to have been worth it
TRY_AGAIN_S = 120.0  # after a step up that was worth nothing


class AdaptiveConcurrency:
    """For one sampler; a new one after its process was replaced. `least`: siblings of a group."""

    def __init__(self, least: int, most: int) -> None:
        if not 1 <= least <= most:
            raise ValueError(f"{least=} must be at least 1 and at most {most=}")
        self._least, self._most = least, most
        self.limit = most
        self._cut_at = self._raised_at = float("-inf")
        self._speed_before: float | None = None  # tokens/s before the last step up; None: the next one is free
        self._since: tuple[float, int] | None = None  # (time, tokens) from which the speed is measured
        self._preempted = 0  # when last looked

    def look(self, now: float, load: SamplerLoad, running: int) -> int:
        """The limit from now on. `running`: episodes under way on the sampler; `now`: seconds."""
        thrown_out = load.preempted > self._preempted
        self._preempted = load.preempted
        if thrown_out or (load.kv_used >= FULL and load.waiting):
            if now - self._cut_at >= SETTLE_S and running <= self.limit:
                self.limit = max(self._least, int(min(self.limit, running) * CUT))
                self._cut_at = now
                self._speed_before = None
            self._since = None
        elif self.limit < self._most and load.kv_used < ROOMY and running > self.limit - self._least:
            self._consider_more(now, load)
        else:
            self._since = None  # with places left over, speed says nothing about the limit
        return self.limit

    def _consider_more(self, now: float, load: SamplerLoad) -> None:
        if self._since is None or load.sampled_tokens < self._since[1]:
            self._since = (now, load.sampled_tokens)
            return
        began, tokens = self._since
        if now - began < RAISE_EVERY_S:
            return
        speed = (load.sampled_tokens - tokens) / (now - began)
        self._since = (now, load.sampled_tokens)
        worth_it = self._speed_before is None or speed >= WORTH * self._speed_before
        if not worth_it and now - self._raised_at < TRY_AGAIN_S:
            return
        self._speed_before = speed
        self._raised_at = now
        self.limit = min(self._most, self.limit + max(1, self._most // STEPS))
