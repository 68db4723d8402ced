"""Whether one more group may begin, beyond what the next step needs. Pure; told the time.

Slots bound how far sampling runs ahead of learning. Within that bound a group is of no use yet if its episodes would
only be parked: on a provider's limit, or before a KV cache that is full. What begins later is sampled by newer weights.

**Tools.** An endpoint that lets `rate` requests a second through serves `rate / per_episode` episodes a second, so by
Little's law `rate / per_episode * (busy_s + quota_wait_s)` episodes under way are what it can serve when each may wait
`quota_wait_s` for leases: that is the bound. All three are measured: `rate` while requests wait there (what the brokers
grant to this run, with whoever else has a share and whatever the provider says), `per_episode` from the requests and
the episodes that ended lately, `busy_s` from the time of episodes outside tools. An endpoint that was not at its limit
for `FORGET_S` bounds nothing; one that has just ceased to be lets what is under way double from look to look.

**KV cache.** No group begins while every live sampler has used more than `kv_used` of its cache.

Always true: with fewer than `floor` groups that are not in training yet one more may begin, so the next step always
gets its groups, and they are sampled while the batch before trains; what is not known holds nothing back; an answer
costs the same however much is under way.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from actors.agent.trajectory import Summary
from actors.search.load import EndpointLoad, LoadSample
from workflows.grpo.settings import AdmissionSettings
from workflows.grpo.step_metrics import tool_seconds

Hold = Literal["", "quota", "kv"]
HOLDS: tuple[Hold, ...] = ("quota", "kv")

PRESSED_S = 1.0  # expected wait for a lease from which on an endpoint is at its limit; a lease takes milliseconds
RATE_S = 10.0  # seconds over which a rate is measured
PER_EPISODE_S = 60.0  # and requests per episode
FORGET_S = 60.0  # after which an endpoint that is not at its limit any more has none
EPISODES = 256  # over which their time outside tools is averaged


@dataclass
class _Endpoint:
    """What is known of one endpoint."""

    served: int  # requests, when last looked
    rate: float = 0.0  # requests a second that it lets through; 0: never seen at its limit
    requests: float = 0.0  # lately, later ones with more weight
    pressed: bool = False
    pressed_at: float = -math.inf

    def see(self, now: float, passed: float, rate: float, waiting: int) -> None:
        """`rate` requests a second were served in the `passed` seconds until `now`, where `waiting` have no lease."""
        before, self.pressed = self.pressed, waiting > PRESSED_S * max(rate, self.rate)
        if self.pressed:
            self.pressed_at = now
        if self.pressed and before:
            share = 1.0 if not self.rate else 1 - math.exp(-passed / RATE_S)
            self.rate += share * (rate - self.rate)
        else:
            self.rate = max(self.rate, rate) if self.rate else 0.0


class Admission:
    """Decides for one run by what it is told. `floor`: groups of one step; `siblings`: episodes of a group."""

    def __init__(self, settings: AdmissionSettings, floor: int, siblings: int) -> None:
        self._settings, self._floor, self._siblings = settings, floor, siblings
        self._endpoints: dict[str, _Endpoint] = {}
        self._looked_at: float | None = None
        self._playing: dict[Hashable, int] = {}  # by group, the episodes that have not ended
        self.episodes = 0  # all of them
        self._ended = 0  # since the last look
        self._episodes = 0.0  # that ended lately, later ones with more weight
        self._busy_s: float | None = None
        self.bound = math.inf  # episodes that tools can serve
        self.hold: Hold = ""  # why the last question was answered with no

    # -- what it is told --

    def begun(self, group: Hashable) -> None:
        """The episodes of a group are under way."""
        self._playing[group] = self._siblings
        self.episodes += self._siblings

    def ended(self, group: Hashable, summary: Summary | None) -> None:
        """One of them has ended; without a summary when the infrastructure spoilt it."""
        self._playing[group] -= 1
        self.episodes -= 1
        if summary is not None:
            self._ended += 1
            busy = max(0.0, summary.seconds - tool_seconds(summary))
            self._busy_s = busy if self._busy_s is None else self._busy_s + (busy - self._busy_s) / EPISODES

    def over(self, group: Hashable) -> None:
        """The group has ended, with all its episodes or without."""
        self.episodes -= self._playing.pop(group)

    def look(self, now: float, tools: LoadSample) -> None:
        """What the search workers say at `now`, in seconds."""
        passed = None if self._looked_at is None else max(1e-6, now - self._looked_at)
        self._looked_at = now
        if passed is not None:
            self._episodes = self._episodes * math.exp(-passed / PER_EPISODE_S) + self._ended
            self._ended = 0
        self.bound = min((self._bound_of(load, now, passed) for load in tools.endpoints), default=math.inf)

    # -- what it is asked --

    def may_begin(self, groups: int, kv_full: bool) -> bool:
        """Whether one more group may, beside `groups` that later steps can be made of: none that is in training.

        `kv_full`: every live sampler has used more than `kv_used` of its KV cache.
        """
        self.hold = ""
        if groups >= self._floor:
            if self._settings.quota_wait_s and self.episodes + self._siblings > self.bound:
                self.hold = "quota"
            elif kv_full:
                self.hold = "kv"
        return not self.hold

    # -- inside --

    def _bound_of(self, load: EndpointLoad, now: float, passed: float | None) -> float:
        known = self._endpoints.get(load.name)
        if known is None or passed is None:
            self._endpoints[load.name] = _Endpoint(load.served)
            return math.inf
        served = max(0, load.served - known.served)  # a worker that is gone takes its count along
        known.served = load.served
        known.requests = known.requests * math.exp(-passed / PER_EPISODE_S) + served
        known.see(now, passed, served / passed, load.waiting)
        if now - known.pressed_at >= FORGET_S:
            return math.inf
        bound = self._served_at_once(known)
        return bound if known.pressed else max(bound, 2.0 * self.episodes, float(self.episodes + self._siblings))

    def _served_at_once(self, endpoint: _Endpoint) -> float:
        if self._busy_s is None or not self._episodes or not endpoint.requests:
            return math.inf
        per_episode = endpoint.requests / self._episodes
        return endpoint.rate / per_episode * (self._busy_s + self._settings.quota_wait_s)
