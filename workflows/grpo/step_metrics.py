"""What a step looked like, in numbers. Pure: sums over summaries, and a stopwatch that is told the time.

Keys are `group/name`; every mean is over episodes unless its key says tokens. Sampled tokens alone are
counted, never those of tools. `staleness` is how many versions older than the weights they train the tokens
are, and `staleness/tokens_<age>` counts them by it; `publish_lag_s` is how long the new weights took from the
end of training until they ran everywhere. They are different things and are never added up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from actors.agent.trajectory import Label, Question, Summary
from actors.search.load import LoadSample
from workflows.grpo.ports import GroupResult

LONG_TAIL_SHARE = 0.25  # of the episodes of one step: with fewer than this running, the rest waits for stragglers
AT_QUOTA = 0.5  # of the requests at search endpoints without a lease: with more, tools wait for quotas


def label_of(question: Question) -> Label:
    """What the base model showed, or else what the question's maker meant."""
    return question.measured_label if question.measured_label is not Label.UNKNOWN else question.designed_label


def tokens_by_version(summary: Summary) -> dict[int, int]:
    """Sampled tokens of an episode by weight version.

    Without the exact split, all count as old as the oldest.
    """
    exact = summary.extra.get("tokens_by_version")
    if exact:
        return {int(version): int(n) for version, n in exact.items()}
    return {summary.oldest_version: summary.sampled_tokens} if summary.sampled_tokens else {}


def tool_seconds(summary: Summary) -> float:
    """Seconds that an episode waited for tools, as far as its summary says."""
    return float(summary.extra.get("tool_seconds", 0.0))


def cost_usd(summary: Summary) -> float:
    """What an episode's searches cost, as far as its summary says."""
    return float(summary.extra.get("cost_usd", 0.0))


def tokens_by_age(groups: Iterable[GroupResult], version: int) -> Counter[int]:
    """Sampled tokens by `version` minus the version that sampled them."""
    tokens: Counter[int] = Counter()
    for group in groups:
        for summary in group.summaries:
            for sampled_by, n in tokens_by_version(summary).items():
                tokens[version - sampled_by] += n
    return tokens


def step_metrics(groups: Sequence[GroupResult], version: int) -> dict[str, float]:
    """Everything that the groups of one step say about themselves.

    `version` is that of the weights they train.
    """
    pairs = [(group.question, summary) for group in groups for summary in group.summaries]
    everything = [summary for _, summary in pairs]
    ages = tokens_by_age(groups, version)
    metrics = {
        "reward/mean": _mean(s.reward for s in everything),
        "reward/accuracy": _mean(s.accuracy for s in everything),
        "search/ratio": _mean(s.searches > 0 for s in everything),
        "search/calls": _mean(s.searches for s in everything),
        "search/accuracy_when_searched": _mean(s.accuracy for s in everything if s.searches),
        "search/cost_usd_per_1000": 1000 * _mean(cost_usd(s) for s in everything),
        "staleness/mean_tokens": sum(age * n for age, n in ages.items()) / ages.total() if ages else 0.0,
        "staleness/max": float(max(ages, default=0)),
        "tokens/trained": float(sum(s.sampled_tokens for s in everything)),
        "tokens/per_episode": _mean(s.sampled_tokens for s in everything),
        "tokens/longest_expanded": float(max((s.expanded_length for s in everything), default=0)),
        "episodes/trained": float(len(everything)),
        "episodes/masked": float(sum(group.masked for group in groups)),
        "episodes/seconds": _mean(s.seconds for s in everything),
        "episodes/tool_seconds": _mean(tool_seconds(s) for s in everything),
    }
    for age, n in sorted(ages.items()):
        metrics[f"staleness/tokens_{age}"] = float(n)
    if right := sum(s.accuracy for s in everything):
        metrics["search/cost_usd_per_correct"] = sum(cost_usd(s) for s in everything) / right
    for name, part in _split(pairs, lambda q: label_of(q).value).items():
        metrics[f"search/ratio_{name}"] = _mean(s.searches > 0 for s in part)
        metrics[f"reward/accuracy_{name}"] = _mean(s.accuracy for s in part)
    for name, part in _split(pairs, lambda q: q.kind or "unknown").items():
        metrics[f"kind/{name}/search_ratio"] = _mean(s.searches > 0 for s in part)
        metrics[f"kind/{name}/accuracy"] = _mean(s.accuracy for s in part)
    for ending, n in Counter(s.ending.value for s in everything).items():
        metrics[f"ending/{ending}"] = n / len(everything)
    return metrics


def sampled_metrics(groups: Sequence[GroupResult]) -> dict[str, float]:
    """How good the policy is: `sampled/...` of `step_metrics`, over every group that was finished, filtered or not.

    What is trained on does not show it: groups that are all right or all wrong are filtered, so the mean over the
    rest stays near one half however much is learned. Empty without groups.
    """
    if not groups:
        return {}
    metrics = {k: v for k, v in step_metrics(groups, 0).items() if k.startswith(("reward/", "search/", "kind/"))}
    metrics["episodes"] = float(sum(len(group.summaries) for group in groups))
    return {f"sampled/{name}": value for name, value in metrics.items()}


def _split(pairs: Iterable[tuple[Question, Summary]], key: Callable[[Question], str]) -> dict[str, list[Summary]]:
    parts: defaultdict[str, list[Summary]] = defaultdict(list)
    for question, summary in pairs:
        parts[key(question)].append(summary)
    return dict(parts)


def _mean(values: Iterable[float]) -> float:
    numbers = [float(v) for v in values]
    return sum(numbers) / len(numbers) if numbers else 0.0


class Stopwatch:
    """Seconds by who and by cause.

    Each one is in exactly one cause at a time; "" is work, and is counted too.
    """

    def __init__(self) -> None:
        self._since: dict[str, tuple[str, float]] = {}
        self._seconds: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))

    def mark(self, who: str, cause: str, now: float) -> None:
        """From `now` on, `who` waits for `cause` ("" when it works)."""
        self._close(who, now)
        self._since[who] = (cause, now)

    def forget(self, who: str, now: float) -> None:
        """It is gone; the time until `now` still counts."""
        self._close(who, now)
        self._since.pop(who, None)

    def cause(self, who: str) -> str:
        """The one at present; "" for somebody that was never marked."""
        return self._since.get(who, ("", 0.0))[0]

    def states(self) -> Mapping[str, tuple[str, float]]:
        return dict(self._since)

    def lap(self, now: float) -> dict[str, dict[str, float]]:
        """Seconds per who and cause since the last lap; "" is called busy."""
        for who in list(self._since):
            self._close(who, now)
        seconds = {who: {cause or "busy": s for cause, s in c.items()} for who, c in self._seconds.items()}
        self._seconds.clear()
        return seconds

    def _close(self, who: str, now: float) -> None:
        if who in self._since:
            cause, since = self._since[who]
            self._seconds[who][cause] += now - since
            self._since[who] = (cause, now)


def idle_metrics(lap: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`idle/<role>_<cause>_s`, summed over the samplers, and the busy share of each role.

    Roles end at a colon.
    """
    metrics: defaultdict[str, float] = defaultdict(float)
    whole: defaultdict[str, float] = defaultdict(float)
    busy: defaultdict[str, float] = defaultdict(float)
    for who, causes in lap.items():
        role = who.split(":")[0]
        for cause, seconds in causes.items():
            whole[role] += seconds
            if cause == "busy":
                busy[role] += seconds
            else:
                metrics[f"idle/{role}_{cause}_s"] += seconds
    for role, seconds in whole.items():
        metrics[f"idle/{role}_busy_share"] = busy[role] / seconds if seconds else 0.0
    return dict(metrics)


def at_quota(tools: LoadSample) -> float:
    """Of the requests that are at search endpoints, the share that has no lease yet; 0 without requests."""
    asked = sum(endpoint.asked for endpoint in tools.endpoints)
    return sum(endpoint.waiting for endpoint in tools.endpoints) / asked if asked else 0.0


def learner_waits_for(running: int, in_tools: int, quota: float, step_episodes: int) -> str:
    """Why the learner has no batch: tools that most episodes wait for, or quotas that those wait for; a few stragglers;
    or too little sampling. `quota` as `at_quota` has it."""
    if running and in_tools > running / 2:
        return "quota_wait" if quota > AT_QUOTA else "tool_wait"
    return "long_tail" if 0 < running <= LONG_TAIL_SHARE * step_episodes else "batch_starvation"


def sampler_waits_for(running: int, in_tools: int, quota: float, share: float, updating: bool) -> str:
    """Why a sampler is not busy; "" when it is. `share`: episodes of one step that fall to it; `quota` as
    `at_quota` has it, which is the same for all samplers, for they share the tools."""
    if updating:
        return "publish"
    if running == 0:
        return "no_slot"  # the learner holds the slots: backpressure
    if in_tools == running:
        return "quota_wait" if quota > AT_QUOTA else "tool_wait"
    return "long_tail" if running <= LONG_TAIL_SHARE * share else ""
