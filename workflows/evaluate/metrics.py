"""From episodes to numbers. Pure.

Episodes that infrastructure or data spoilt are counted apart and enter no share. What is undefined (the success of
searches where nobody searched) is None, never 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from workflows.evaluate.rows import Row


@dataclass(frozen=True)
class Measures:
    """Of a set of episodes. Shares and means are over `episodes`, unless said otherwise."""

    episodes: int
    failed: int  # spoilt by infrastructure or data after all retries; in no other number
    retried: int  # played more than once
    exact_match: float | None
    f1: float | None  # of words
    search_ratio: float | None  # share of episodes that search at all (MMSearch-R1, section 4.1)
    search_ratio_allowed: float | None  # calls over the calls that the protocol allows (MMSearch-R1, table 1)
    text_searches: float | None  # per episode
    image_searches: float | None  # per episode, crops included
    crop_share: float | None  # of image searches
    search_success: float | None  # share of searches that found something
    format_valid: float | None
    gave_up: float | None
    sampled_tokens: float | None  # per episode
    total_tokens: float | None
    turns: float | None
    seconds: float | None  # per episode, waiting for the shared engine included
    reward: float | None


def measure(rows: Iterable[Row], max_calls: int) -> Measures:
    """`max_calls`: tool calls that the protocol allows in an episode."""
    everything = list(rows)
    valid = [row for row in everything if row.counts]
    n, searches = len(valid), sum(row.searches for row in valid)

    def mean(value: Callable[[Row], float]) -> float | None:
        return sum(map(value, valid)) / n if n else None

    return Measures(
        episodes=n,
        failed=len(everything) - n,
        retried=sum(row.attempts > 1 for row in everything),
        exact_match=mean(lambda row: row.exact_match),
        f1=mean(lambda row: row.f1),
        search_ratio=mean(lambda row: row.searches > 0),
        search_ratio_allowed=searches / (n * max_calls) if n and max_calls else None,
        text_searches=mean(lambda row: row.text_searches),
        image_searches=mean(lambda row: row.image_searches),
        crop_share=_share(sum(row.crops for row in valid), sum(row.image_searches for row in valid)),
        search_success=_share(sum(row.searches_ok for row in valid), searches),
        format_valid=mean(lambda row: row.format_ok),
        gave_up=mean(lambda row: row.ending == "gave_up"),
        sampled_tokens=mean(lambda row: row.sampled_tokens),
        total_tokens=mean(lambda row: row.total_tokens),
        turns=mean(lambda row: row.turns),
        seconds=mean(lambda row: row.seconds),
        reward=mean(lambda row: row.reward),
    )


def by(rows: Sequence[Row], key: Callable[[Row], str], max_calls: int) -> dict[str, Measures]:
    """The same numbers for each value of `key`, sorted."""
    parts: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts[key(row)].append(row)
    return {name: measure(parts[name], max_calls) for name in sorted(parts)}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
