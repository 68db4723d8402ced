"""What of a teacher's work is kept: right answers that were seen, and both labels in equal parts. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from actors.agent.trajectory import Ending, Failure, Label, Question, Trajectory
from actors.reward.accuracy import contains_match, exact_match


def fault_of(question: Question, trajectory: Trajectory) -> str:
    """Why a teacher's episode must not be learned from, in a word; "" when it may."""
    if trajectory.failure is not Failure.NONE:
        return {Failure.INFRA: "infrastructure", Failure.DATA: "bad_image"}.get(trajectory.failure, "policy_failure")
    if trajectory.ending is not Ending.ANSWERED:
        return trajectory.ending.value
    if not exact_match(trajectory.answer, question.answers):
        return "wrong_answer"
    if not trajectory.format_ok:
        return "bad_format"
    if not was_seen(question, trajectory):
        return "unseen_answer"
    return ""


def was_seen(question: Question, trajectory: Trajectory) -> bool:
    """Whether the answer stands in every result that is cited; uncited ones are only for what needs no search."""
    if not trajectory.citations:
        return question.designed_label is Label.FREE
    cited = [item for item in trajectory.evidence if item.number in trajectory.citations]
    texts = [f"{item.title} {item.text}" for item in cited]
    return bool(texts) and all(contains_match(text, [trajectory.answer]) for text in texts)


def balanced(labels: Mapping[str, str], wanted: int) -> list[str]:
    """Ids of at most `wanted` rows, in their order, as many search-free as search-required ones.

    `labels`: label by id. Rows of an unknown label have no counterpart: where there is nothing else they are taken as
    they come, else not at all.
    """
    by_label: dict[str, list[str]] = defaultdict(list)
    for id, label in labels.items():
        by_label[label].append(id)
    free, required = by_label[Label.FREE], by_label[Label.REQUIRED]
    if not free and not required:
        return list(labels)[:wanted]
    each = min(wanted // 2, len(free), len(required))
    kept = {*free[:each], *required[:each]}
    return [id for id in labels if id in kept]


def counted(rows: Sequence[Mapping[str, object]], column: str) -> dict[str, int]:
    """How often each value of a column occurs, the most frequent first."""
    return {str(value): n for value, n in Counter(row[column] for row in rows).most_common()}
