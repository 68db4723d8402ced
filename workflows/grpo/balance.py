"""The mix of search-free and search-required questions that is trained on. Pure.

MMSearch-R1 trains on a balance of both: without it, or without a search penalty, its policy ends by searching always.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from actors.agent.trajectory import Label, Question
from workflows.grpo.step_metrics import label_of


def with_free_share(questions: Mapping[str, Question], share: float, seed: int) -> dict[str, Question]:
    """As many of `questions` as possible, in their order, of which `share` are search-free (up to one question).

    Of one label some are left out, drawn by `seed`; questions whose label is unknown stay, and are not counted.
    """
    free = [id for id, question in questions.items() if label_of(question) is Label.FREE]
    required = [id for id, question in questions.items() if label_of(question) is Label.REQUIRED]
    total = min(
        len(free) / share if share else float("inf"),
        len(required) / (1 - share) if share < 1 else float("inf"),
    )
    rng = Random(f"balance-{seed}")
    kept = {*rng.sample(free, round(total * share)), *rng.sample(required, round(total * (1 - share)))}
    counted = {*free, *required}
    return {id: question for id, question in questions.items() if id in kept or id not in counted}
