"""Which questions are set aside for evaluation while training goes on. Pure.

They are taken from the *training* questions, so that the test split stays unseen while checkpoints are chosen by it.
Reinforcement never learns from them; what came before may have (SFT's conversations are about training questions).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from actors.agent.trajectory import Question
from cluster.errors import UserError
from workflows.grpo.prompts_cursor import epoch_order

_ORDER = -2  # an "epoch" that no cursor asks in; -1 is the start check's


def hold_out(
    questions: Mapping[str, Question], count: int, seed: int
) -> tuple[dict[str, Question], dict[str, Question]]:
    """(to learn from, held out): `count` questions, of each kind in proportion, the same for the same seed.

    Raise `UserError` where more than half of the questions would go.
    """
    if 2 * count > len(questions):
        raise UserError(
            f"grpo.evaluation.questions={count} would hold out more than half of the {len(questions)} training"
            " questions: ask for fewer."
        )
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for question_id in epoch_order(questions, seed, _ORDER):
        kinds[questions[question_id].kind].append(question_id)
    shares = _in_proportion({kind: len(ids) for kind, ids in kinds.items()}, count)
    chosen = {question_id for kind, n in shares.items() for question_id in kinds[kind][:n]}
    held = {i: question for i, question in questions.items() if i in chosen}
    return {i: question for i, question in questions.items() if i not in chosen}, held


def _in_proportion(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Whole numbers that add up to `count`, by largest remainder; ties go by name."""
    whole = sum(sizes.values())
    shares = {name: count * size // whole for name, size in sizes.items()} if whole else {}
    rest = sorted(sizes, key=lambda name: (-(count * sizes[name] % whole), name))
    for name in rest[: count - sum(shares.values())]:
        shares[name] += 1
    return shares
