"""Which episodes a report shows: the same questions of every arm, spread over kinds and outcomes. Pure.

Always true: at most as many as asked for, the same ones every time, and every kind of question is among them as long as
there are fewer kinds than places.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from actors.agent.trajectory import Ending, Failure

RIGHT, WRONG, GAVE_UP, FAILED = "right", "wrong", "gave up", "failed"
Row = Mapping[str, Any]
T = TypeVar("T")


def outcome(row: Row) -> str:
    """Of an episode, for its reader. Not answered for lack of turns, tokens or luck is failed."""
    if row.get("failure") in (Failure.INFRA, Failure.DATA):
        return FAILED
    if row.get("ending") == Ending.GAVE_UP:
        return GAVE_UP
    right = row.get("exact_match", row.get("accuracy"))
    if right is not None and right >= 0.5:
        return RIGHT
    return WRONG if row.get("ending") == Ending.ANSWERED else FAILED


def questions_shown(arms: Mapping[str, Sequence[Row]], n: int) -> list[str]:
    """Ids of at most `n` questions: from kind to kind in turn, and within a kind from one pattern of outcomes over
    the arms to the next."""
    kinds: dict[str, str] = {}
    patterns: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for arm, rows in arms.items():
        for row in rows:
            kinds.setdefault(row["question_id"], str(row.get("kind") or ""))
            patterns[row["question_id"]].setdefault(arm, outcome(row))
    told = [(id_, kinds[id_], tuple(patterns[id_].get(arm, "") for arm in arms)) for id_ in kinds]
    by_kind = [
        spread([(id_, pattern) for id_, of_kind, pattern in told if of_kind == kind])
        for kind in sorted(set(kinds.values()))
    ]
    return in_turn(by_kind)[:n]


def spread(items: Iterable[tuple[str, Hashable]]) -> list[str]:
    """Ids in an order in which each stratum comes up in turn; within a stratum by a hash of the id."""
    strata: defaultdict[Hashable, list[str]] = defaultdict(list)
    for id_, stratum in items:
        strata[stratum].append(id_)
    for ids in strata.values():
        ids.sort(key=shuffled)
    return in_turn([strata[stratum] for stratum in sorted(strata, key=repr)])


def in_turn(lists: Sequence[Sequence[T]]) -> list[T]:
    """All first items, then all second ones, and so on."""
    return [items[i] for i in range(max(map(len, lists), default=0)) for items in lists if i < len(items)]


def first_of_each(rows: Iterable[Row], ids: Iterable[str]) -> list[int]:
    """Places of the rows with the lowest sample index of each id, in the order of `ids`."""
    found: dict[str, tuple[int, int]] = {}
    for place, row in enumerate(rows):
        key = (int(row.get("sample_index") or 0), place)
        found[row["question_id"]] = min(found.get(row["question_id"], key), key)
    return [found[id_][1] for id_ in ids if id_ in found]


def evenly(items: Sequence[T], n: int) -> list[T]:
    """At most `n` of them, first and last included."""
    if n <= 0 or not items:
        return []
    if len(items) <= n:
        return list(items)
    if n == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def shuffled(id_: str) -> str:
    return hashlib.sha256(id_.encode()).hexdigest()
