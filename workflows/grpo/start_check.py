"""Is the starting point worth reinforcing? A few questions of each kind through the samplers, before the first step.

Reinforcement only shifts what the policy already does. If searched answers are never right, searching never pays,
and training will rightly unlearn it: that is said before hours are spent on it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rich.table import Table

from actors.agent.seams import Sampling
from actors.agent.trajectory import Failure, Label, Question
from workflows.grpo.dispatch import CANCEL_S
from workflows.grpo.evaluation_metrics import Played
from workflows.grpo.ports import Sampler
from workflows.grpo.prompts_cursor import epoch_order
from workflows.grpo.step_metrics import label_of

NEVER = 0.05  # share of right answers below which something is as good as never right
ENOUGH = 5  # episodes without which no share is worth a word


@dataclass(frozen=True)
class Row:
    """What one kind of question showed; shares are NaN-free: 0 where there was no episode."""

    kind: str
    label: Label
    episodes: int
    failed: int  # lost to infrastructure or data, or never answered: not counted in the shares
    accuracy: float
    search_ratio: float
    searched: int
    accuracy_searched: float


def choose(questions: Mapping[str, Question], per_kind: int, seed: int) -> list[Question]:
    """`per_kind` questions of each kind, the same for the same seed."""
    kinds: defaultdict[str, list[Question]] = defaultdict(list)
    for question_id in epoch_order(questions, seed, -1):
        question = questions[question_id]
        if len(kinds[question.kind]) < per_kind:
            kinds[question.kind].append(question)
    return [question for kind in sorted(kinds) for question in kinds[kind]]


async def play(
    samplers: Sequence[Sampler], questions: Sequence[Question], sampling: Sampling, timeout_s: float
) -> list[Played]:
    """One episode each, all at once. What is late is cancelled, so that nothing of it runs on beside the first step."""

    async def one(sampler: Sampler, question: Question) -> Played:
        try:
            async with asyncio.timeout(timeout_s):
                summary, _ = await sampler.run(question, 0, sampling)
        except TimeoutError:
            with suppress(Exception):  # it may be the very sampler that hangs
                async with asyncio.timeout(CANCEL_S):
                    await sampler.cancel(question.id)
            return Played(question, None)
        except Exception:  # the check is advice: the run itself finds out what is broken, and says so
            return Played(question, None)
        return Played(question, summary)

    return await asyncio.gather(*(one(samplers[i % len(samplers)], q) for i, q in enumerate(questions)))


def rows(played: Sequence[Played]) -> list[Row]:
    """One per kind, sorted by name."""
    kinds: defaultdict[str, list[Played]] = defaultdict(list)
    for one in played:
        kinds[one.question.kind or "unknown"].append(one)
    return [_row(kind, kinds[kind]) for kind in sorted(kinds)]


def _row(kind: str, played: Sequence[Played]) -> Row:
    answers = [one.summary for one in played if one.summary is not None]
    valid = [s for s in answers if s.failure in (Failure.NONE, Failure.POLICY)]
    searched = [s for s in valid if s.searches]
    return Row(
        kind=kind,
        label=label_of(played[0].question),
        episodes=len(valid),
        failed=len(played) - len(valid),
        accuracy=_share(s.accuracy for s in valid),
        search_ratio=_share(float(s.searches > 0) for s in valid),
        searched=len(searched),
        accuracy_searched=_share(s.accuracy for s in searched),
    )


def _share(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def warnings(table: Sequence[Row]) -> list[str]:
    """What a person should think about before they let it train; nothing if the start is good."""
    found: list[str] = []
    episodes = sum(r.episodes for r in table)
    searched = sum(r.searched for r in table)
    right_searched = sum(r.accuracy_searched * r.searched for r in table)
    required = [r for r in table if r.label is Label.REQUIRED]
    if episodes < ENOUGH:
        return [f"only {episodes} episodes of the start check could be played: it says nothing."]
    if searched >= ENOUGH and right_searched / searched < NEVER:
        found.append(
            f"{searched} episodes searched and {right_searched / searched:.0%} of them were right: RL would unlearn"
            " searching. Train SFT longer (or on more reading) before spending on RL."
        )
    if required and sum(r.searched for r in required) < NEVER * sum(r.episodes for r in required):
        found.append("the model hardly ever searches where it must: there is nothing for RL to reinforce.")
    if sum(r.accuracy * r.episodes for r in table) / episodes < NEVER:
        found.append("hardly any answer is right, with or without searching: rewards will be flat.")
    if sum(r.accuracy * r.episodes for r in table) / episodes > 1 - NEVER:
        found.append("nearly every answer is right already: most groups will be flat and filtered.")
    return found


def table_of(table: Sequence[Row]) -> Table:
    """For the terminal."""
    shown = Table(title="the starting point, sampled", title_justify="left")
    for name in ("kind", "label", "episodes", "right", "searched", "right when searched", "failed"):
        shown.add_column(name, justify="left" if name in ("kind", "label") else "right")
    for r in table:
        searched = f"{r.accuracy_searched:.0%}" if r.searched else "-"
        shown.add_row(
            r.kind,
            r.label.value,
            str(r.episodes),
            f"{r.accuracy:.0%}",
            f"{r.search_ratio:.0%}",
            searched,
            str(r.failed),
        )
    return shown
