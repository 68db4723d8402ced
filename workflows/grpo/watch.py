"""What the run is doing at present: who is busy, who waits for what and since when, and what a step cost.

Read-only towards the fleet and the buffer. Time is told by the caller's clock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from actors.agent.seams import Clock
from actors.search.load import LoadSample
from workflows.grpo.admission import HOLDS
from workflows.grpo.dispatch import Fleet
from workflows.grpo.places import NOT_STARTED, Place, Places
from workflows.grpo.settings import GrpoSettings
from workflows.grpo.step_metrics import Stopwatch, at_quota, idle_metrics, learner_waits_for, sampler_waits_for
from workflows.grpo.work_buffer import GroupState, WorkBuffer

LEARNER = "learner"
SAMPLER = "sampler"  # and its name behind a colon
FENCED = "fenced"  # it is given nothing: it died, or hangs, and is replaced or leaves
ADMISSION = "admission"
WAITS = (
    "tool_wait",
    "quota_wait",
    "long_tail",
    "batch_starvation",
)  # causes that may change while the learner waits for the same batch
LISTED_GROUPS = 5


class Watch:
    """Stopwatches, running totals, and the report of a stall."""

    def __init__(
        self, settings: GrpoSettings, buffer: WorkBuffer, fleet: Fleet, totals: Counter[str], clock: Clock
    ) -> None:
        self.totals = totals
        self.last_failure = ""
        self._settings, self._buffer, self._fleet, self._clock = settings, buffer, fleet, clock
        self._stopwatch = Stopwatch()
        self._tools, self._quota, self._held_for = LoadSample(), 0.0, ""
        self._kv_used_most = 0.0  # by a sampler, since the last lap: at its end a sampler may be idle
        self._at_lap = Counter(totals)
        self._ends_at_lap = buffer.ends()
        self._lap_at = self._progress_at = clock()
        fleet.on_change = self.look

    # -- marks --

    def progress(self) -> None:
        """Something was finished: the run is not stalled."""
        self._progress_at = self._clock()

    def learner(self, cause: str) -> None:
        """The learner now waits for `cause`, or works ("")."""
        self._stopwatch.mark(LEARNER, cause, self._clock())
        self.look()

    def learner_waits(self) -> None:
        """The learner now waits for a batch."""
        self.learner(self._why_no_batch())

    def tools_seen(self, tools: LoadSample) -> None:
        """What keeps the search workers busy now."""
        self._tools, self._quota = tools, at_quota(tools)
        self.look()

    def holds(self, why: str) -> None:
        """Admission now holds free slots back for `why`, or does not ("")."""
        if why != self._held_for:
            self._held_for = why
            self._stopwatch.mark(ADMISSION, why, self._clock())

    def look(self, sampler: str | None = None) -> None:
        """Mark what has changed at a sampler, or at all of them, and what that means for a waiting learner."""
        now = self._clock()
        places = self._fleet.places
        if sampler is None:
            self._forget_the_gone(now)
        for place in places if sampler is None else filter(None, [places.get(sampler)]):
            self._stopwatch.mark(f"{SAMPLER}:{place.name}", self._why_idle(place), now)
            if not place.fenced:
                self._kv_used_most = max(self._kv_used_most, place.seen.kv_used)
        if self._stopwatch.cause(LEARNER) in WAITS:
            self._stopwatch.mark(LEARNER, self._why_no_batch(), now)

    def _forget_the_gone(self, now: float) -> None:
        for who in self._stopwatch.states():
            role, _, name = who.partition(":")
            if role == SAMPLER and self._fleet.places.get(name) is None:
                self._stopwatch.forget(who, now)

    def _why_idle(self, place: Place) -> str:
        if place.fenced:
            return "publish" if place.waits or place.fenced == NOT_STARTED else FENCED
        running, (_, in_tools, _) = place.counted_running, place.counted
        return sampler_waits_for(running, in_tools, self._quota, self._share(), self._fleet.updating)

    def _share(self) -> float:
        """Episodes of one step that fall to one sampler."""
        s = self._settings
        return min(s.most_per_sampler, s.groups_per_step * s.group_size / max(1, len(self._fleet.places)))

    def _why_no_batch(self) -> str:
        episodes = self._settings.groups_per_step * self._settings.group_size
        return learner_waits_for(self._fleet.places.running, self._fleet.places.in_tools, self._quota, episodes)

    # -- numbers --

    def lap(self) -> dict[str, float]:
        """What happened since the last lap: times, tokens, groups that ended, and why who was idle."""
        now = self._clock()
        seconds = max(now - self._lap_at, 1e-9)
        done: dict[str, float] = {name: value - self._at_lap[name] for name, value in self.totals.items()}
        ends = {name: n - self._ends_at_lap.get(name, 0) for name, n in self._buffer.ends().items()}
        wasted = sum(n for name, n in done.items() if name.startswith("tokens/wasted"))
        metrics: dict[str, float] = {f"since_last_step/{name}": float(n) for name, n in done.items()}
        metrics |= {f"groups/{name}": float(n) for name, n in ends.items()}
        metrics |= {f"groups_total/{name}": float(n) for name, n in self._buffer.ends().items()}
        causes = self._stopwatch.lap(now)
        held_for = causes.pop(ADMISSION, {})
        metrics |= {f"admission/held_for_{why}_s": held_for.get(why, 0.0) for why in HOLDS}
        metrics |= idle_metrics(causes)
        metrics["groups_total/admitted"] = float(self._buffer.admitted)
        metrics["groups_total/held"] = float(self._buffer.held)
        metrics["tokens/never_trained_on"] = float(wasted)
        metrics["tokens/sampled_per_s"] = done.get("tokens/sampled", 0) / seconds
        metrics["tokens/trained_per_s"] = done.get("tokens/trained", 0) / seconds
        metrics["time/step_s"] = seconds
        metrics |= fleet_metrics(self._fleet.places)
        metrics["samplers/kv_used_most"], self._kv_used_most = self._kv_used_most, 0.0
        metrics["tools/waiting_for_quota"] = float(sum(endpoint.waiting for endpoint in self._tools.endpoints))
        self._at_lap, self._ends_at_lap, self._lap_at = Counter(self.totals), self._buffer.ends(), now
        return metrics

    # -- words --

    async def report_stalls(self, report: Callable[[], str], say: Callable[[str], None]) -> None:
        """For ever: whenever there has been no progress for long."""
        quiet_s = self._settings.stall_report_s
        while True:
            await asyncio.sleep(quiet_s / 2)
            if self._clock() - self._progress_at >= quiet_s:
                say(report())

    def report(self, step: int, version: int) -> str:
        """Every role and the groups that are longest under way, with what each waits for."""
        now = self._clock()
        lines = [f"no progress for {now - self._progress_at:.0f} s, at step {step}, version {version}:"]
        for who, (cause, since) in self._stopwatch.states().items():
            state = {"": "busy", FENCED: FENCED}.get(cause, f"waits for {cause}")
            lines.append(f"  {who}: {state}, for {now - since:.0f} s")
        lines += [f"  {line}" for line in self._fleet.describe()]
        states = Counter(g.state.value for g in self._buffer.groups())
        held = ", ".join(f"{n} {state}" for state, n in states.items()) or "none"
        lines.append(f"  groups: {held}; {self._buffer.free_slots} of {self._buffer.slots} slots are free")
        for g in self._buffer.groups(GroupState.WAITING, GroupState.INFLIGHT)[:LISTED_GROUPS]:
            lines.append(f"  group {g.id} (question {g.question_id}): {g.state}, admitted at version {g.admitted_at}")
        if self.last_failure:
            lines.append(f"  the last failure: {self.last_failure}")
        return "\n".join(lines)


def fleet_metrics(places: Places) -> dict[str, float]:
    """`samplers/...`: how many there are, what they may play, and how much of their prompts they had in memory."""
    live = places.open_ones()
    asked = sum(place.seen.prefix_asked for place in live)
    metrics = {
        "samplers/live": float(len(live)),
        "samplers/episodes_at_most": float(sum(place.seat.limit for place in live)),
    }
    if asked:
        metrics["samplers/prefix_hit_share"] = sum(place.seen.prefix_hits for place in live) / asked
    return metrics
